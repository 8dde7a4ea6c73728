//! When the silence of workers ends a run, and what is told.

use super::*;

const NO_WORKER_TIMEOUT: Duration = Duration::from_secs(60);

fn options(lease: Duration) -> ControllerOptions {
    ControllerOptions { lease, no_worker_timeout: NO_WORKER_TIMEOUT, ..ControllerOptions::default() }
}

fn first_job() -> (RunId, JobName) {
    let run = RunId::from_random([7; 20]);
    (run, JobName::new(std::time::SystemTime::UNIX_EPOCH, Attempt { run, batch: 0, attempt: 0 }))
}

/// A controller whose workers are silent: what it sees never changes.
struct Silent {
    controller: Controller,
    survey: Survey,
    now: Instant,
}

impl Silent {
    /// Looks once a second until it wants to do something, or the run ends, or long enough.
    fn until_action(&mut self, longest: Duration) -> Option<Action> {
        let end = self.now + longest;
        while self.now < end && !self.controller.is_deserted() {
            self.now += Duration::from_secs(1);
            if let Some(action) = self.controller.handle_survey(&self.survey, self.now).pop() {
                return Some(action);
            }
        }
        None
    }
}

#[test]
fn a_run_waits_for_what_a_lost_worker_has_and_ends_when_nobody_takes_what_is_offered() {
    // A lease may be longer than the silence that ends a run.
    for lease in [10, 120].map(Duration::from_secs) {
        let (run, job) = first_job();
        let [lost, idle]: [WorkerId; 2] = ["lost", "idle"].map(|name| name.parse().expect("an id"));
        let mut controller = Controller::new(run, options(lease), false);
        assert!(matches!(controller.add(job.clone(), 1, 1), Some(Action::Offer { .. })));
        controller.handle_offered(&job);
        // Nobody tells anything: the one is dead, the other one has no work.
        let statuses = [lost.clone(), idle].map(|worker| (worker, StatusSeen { is_ours: true, ..StatusSeen::default() })).into();
        let survey = Survey { processing: [(job.clone(), lost.clone())].into(), statuses, ..Survey::default() };
        let mut silent = Silent { controller, survey, now: Instant::now() };
        let revoked = silent.until_action(2 * lease);
        assert_eq!(revoked, Some(Action::Revoke { job: job.clone(), worker: Some(lost) }), "{lease:?}");
        // Its effects are refused by checks only, so the batch waits for the longest operation.
        silent.controller.handle_revoked(&job, &[], false, silent.now);
        silent.survey.processing.clear();
        let offered = silent.until_action(Duration::from_secs(3_600));
        assert!(matches!(&offered, Some(Action::Offer { previous: Some(previous), .. }) if *previous == job), "{offered:?}, {lease:?}");
        let Some(Action::Offer { job: next, .. }) = offered else { return };
        silent.controller.handle_offered(&next);
        silent.survey.pending.insert(next);
        let (since, action) = (silent.now, silent.until_action(Duration::from_secs(3_600)));
        assert!(action.is_none() && silent.controller.is_deserted(), "{action:?}, {lease:?}");
        assert!(silent.now - since >= NO_WORKER_TIMEOUT, "{lease:?}");
    }
}

#[test]
fn that_a_worker_has_the_batch_which_is_for_it_is_told_once() {
    let (run, job) = first_job();
    let (worker, mut now): (WorkerId, _) = ("w1".parse().expect("an id"), Instant::now());
    let mut controller = Controller::new(run, options(Duration::from_secs(10)), true);
    assert_eq!(controller.add(job.clone(), 1, 1), None, "nobody is there");
    let mut survey = Survey { statuses: [(worker.clone(), StatusSeen::default())].into(), ..Survey::default() };
    assert_eq!(controller.handle_survey(&survey, now), [Action::Offer { job: job.clone(), previous: None, to: Some(worker.clone()) }]);
    controller.handle_offered(&job);
    survey.pending.insert(job.clone());
    controller.handle_survey(&survey, now);
    assert_eq!(controller.notices(), [Notice::WorkerAppeared(worker.clone())]);
    survey.pending.clear();
    survey.processing.insert(job.clone(), worker.clone());
    for expected in [vec![Notice::Claimed(job, worker)], vec![]] {
        now += Duration::from_secs(1);
        controller.handle_survey(&survey, now);
        assert_eq!(controller.notices(), expected);
    }
}

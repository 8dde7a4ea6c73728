//! Single stories, each with one promise.

use super::*;

const BOTH: Honours = Honours { creates_once: true, renames: true };

impl World {
    fn warnings(&self) -> Vec<String> {
        let events = self.events.lock().expect("a lock");
        events.iter().filter_map(|event| if let RunEvent::Warning(what) = event { Some(what.clone()) } else { None }).collect()
    }

    fn revoked(&self) -> usize {
        self.events.lock().expect("a lock").iter().filter(|event| matches!(event, RunEvent::Revoked { .. })).count()
    }

    /// Waits until a file is there, or is gone.
    async fn until(&self, what: &str, holds: impl Fn(&Memory) -> bool) {
        let waiting = async {
            while !holds(&self.memory) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

/// A run with two workers, and what happens in its first second.
async fn run_with(world: &mut World, happens: impl AsyncFnOnce(&mut World)) -> RunEnd {
    (0..2).for_each(|name| world.start_worker(name));
    let handle = world.start_controller(RunStart::New).await;
    world.plan(&handle).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    happens(world).await;
    end_of(handle, QUIET).await.expect("it ends")
}

#[test]
fn a_worker_that_stops_gives_back_what_nobody_has_begun() {
    simulate(async {
        let mut world = World::new(1, BOTH);
        let end = run_with(&mut world, async |world| {
            let node = world.workers.remove(&0).expect("a worker");
            node.handle.stop();
            assert_eq!(node.handle.ended().await, WorkerEnd::Stopped);
            let held = world.memory.names("queue/processing/").into_iter().filter(|path| path.contains("worker-0"));
            let done = |path: &String| {
                let job = path.rsplit('/').next().and_then(JobName::parse_claimed).expect("a claim").0;
                !world.memory.names(&job.done()).is_empty()
            };
            assert!(held.filter(|path| !done(path)).count() == 0, "a claim has no result");
            assert!(world.memory.names("queue/status/worker-0").is_empty());
        })
        .await;
        assert_eq!(world.check_end(&end, false), Ok(()));
        assert_eq!(world.revoked(), 0, "nobody had to be waited for");
    });
}

#[test]
fn no_batch_is_taken_away_because_the_controller_slept() {
    simulate(async {
        let mut world = World::new(2, BOTH);
        let end = run_with(&mut world, async |world| {
            world.controllers[0].sleep(true);
            tokio::time::sleep(Duration::from_secs(60)).await;
            world.controllers[0].sleep(false);
        })
        .await;
        assert_eq!(world.check_end(&end, false), Ok(()));
        assert_eq!(world.revoked(), 0);
    });
}

#[test]
fn files_that_are_no_part_of_a_queue_are_told_and_hang_nothing() {
    simulate(async {
        let mut world = World::new(3, BOTH);
        for directory in ["pending", "processing", "done", "status", "claims"] {
            world.memory.put(&format!("queue/{directory}/garbage {directory}"), b"\xff{");
        }
        world.memory.put("queue/status/silent.json", b"{\"id\":");
        let foreign = "2025-11-26T22:52:10.5Z-bahufok4fuqixec7jija";
        world.memory.put(&format!("queue/pending/{foreign}.json"), b"{\"_path\":\"job/batch\",\"inp");
        let end = run_with(&mut world, async |_| {}).await;
        assert!(end.error.is_none() && end.totals.files == world.files as u64 && end.totals.batches_failed == 0, "{end:?}");
        let told = world.warnings();
        for what in ["garbage pending", "garbage processing", "garbage done", "garbage status", "garbage claims", "silent.json"] {
            assert!(told.iter().any(|told| told.contains(what)), "{what} is not told: {told:?}");
        }
        assert_eq!(world.memory.names(&format!("queue/done/{foreign}")).len(), 1, "whoever offered it learns that it is no batch");
    });
}

#[test]
fn a_job_of_rclone_is_done_and_its_claim_removed() {
    simulate(async {
        let mut world = World::new(4, BOTH);
        let batch = br#"{"_path":"job/batch","inputs":[{"_path":"operations/copyfile","srcFs":"/a","srcRemote":"1","dstFs":"/b","dstRemote":"1"}]}"#;
        world.memory.put("queue/pending/2025-11-26T22:52:10.5Z-bahufok4fuqixec7jija.json", batch);
        world.start_worker(0);
        let done = "queue/done/2025-11-26T22:52:10.5Z-bahufok4fuqixec7jija.json";
        world.until("a result", |memory| !memory.names(done).is_empty()).await;
        world.until("no claim", |memory| memory.names("queue/processing/").is_empty()).await;
        assert!(world.target.lock().done.contains_key("1"));
    });
}

#[test]
fn workers_are_told_to_stop_by_name_and_later_ones_go_on() {
    simulate(async {
        let mut world = World::new(5, BOTH);
        world.options.quits_workers = true;
        let end = run_with(&mut world, async |_| {}).await;
        assert_eq!(world.check_effects(), Ok(()));
        assert!(end.error.is_none());
        for (_, node) in std::mem::take(&mut world.workers) {
            assert_eq!(node.handle.ended().await, WorkerEnd::Quit);
        }
        assert!(world.memory.names("queue/pending/").is_empty() && world.memory.names("queue/status/").is_empty());
        // What was said to an earlier worker of the name, and what rclone has left, is not for this one.
        world.memory.put("queue/pending/QUIT-worker-0.json", &super::super::worker::quit_note(Some("another life")));
        world.memory.put("queue/pending/QUIT.json", b"{}");
        world.start_worker(0);
        world.until("its own is deleted", |memory| memory.names("queue/pending/").len() == 1).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!world.workers[&0].handle.is_over());
        // A new one of rclone is for all that are there.
        world.memory.put("queue/pending/QUIT.json", b"{ }");
        assert_eq!(world.workers.remove(&0).expect("a worker").handle.ended().await, WorkerEnd::Quit);
        assert_eq!(world.memory.names("queue/pending/"), ["queue/pending/QUIT.json"]);
    });
}

#[test]
fn a_worker_that_is_woken_makes_no_calls_without_work() {
    simulate(async {
        let mut world = World::new(6, BOTH);
        world.start_worker_with(0, |options| WorkerOptions { waits: Waits::IsWoken, ..options });
        tokio::time::sleep(Duration::from_secs(30)).await;
        let calls = world.workers[&0].client.calls();
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(world.workers[&0].client.calls(), calls);
        let handle = world.start_controller(RunStart::New).await;
        world.plan(&handle).await;
        world.until("a batch", |memory| !memory.names("queue/pending/").is_empty()).await;
        world.workers[&0].handle.wake().notify_one();
        let end = end_of(handle, QUIET).await.expect("it ends");
        assert_eq!(world.check_end(&end, false), Ok(()));
    });
}

#[test]
fn where_nothing_makes_claims_exclusive_each_batch_is_for_one_worker_and_that_is_told() {
    simulate(async {
        let mut world = World::new(7, Honours { creates_once: false, renames: false });
        world.options.patience.longest_operation = Duration::from_secs(5);
        let end = run_with(&mut world, async |world| world.workers.remove(&0).expect("a worker").handle.kill()).await;
        assert!(world.warnings()[0].contains("by convention only"));
        assert_eq!(world.check_effects(), Ok(()));
        assert!(end.error.is_none() && end.totals.files == world.files as u64, "{end:?}");
    });
}

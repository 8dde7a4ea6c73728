//! Tasks: their events, their start, and commands to them.

use std::time::Instant;

use nkcluster::cluster::CallOptions;
use nkcluster::types::{NodeId, Payload, TaskId};

use crate::bare;
use crate::bed::{Bed, Job, TIMEOUT, rate, seconds};
use crate::report::{Report, Row};

const STARTERS: usize = 16;
const COMMANDERS: usize = 64;

/// Rows of a bed with one worker.
pub(crate) async fn run(bed: &Bed, report: &mut Report) {
    if report.wants("events") {
        let baseline = bare::one_way_rate(seconds()).await;
        let task = start(bed, bed.worker(), Job::Tell).await;
        let (before, started) = (bed.events(), Instant::now());
        tokio::time::sleep(seconds()).await;
        let value = (bed.events() - before) as f64 / started.elapsed().as_secs_f64();
        bed.cluster.stop_task(bed.worker(), &bed.class, &task, TIMEOUT).await.expect("stopped");
        report.row(Row { name: "events", value, unit: "1/s", baseline });
    }
    if report.wants("task_starts") {
        let baseline = bare::echo_rate(STARTERS, seconds()).await;
        let value = rate(STARTERS, seconds(), |_| {
            let (caller, spec) = (bed.caller(bed.worker()), Payload::encode(&Job::End).expect("encodes"));
            move || {
                let (caller, spec) = (caller.clone(), spec.clone());
                async move {
                    let started = caller.cluster.start_task(&caller.worker, &caller.class, spec, CallOptions::timeout(TIMEOUT)).await;
                    started.expect("starts");
                }
            }
        })
        .await;
        report.row(Row { name: "task_starts", value, unit: "1/s", baseline });
    }
    if report.wants("commands_1") {
        commands("commands_1", COMMANDERS, bed, report).await;
    }
}

/// Commands of `callers`, one task on each worker; a task takes its commands one after the other.
pub(crate) async fn commands(name: &'static str, callers: usize, bed: &Bed, report: &mut Report) {
    let mut tasks = Vec::new();
    for worker in &bed.workers {
        tasks.push((worker, start(bed, worker, Job::Wait).await));
    }
    let baseline = bare::echo_rate(callers, seconds()).await;
    let value = rate(callers, seconds(), |number| {
        let (worker, task) = &tasks[number % tasks.len()];
        let (caller, task) = (bed.caller(worker), task.clone());
        move || {
            let (caller, task) = (caller.clone(), task.clone());
            async move {
                let options = CallOptions::timeout(TIMEOUT);
                let answer = caller.cluster.command(&caller.worker, &caller.class, &task, caller.payload.clone(), options).await;
                assert_eq!(answer.expect("answered").len(), caller.payload.len());
            }
        }
    })
    .await;
    for (worker, task) in tasks {
        bed.cluster.stop_task(worker, &bed.class, &task, TIMEOUT).await.expect("stopped");
    }
    report.row(Row { name, value, unit: "1/s", baseline });
}

async fn start(bed: &Bed, worker: &NodeId, job: Job) -> TaskId {
    let spec = Payload::encode(&job).expect("encodes");
    bed.cluster.start_task(worker, &bed.class, spec, CallOptions::timeout(TIMEOUT)).await.expect("starts").id
}

//! A fourth control node joins while calls run: how long until its share of the workers is there, and how many calls did not get their answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nkcluster::types::NodeId;

use crate::bed::{Bed, TIMEOUT, at_most};
use crate::counts;
use crate::report::{Report, Row};

const WORKERS: usize = 1000;
/// Callers, each with workers of its own.
const CALLERS: usize = 16;

pub(crate) async fn run(report: &mut Report) {
    if !report.wants_any(&["join_under_load", "join_lost"]) {
        return;
    }
    let mut bed = Bed::start(3, at_most(WORKERS)).await;
    let (stop, calls, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let cluster = bed.controls[caller % bed.controls.len()].cluster.clone();
            let (stop, calls, lost, count) = (Arc::clone(&stop), Arc::clone(&calls), Arc::clone(&lost), bed.count);
            tokio::spawn(async move {
                let mut worker = caller;
                while !stop.load(Ordering::Relaxed) {
                    let name = NodeId::new(format!("w{}", worker % count)).expect("valid");
                    match cluster.ping(&name, TIMEOUT).await {
                        Ok(_) => drop(calls.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            eprintln!("{name}: {error}");
                            lost.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    worker += CALLERS;
                }
            })
        })
        .collect();
    let from = Instant::now();
    bed.join().await;
    bed.settled().await;
    let seconds = counts::seconds_since(from);
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no panic");
    }
    let (calls, lost) = (calls.load(Ordering::Relaxed), lost.load(Ordering::Relaxed));
    if report.wants("join_under_load") {
        report.row(Row { name: "join_under_load", value: seconds, unit: "s", baseline: 30.0 });
    }
    if report.wants("join_lost") {
        report.row(Row { name: "join_lost", value: lost as f64, unit: "calls", baseline: calls as f64 });
    }
}

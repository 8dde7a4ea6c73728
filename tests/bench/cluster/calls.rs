//! What it costs that a call enters the cluster at a control node which does not own the worker.

use crate::bed::Bed;
use crate::report::{Report, Row};

/// Measurements of each way, in turns, so that the noise of the machine falls on both.
const TURNS: usize = 6;

pub(crate) async fn run(report: &mut Report) {
    if !report.wants("rtt_cross") {
        return;
    }
    let mut bed = Bed::start(2, 20).await;
    let local = bed.workers_of(&bed.controls[0].id, 1).await.remove(0);
    let remote = bed.workers_of(&bed.controls[1].id, 1).await.remove(0);
    let entry = &mut bed.controls[0].process;
    let mut round_trip = |worker: &str| -> f64 { tokio::task::block_in_place(|| entry.ask(worker)).parse().expect("a number") };
    let (mut here, mut across) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        here.push(round_trip(local.as_str()));
        across.push(round_trip(remote.as_str()));
    }
    report.row(Row { name: "rtt_cross", value: median(across), unit: "us", baseline: median(here) });
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples[samples.len() / 2]
}

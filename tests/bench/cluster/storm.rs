//! A control node is killed: how long until all its workers are ready at the other two, and whether they come once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::bed::{Bed, at_most};
use crate::counts;
use crate::report::{Report, Row};

/// Workers of each row, its name, and that of the connections which came later.
const SIZES: [(usize, &str, &str); 3] =
    [(100, "storm_100", "storm_100_again"), (1000, "storm_1000", "storm_1000_again"), (10_000, "storm_10000", "storm_10000_again")];
/// How long nothing may happen once everybody is where it belongs.
const QUIET: Duration = Duration::from_secs(12);

pub(crate) async fn run(report: &mut Report) {
    let mut peak = 0;
    for (workers, name, again) in SIZES {
        let wants_peak = workers == SIZES[SIZES.len() - 1].0 && report.wants("storm_peak");
        if report.wants_any(&[name, again]) || wants_peak {
            let workers = at_most(workers);
            let storm = measure(workers).await;
            eprintln!("{name}: {storm:?}");
            peak = storm.peak;
            if report.wants(name) {
                report.row(Row { name, value: storm.seconds, unit: "s", baseline: 20.0 });
            }
            if report.wants(again) {
                report.row(Row { name: again, value: storm.later as f64, unit: "conns", baseline: storm.lost as f64 });
            }
        }
    }
    if report.wants("storm_peak") {
        report.row(Row { name: "storm_peak", value: peak as f64, unit: "1/s", baseline: f64::from(crate::ACCEPT_RATE) });
    }
}

#[derive(Debug)]
struct Storm {
    /// Workers of the node that was killed.
    lost: usize,
    /// From its end until all are ready elsewhere.
    seconds: f64,
    /// Until all are where they belong.
    #[expect(dead_code, reason = "printed")]
    settled: f64,
    /// Connections that they made until then.
    #[expect(dead_code, reason = "printed")]
    connections: u64,
    /// Most connections in one second.
    peak: u64,
    /// Connections made after that, in the quiet.
    later: u64,
}

fn sum(slots: &BTreeMap<u64, u64>, from: u64) -> u64 {
    slots.range(from..).map(|(_, count)| *count).sum()
}

async fn measure(workers: usize) -> Storm {
    let mut bed = Bed::start(3, workers).await;
    // Pings have found their rhythm, and records are with their keepers.
    tokio::time::sleep(QUIET).await;
    let before = bed.connections();
    let lost = bed.workers_of(&bed.controls[2].id, workers).await.len();
    let (killed, slot) = (Instant::now(), counts::now_ms() / counts::SLOT_MS);
    drop(bed.controls.pop());
    bed.ready().await;
    let seconds = counts::seconds_since(killed);
    bed.settled().await;
    let settled = counts::seconds_since(killed);
    let then = bed.connections();
    tokio::time::sleep(QUIET).await;
    let after = bed.connections();
    let storm: BTreeMap<u64, u64> = after.range(slot..).map(|(slot, count)| (*slot, *count)).collect();
    Storm {
        lost,
        seconds,
        settled,
        connections: sum(&then, 0) - sum(&before, 0),
        peak: counts::peak_of_a_second(&storm),
        later: sum(&after, 0) - sum(&then, 0),
    }
}

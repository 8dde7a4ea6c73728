//! Small requests: their round trip, and how many of them a second has.

use std::time::Instant;

use crate::bare;
use crate::bed::{Bed, median, rate, seconds};
use crate::report::{Report, Row};

/// Parts of a measurement, ours and the baseline in turns, so that the noise of the machine falls on both.
const TURNS: u32 = 4;

pub(crate) async fn run(bed: &Bed, report: &mut Report) {
    if report.wants("rtt_p50") {
        round_trips(bed, report).await;
    }
    for (name, callers) in [("rps_1", 1), ("rps_16", 16), ("rps_64", 64), ("rps_256", 256)] {
        if report.wants(name) {
            let (mut ours, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                bare.push(bare::echo_rate(callers, seconds() / TURNS).await);
                ours.push(request_rate(bed, callers).await);
            }
            report.row(Row { name, value: median(ours), unit: "1/s", baseline: median(bare) });
        }
    }
}

async fn round_trips(bed: &Bed, report: &mut Report) {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.extend(bare::round_trips(seconds() / TURNS).await);
        let caller = bed.caller(bed.worker());
        let part = tokio::spawn(async move {
            let mut samples = Vec::new();
            let end = Instant::now() + seconds() / TURNS;
            while Instant::now() < end {
                let sent = Instant::now();
                caller.call().await;
                samples.push(sent.elapsed().as_secs_f64() * 1e6);
            }
            samples
        });
        ours.extend(part.await.expect("no panic"));
    }
    report.row(Row { name: "rtt_p50", value: median(ours), unit: "us", baseline: median(bare) });
}

async fn request_rate(bed: &Bed, callers: usize) -> f64 {
    rate(callers, seconds() / TURNS, |_| {
        let caller = bed.caller(bed.worker());
        move || {
            let caller = caller.clone();
            async move { caller.call().await }
        }
    })
    .await
}

//! Round trips from here to a worker and back.

use std::time::Duration;

use nkcluster::ErrorCode;
use nkcluster::types::NodeId;
use serde_json::json;

use super::Session;
use super::nodes::short;
use crate::failure::{Failure, Outcome};

pub(super) async fn run(session: &Session, node: &NodeId, count: u32, interval: Duration) -> Outcome {
    let people = !session.form.is_json();
    let mut trips = Vec::new();
    let mut last_error = None;
    for number in 1..=count {
        match session.cluster.ping(node, session.timeout).await {
            Ok(trip) => {
                trips.push(trip);
                if people {
                    session.form.line(format!("{node}: {number} {}", short(trip)))?;
                }
            }
            // Nobody of this name will answer the next one either.
            Err(error) if *error.code() == ErrorCode::NotFound => return Err(error.into()),
            Err(error) => {
                if people {
                    session.form.line(format!("{node}: {number} lost, {}", error.code()))?;
                }
                last_error = Some(error);
            }
        }
        if number < count {
            tokio::time::sleep(interval).await;
        }
    }
    trips.sort_unstable();
    let lost = count as usize - trips.len();
    let micros = |share: f64| percentile(&trips, share).map(|trip| trip.as_micros() as u64);
    let document = json!({
        "count": count, "lost": lost,
        "min_us": micros(0.0), "p50_us": micros(0.5), "p99_us": micros(0.99), "max_us": micros(1.0),
    });
    session.form.print(&document, || {
        let at = |share| percentile(&trips, share).map_or_else(|| "-".to_owned(), short);
        format!("{count} sent, {lost} lost: min {}, p50 {}, p99 {}, max {}", at(0.0), at(0.5), at(0.99), at(1.0))
    })?;
    match (trips.is_empty(), last_error) {
        (true, Some(error)) => Err(Failure::from(error).context(format_args!("no answer of {node}"))),
        _ => Ok(()),
    }
}

/// The nearest rank of sorted values.
fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let trips: Vec<_> = (1..=10).map(Duration::from_millis).collect();
        let at = |share| percentile(&trips, share).map(|trip| trip.as_millis());
        assert_eq!((at(0.0), at(0.5), at(0.99), at(1.0)), (Some(1), Some(5), Some(10), Some(10)));
        assert_eq!(percentile(&[], 0.5), None);
    }
}

//! Counters as they are written down, and their sum.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Longest time to the end that is told; beyond it nobody knows.
const ETA_SECONDS_MAX: f64 = 100.0 * 365.0 * 86_400.0;

/// What rclone's `core/stats` tells. Keys that are missing or unknown are no error, as another program may have written it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatsReport {
    /// Bytes transferred.
    pub bytes: u64,
    /// Files compared.
    pub checks: u64,
    /// Files deleted.
    pub deletes: u64,
    /// Directories deleted.
    pub deleted_dirs: u64,
    /// Seconds since the beginning.
    pub elapsed_time: f64,
    /// Errors.
    pub errors: u64,
    /// Seconds to the end, if that can be said.
    pub eta: Option<u64>,
    /// Whether the run cannot go on.
    pub fatal_error: bool,
    /// The error that came last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Entries listed.
    pub listed: u64,
    /// Files renamed.
    pub renames: u64,
    /// Whether another run may succeed where this one failed.
    pub retry_error: bool,
    /// Files copied within a storage.
    pub server_side_copies: u64,
    /// Their bytes.
    pub server_side_copy_bytes: u64,
    /// Files moved within a storage.
    pub server_side_moves: u64,
    /// Their bytes.
    pub server_side_move_bytes: u64,
    /// Bytes per second.
    pub speed: f64,
    /// Bytes planned so far.
    pub total_bytes: u64,
    /// Files planned to be compared so far.
    pub total_checks: u64,
    /// Files planned to be transferred so far.
    pub total_transfers: u64,
    /// Seconds during which something was in transfer.
    pub transfer_time: f64,
    /// Files transferred.
    pub transfers: u64,
    /// Files in transfer now; not all of them, if there are many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transferring: Vec<Transferring>,
}

/// A file in transfer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transferring {
    /// Its path.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Those transferred.
    pub bytes: u64,
    /// The same in percent.
    pub percentage: u8,
    /// Seconds to its end, if that can be said.
    pub eta: Option<u64>,
    /// Bytes per second.
    pub speed: f64,
}

/// Seconds until `bytes` are done.
pub(super) fn eta(bytes: u64, speed: f64) -> Option<u64> {
    let seconds = (bytes as f64 / speed).ceil();
    (speed > 0.0 && seconds < ETA_SECONDS_MAX).then_some(seconds as u64)
}

/// Adds the report of another worker: amounts and speeds add up, times are those of the longest, and whatever went wrong anywhere went wrong.
impl AddAssign<&StatsReport> for StatsReport {
    fn add_assign(&mut self, other: &StatsReport) {
        for (sum, part) in [
            (&mut self.bytes, other.bytes),
            (&mut self.checks, other.checks),
            (&mut self.deletes, other.deletes),
            (&mut self.deleted_dirs, other.deleted_dirs),
            (&mut self.errors, other.errors),
            (&mut self.listed, other.listed),
            (&mut self.renames, other.renames),
            (&mut self.server_side_copies, other.server_side_copies),
            (&mut self.server_side_copy_bytes, other.server_side_copy_bytes),
            (&mut self.server_side_moves, other.server_side_moves),
            (&mut self.server_side_move_bytes, other.server_side_move_bytes),
            (&mut self.total_bytes, other.total_bytes),
            (&mut self.total_checks, other.total_checks),
            (&mut self.total_transfers, other.total_transfers),
            (&mut self.transfers, other.transfers),
        ] {
            // A report may come from anybody; its numbers must not stop us.
            *sum = sum.saturating_add(part);
        }
        self.speed += other.speed;
        self.elapsed_time = self.elapsed_time.max(other.elapsed_time);
        self.transfer_time = self.transfer_time.max(other.transfer_time);
        self.fatal_error |= other.fatal_error;
        self.retry_error |= other.retry_error;
        if other.last_error.is_some() {
            self.last_error.clone_from(&other.last_error);
        }
        self.transferring.extend_from_slice(&other.transferring);
        self.eta = eta(self.total_bytes.saturating_sub(self.bytes), self.speed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_keys_are_those_of_rclone() {
        let report = StatsReport { last_error: Some("x".into()), transferring: vec![Transferring::default()], ..StatsReport::default() };
        let value = serde_json::to_value(report).expect("json");
        let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut expected = [
            "bytes",
            "checks",
            "deletes",
            "deletedDirs",
            "elapsedTime",
            "errors",
            "eta",
            "fatalError",
            "lastError",
            "listed",
            "renames",
            "retryError",
            "serverSideCopies",
            "serverSideCopyBytes",
            "serverSideMoves",
            "serverSideMoveBytes",
            "speed",
            "totalBytes",
            "totalChecks",
            "totalTransfers",
            "transferTime",
            "transferring",
            "transfers",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_report_of_another_program_is_read() {
        let report: StatsReport = serde_json::from_str(r#"{"bytes":3,"eta":null,"somethingNew":[1]}"#).expect("read");
        assert_eq!(report, StatsReport { bytes: 3, ..StatsReport::default() });
    }

    proptest! {
        #[test]
        fn the_order_of_workers_changes_no_sum(reports in proptest::collection::vec((any::<u64>(), 0..1000_u64, any::<bool>()), 0..6)) {
            let reports: Vec<StatsReport> = reports
                .into_iter()
                .map(|(bytes, transfers, retry_error)| StatsReport { bytes, transfers, retry_error, ..StatsReport::default() })
                .collect();
            let sum = |order: &mut dyn Iterator<Item = &StatsReport>| order.fold(StatsReport::default(), |mut sum, report| { sum += report; sum });
            prop_assert_eq!(sum(&mut reports.iter()), sum(&mut reports.iter().rev()));
        }
    }
}

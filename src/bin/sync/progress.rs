//! What people see while files are copied: numbers in the manner of rclone, each worker on a line of its own.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nkcluster_file_sync::{Snapshot, StatsReport};

use super::harmless;
use crate::output;

/// Files and workers that are shown by name.
const LINES_MAX: usize = 12;
/// Width of the words before the numbers.
const LABEL: usize = 16;

/// Where the numbers go.
pub(crate) enum Display {
    /// They are drawn anew in one place of the terminal.
    Live(ProgressBar),
    /// A block of lines now and then.
    Lines,
    /// Nowhere.
    Off,
}

impl Display {
    /// Live on a terminal if asked, else lines.
    pub(crate) fn new(wants_progress: bool, is_json: bool) -> Self {
        match () {
            () if is_json => Self::Off,
            () if wants_progress && stderr().is_terminal() => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
                bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is valid"));
                Self::Live(bar)
            }
            () => Self::Lines,
        }
    }

    /// How often it wants numbers; `stats` is for lines, nothing of it is never.
    pub(crate) fn pause(&self, stats: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Live(_) => Some(Duration::from_millis(500)),
            Self::Lines => stats.filter(|pause| !pause.is_zero()),
            Self::Off => None,
        }
    }

    /// Shows numbers.
    pub(crate) fn show(&self, snapshot: &Snapshot) {
        match self {
            Self::Live(bar) => bar.set_message(text_of(snapshot)),
            Self::Lines => output::to_stderr(&text_of(snapshot)),
            Self::Off => {}
        }
    }

    /// A line that stays, above what is drawn.
    pub(crate) fn tell(&self, line: &str) {
        match self {
            Self::Live(bar) => bar.suspend(|| output::to_stderr(line)),
            Self::Lines | Self::Off => output::to_stderr(line),
        }
    }

    /// The last numbers, which stay.
    pub(crate) fn finish(&self, snapshot: &Snapshot) {
        match self {
            Self::Live(bar) => {
                bar.finish_and_clear();
                output::to_stderr(&text_of(snapshot));
            }
            Self::Lines => output::to_stderr(&text_of(snapshot)),
            Self::Off => {}
        }
    }
}

fn text_of(snapshot: &Snapshot) -> String {
    let stats = &snapshot.stats;
    let mut lines = vec![
        line(
            "Transferred",
            &format!("{}, {}/s, ETA {}", share(stats.bytes, stats.total_bytes, output::bytes), speed(stats), eta(stats.eta)),
        ),
        line("Checks", &share(stats.checks, stats.total_checks, |count| count.to_string())),
        line("Transferred", &share(stats.transfers, stats.total_transfers, |count| count.to_string())),
    ];
    if stats.deletes > 0 || stats.deleted_dirs > 0 {
        lines.push(line("Deleted", &format!("{} files, {} directories", stats.deletes, stats.deleted_dirs)));
    }
    if stats.errors > 0 {
        let retry = if stats.retry_error { ", another try may help" } else { "" };
        lines.push(line("Errors", &format!("{}{retry}", stats.errors)));
    }
    lines.push(line("Elapsed time", &format!("{:.1}s", stats.elapsed_time)));
    for (worker, stats) in snapshot.workers.iter().take(LINES_MAX) {
        let numbers = format!("{} files, {}, {}/s", stats.transfers, output::bytes(stats.bytes), speed(stats));
        lines.push(line(&harmless(&format!("Worker {worker}")), &numbers));
    }
    let more = snapshot.workers.len().saturating_sub(LINES_MAX) as u64 + snapshot.more_workers;
    if more > 0 {
        lines.push(format!("  and {more} more workers"));
    }
    for file in stats.transferring.iter().take(LINES_MAX) {
        let size = output::bytes(file.size);
        let name = harmless(&file.name);
        lines.push(format!(" * {name}: {}% of {size}, {}/s, {}", file.percentage, output::bytes(file.speed as u64), eta(file.eta)));
    }
    lines.join("\n")
}

fn line(label: &str, numbers: &str) -> String {
    format!("{:<LABEL$} {numbers}", format!("{label}:"))
}

fn share(done: u64, total: u64, show: impl Fn(u64) -> String) -> String {
    let total = total.max(done);
    // Numbers come from workers, which may tell any.
    match (u128::from(done) * 100).checked_div(u128::from(total)) {
        Some(percent) => format!("{} / {}, {percent}%", show(done), show(total)),
        None => format!("{} / {}", show(done), show(total)),
    }
}

fn speed(stats: &StatsReport) -> String {
    output::bytes(stats.speed.max(0.0) as u64)
}

fn eta(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_nothing_are_no_division_by_zero() {
        let text = text_of(&Snapshot::default());
        assert!(text.contains("Checks:          0 / 0"), "{text}");
        assert!(!text.contains("Deleted") && !text.contains("Errors"), "{text}");
    }

    #[test]
    fn workers_and_files_have_lines_of_their_own() {
        let stats = StatsReport { transfers: 3, total_transfers: 12, bytes: 1024, total_bytes: 4096, errors: 1, ..StatsReport::default() };
        let workers = (0..LINES_MAX + 2).map(|number| (format!("w{number:02}"), stats.clone())).collect();
        let text = text_of(&Snapshot { stats, workers, more_workers: 40 });
        assert!(text.contains("Transferred:     3 / 12, 25%") && text.contains("1.00 KiB / 4.00 KiB, 25%"), "{text}");
        assert!(text.contains("Worker w00:") && text.contains("and 42 more workers") && text.contains("Errors:"), "{text}");
    }

    #[test]
    fn numbers_and_names_of_a_hostile_worker_do_no_harm() {
        let stats = StatsReport {
            bytes: u64::MAX,
            total_bytes: u64::MAX,
            transfers: u64::MAX,
            deletes: u64::MAX,
            deleted_dirs: u64::MAX,
            speed: f64::NAN,
            eta: Some(u64::MAX),
            ..StatsReport::default()
        };
        let text = text_of(&Snapshot { workers: [("w\u{1b}[2J".to_owned(), stats.clone())].into_iter().collect(), stats, more_workers: 0 });
        assert!(text.contains(&format!("{0} / {0}, 100%", u64::MAX)) && text.contains("Worker w\u{fffd}[2J:"), "{text}");
        assert!(!text.chars().any(|shown| shown.is_control() && shown != '\n'), "{text:?}");
    }
}

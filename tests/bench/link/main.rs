//! The link and what stands on it, beside bare tokio baselines measured in the same run.
//!
//! ```sh
//! cargo bench --bench link                        # every row
//! cargo bench --bench link -- --row rtt_p50       # one
//! cargo bench --bench link -- --strict            # a missed budget fails
//! ```
//!
//! Rows and variables are described in `src/docs/benches.md`. One file for each group of rows; `report` holds rows against their budgets.

mod accepts;
mod bare;
mod bed;
mod calls;
mod jobs;
mod memory;
mod report;
mod streams;

use std::process::ExitCode;

use self::bed::Bed;
use self::report::{Budget, Report};

/// Every row, in the order in which they are measured, with its budget (design §7). The rates are ten times those of the original on a machine of its time; everything
/// else is relative to a baseline of the same run, or what a user would notice.
const ROWS: &[(&str, Budget)] = &[
    ("rtt_p50", Budget::RatioAtMost(2.0)),
    ("rps_1", Budget::None),
    ("rps_16", Budget::None),
    ("rps_64", Budget::AtLeast(127_000.0)),
    ("rps_256", Budget::AtLeast(140_000.0)),
    ("stream_tcp", Budget::RatioAtLeast(0.9)),
    ("ping_p99_busy", Budget::AtMost(10_000.0)),
    ("events", Budget::None),
    ("task_starts", Budget::None),
    ("commands_1", Budget::None),
    ("commands_100", Budget::None),
    ("stream_tls", Budget::RatioAtLeast(0.9)),
    ("accepts", Budget::AtLeast(2_000.0)),
    ("stream_ws", Budget::None),
    ("memory_idle_tcp", Budget::AtMost(24.0)),
    ("memory_idle_tls", Budget::AtMost(48.0)),
];

/// Workers of the bed with many.
const MANY: usize = 100;

#[derive(Default)]
struct Arguments {
    row: Option<String>,
    strict: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == memory::PART) {
        memory::part(&words[1..]);
        return ExitCode::SUCCESS;
    }
    let arguments = match arguments(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            let rows: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
            eprintln!("{error}\nusage: cargo bench --bench link -- [--row NAME] [--strict]\nrows: {}", rows.join(" "));
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new(ROWS, arguments.row);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(in_process(&mut report));
    drop(runtime);
    memory::run(&mut report);
    if report.finish(arguments.strict) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments(words: Vec<String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--strict" => arguments.strict = true,
            "--row" => {
                let name = words.next().ok_or("--row needs a name")?;
                if !ROWS.iter().any(|(row, _)| *row == name) {
                    return Err(format!("there is no row {name}"));
                }
                arguments.row = Some(name);
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(arguments)
}

async fn in_process(report: &mut Report) {
    let of_one = ["rtt_p50", "rps_1", "rps_16", "rps_64", "rps_256", "stream_tcp", "ping_p99_busy", "events", "task_starts", "commands_1"];
    if report.wants_any(&of_one) {
        let bed = Bed::start("tcp", 1).await;
        calls::run(&bed, report).await;
        streams::throughput("stream_tcp", "tcp", &bed, report).await;
        streams::busy_pings(&bed, report).await;
        jobs::run(&bed, report).await;
    }
    if report.wants("commands_100") {
        let bed = Bed::start("tcp", MANY).await;
        jobs::commands("commands_100", MANY, &bed, report).await;
    }
    if report.wants_any(&["stream_tls", "accepts"]) {
        let bed = Bed::start("tls", 1).await;
        streams::throughput("stream_tls", "tls", &bed, report).await;
        accepts::run(&bed, report).await;
    }
    if report.wants("stream_ws") {
        let bed = Bed::start("ws", 1).await;
        streams::throughput("stream_ws", "ws", &bed, report).await;
    }
}

//! Several control nodes and thousands of workers, over real sockets: calls that cross control nodes, a control node that dies, one that joins.
//!
//! ```sh
//! cargo bench --bench cluster                          # every row, a few minutes
//! cargo bench --bench cluster -- --row storm_1000      # one
//! cargo bench --bench cluster -- --strict              # a missed budget fails
//! ```
//!
//! ```text
//!   bench ──► process of each control node ◄── TLS ── process `workers`: real nodes
//!     └────── link of an operator to each of them
//! ```
//!
//! Rows and variables are described in `src/docs/benches.md`. `bed` starts processes, `parts` is what they do; one file for each group of rows.

mod bed;
mod calls;
mod counts;
mod join;
mod parts;
#[path = "../link/report.rs"]
#[expect(dead_code, reason = "budgets of other benches")]
mod report;
mod storm;

use std::process::ExitCode;

use self::report::{Budget, Report};

/// Connections that a control node accepts per second.
const ACCEPT_RATE: u32 = 2000;

/// Every row with its budget.
const ROWS: &[(&str, Budget)] = &[
    ("rtt_cross", Budget::RatioAtMost(2.0)),
    ("storm_100", Budget::AtMost(20.0)),
    ("storm_100_again", Budget::AtMost(0.0)),
    ("storm_1000", Budget::AtMost(20.0)),
    ("storm_1000_again", Budget::AtMost(0.0)),
    ("storm_10000", Budget::AtMost(20.0)),
    ("storm_10000_again", Budget::AtMost(0.0)),
    // The bucket of an idle second, and what comes in during the next one, at both nodes that are left.
    ("storm_peak", Budget::AtMost(4.0 * ACCEPT_RATE as f64)),
    ("join_under_load", Budget::AtMost(30.0)),
    ("join_lost", Budget::AtMost(0.0)),
];

#[derive(Default)]
struct Arguments {
    row: Option<String>,
    strict: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == parts::PART) {
        parts::run(&words[1..]);
        return ExitCode::SUCCESS;
    }
    let arguments = match arguments(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            let rows: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
            eprintln!("{error}\nusage: cargo bench --bench cluster -- [--row NAME] [--strict]\nrows: {}", rows.join(" "));
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new(ROWS, arguments.row);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        calls::run(&mut report).await;
        storm::run(&mut report).await;
        join::run(&mut report).await;
    });
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

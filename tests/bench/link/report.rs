//! Rows of a bench, for people and as NDJSON, and the budgets that they are held against.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What a row may be.
#[derive(Clone, Copy)]
pub(crate) enum Budget {
    /// The ratio to the baseline, at most.
    RatioAtMost(f64),
    /// The ratio to the baseline, at least.
    RatioAtLeast(f64),
    /// The value, at most.
    AtMost(f64),
    /// The value, at least.
    AtLeast(f64),
    /// Measured to be watched.
    None,
}

impl Budget {
    fn is_met(self, value: f64, ratio: f64) -> bool {
        match self {
            Budget::RatioAtMost(most) => ratio <= most,
            Budget::RatioAtLeast(least) => ratio >= least,
            Budget::AtMost(most) => value <= most,
            Budget::AtLeast(least) => value >= least,
            Budget::None => true,
        }
    }

    fn text(self) -> String {
        match self {
            Budget::RatioAtMost(most) => format!("ratio <= {most}"),
            Budget::RatioAtLeast(least) => format!("ratio >= {least}"),
            Budget::AtMost(most) => format!("<= {most}"),
            Budget::AtLeast(least) => format!(">= {least}"),
            Budget::None => String::new(),
        }
    }
}

/// One measurement.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) baseline: f64,
}

/// Collects rows; says at the end which are missing and which missed their budget.
pub(crate) struct Report {
    json: PathBuf,
    rows: &'static [(&'static str, Budget)],
    /// The one row that is wanted.
    only: Option<String>,
    measured: Vec<&'static str>,
    missed: Vec<String>,
}

impl Report {
    /// A run that measures these rows, or only one of them.
    pub(crate) fn new(rows: &'static [(&'static str, Budget)], only: Option<String>) -> Self {
        println!("{:<16} {:>12} {:<6} {:>12} {:>7}  budget", "row", "value", "unit", "baseline", "ratio");
        // Whichever package the bench is of: the target folder is that of all.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("."));
        let json =
            std::env::var_os("NKCLUSTER_BENCH_JSON").map_or_else(|| target.join("bench.ndjson"), |path| target.join("..").join(path));
        Self { json, rows, only, measured: Vec::new(), missed: Vec::new() }
    }

    /// Whether a row is to be measured in this run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == name)
    }

    /// Whether any of these rows is.
    pub(crate) fn wants_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.wants(name))
    }

    /// One row; the ratio is value to baseline.
    pub(crate) fn row(&mut self, Row { name, value, unit, baseline }: Row) {
        let ratio = value / baseline;
        let (_, budget) =
            self.rows.iter().find(|(row, _)| *row == name).unwrap_or_else(|| panic!("the row {name} is not one of this bench"));
        let is_met = budget.is_met(value, ratio);
        let mark = if is_met { "" } else { "  MISSED" };
        println!("{name:<16} {value:>12.1} {unit:<6} {baseline:>12.1} {ratio:>7.2}  {}{mark}", budget.text());
        self.measured.push(name);
        if !is_met {
            self.missed.push(format!("{name} is {value:.1} {unit}, {ratio:.2} x its baseline; its budget is {}", budget.text()));
        }
        let row = serde_json::json!({ "name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio, "met": is_met });
        let file = OpenOptions::new().create(true).append(true).open(&self.json);
        let written = file.and_then(|mut file| writeln!(file, "{row}"));
        if let Err(error) = written {
            eprintln!("{} cannot be written: {error}", self.json.display());
        }
    }

    /// Whether the run is good: every wanted row was measured and, if `strict`, met its budget.
    pub(crate) fn finish(self, strict: bool) -> bool {
        let missing: Vec<&str> =
            self.rows.iter().map(|(name, _)| *name).filter(|name| self.wants(name) && !self.measured.contains(name)).collect();
        for missed in &self.missed {
            println!("MISSED: {missed}");
        }
        if !missing.is_empty() {
            eprintln!("not measured: {}", missing.join(", "));
        }
        missing.is_empty() && (self.missed.is_empty() || !strict)
    }
}

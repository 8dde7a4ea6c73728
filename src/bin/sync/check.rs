//! `check`: what differs between two trees.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use nkcluster_file_sync::{Difference, Filter, Options, PlanRequest, Root, Task, check as compare};
use serde_json::json;

use super::flags::{FilterFlags, ListingFlags};
use super::{harmless, harmless_line};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};

/// A check.
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckArgs {
    /// One tree.
    #[arg(value_name = "SRC")]
    source: String,
    /// The other.
    #[arg(value_name = "DST")]
    destination: String,
    #[command(flatten)]
    listing: ListingFlags,
    #[command(flatten)]
    filter: FilterFlags,
    /// Compare nothing but sizes.
    #[arg(long)]
    size_only: bool,
    /// Do not compare sizes, only content.
    #[arg(long)]
    ignore_size: bool,
    /// Compare symbolic links by where they point to; otherwise they are left out.
    #[arg(short = 'l', long)]
    links: bool,
    /// Do not tell what is only at the destination.
    #[arg(long)]
    one_way: bool,
    /// Compare content by reading it, whatever hashes there are.
    #[arg(long)]
    download: bool,
    /// Tell every file with a sign: `=` the same, `*` differs, `+` only at the source, `-` only at the destination, `!` unreadable.
    #[arg(long)]
    combined: bool,
    /// File of remotes.
    #[arg(long, env = "NKCLUSTER_REMOTES", value_name = "FILE")]
    remotes: Option<PathBuf>,
}

/// Files by what was found out.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct Counts {
    same: u64,
    unhashed: u64,
    differ: u64,
    missing_at_destination: u64,
    missing_at_source: u64,
    failed: u64,
}

/// `check`; ends with 1 if anything differs.
pub(crate) async fn run(args: CheckArgs, form: Form) -> Outcome {
    let CheckArgs { source, destination, listing, filter, size_only, ignore_size, links, one_way, download, combined, remotes } = args;
    let mut options = Options { size_only, ignore_size, links, one_way, download, filter: filter.options(), ..Options::default() };
    listing.apply(&mut options);
    let options = options.checked().map_err(|error| Failure::usage("invalid_usage", error.to_string()))?;
    let remotes = super::remotes(remotes)?;
    let root = |text: &str| {
        let remote = remotes.open(text).map_err(|error| Failure::usage("invalid_usage", error.to_string()))?;
        Ok::<_, Failure>(Root { fs: remote.portable(), storage: remote.storage().clone(), excluded: Vec::new() })
    };
    let filters = options.filter.clone();
    // It may read files, and standard input.
    let filter = tokio::task::spawn_blocking(move || Filter::load(&filters, std::time::SystemTime::now())).await;
    let filter = filter.map_err(|error| Failure::new("internal", error.to_string()))?;
    let filter = filter.map_err(|error| Failure::usage("invalid_usage", error.to_string()))?;
    let request = PlanRequest {
        task: Task::Copy,
        source: Some(root(&source)?),
        destination: root(&destination)?,
        backup_fs: None,
        folds_names: false,
        deleted: 0,
        options,
        filter: Arc::new(filter),
    };
    let mut checking = compare(request);
    let mut counts = Counts::default();
    while let Some(finding) = checking.next().await {
        let is_odd = match &finding.difference {
            Difference::Same { is_content_known } => {
                counts.same += 1;
                counts.unhashed += u64::from(!is_content_known);
                false
            }
            Difference::Differs => {
                counts.differ += 1;
                true
            }
            Difference::MissingAtDestination => {
                counts.missing_at_destination += 1;
                true
            }
            Difference::MissingAtSource => {
                counts.missing_at_source += 1;
                true
            }
            Difference::Failed(error) => {
                counts.failed += 1;
                output::to_stderr(&format!("ERROR: {}: {}", harmless(finding.path.as_str()), harmless_line(&error.what)));
                true
            }
        };
        if is_odd || combined {
            form.print(&json!({ "sign": finding.difference.to_string(), "path": finding.path }), || harmless(&finding.to_string()))?;
        }
    }
    let differences = counts.differ + counts.missing_at_destination + counts.missing_at_source;
    form.print(&json!({ "counts": counts }), || {
        format!("{} files are the same, {differences} differ, {} could not be read", counts.same, counts.failed)
    })?;
    match (differences, counts.failed) {
        (0, 0) => Ok(()),
        (_, 0) => Err(Failure::new("differences_found", format!("{differences} files differ")).with_exit(exit::FAILED)),
        (_, failed) => {
            Err(Failure::new("check_failed", format!("{failed} files or directories could not be read")).with_exit(exit::FAILED))
        }
    }
}

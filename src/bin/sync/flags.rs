//! The flags of `copy`, `sync`, `move`, `check` and `delete`: names, defaults and suffixes are rclone's. A command has only those that change what it does.

use clap::Args;
use nkcluster::types::Selector;
use nkcluster_file_sync::{Age, Cleanup, DeleteMode, FilterOptions, Options, Rate, RuleOptions, RunId, SizeSuffix, Span};

use crate::failure::{Failure, Outcome};

/// What one command that carries out a run can be told.
pub(crate) trait RunFlags: Args {
    /// The options that it stands for; those of the cluster are not among them.
    fn options(self) -> Options;
}

/// The flags of `copy` and `move`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CopyFlags {
    #[command(flatten)]
    compare: CompareFlags,
    #[command(flatten)]
    listing: ListingFlags,
    #[command(flatten)]
    transfer: TransferFlags,
    #[command(flatten)]
    work: WorkFlags,
    #[command(flatten)]
    backup: BackupFlags,
    #[command(flatten)]
    filter: FilterFlags,
}

/// The flags of `sync`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SyncFlags {
    #[command(flatten)]
    copy: CopyFlags,
    #[command(flatten)]
    surplus: SurplusFlags,
}

/// The flags of `delete`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeleteFlags {
    #[command(flatten)]
    listing: ListingFlags,
    #[command(flatten)]
    work: WorkFlags,
    #[command(flatten)]
    filter: FilterFlags,
    /// Delete no more files than that; one more is an error that ends the run.
    #[arg(long, value_name = "N")]
    max_delete: Option<u64>,
    /// Delete symbolic links too, not what they point to.
    #[arg(short = 'l', long)]
    links: bool,
}

/// What counts as the same file.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Comparison")]
struct CompareFlags {
    /// Compare content instead of times, where sizes are the same.
    #[arg(short = 'c', long)]
    checksum: bool,
    /// Compare nothing but sizes.
    #[arg(long, conflicts_with = "checksum")]
    size_only: bool,
    /// Leave files that are newer at the destination.
    #[arg(short = 'u', long)]
    update: bool,
    /// Leave all files that are at the destination.
    #[arg(long)]
    ignore_existing: bool,
    /// Copy files even if they are the same.
    #[arg(short = 'I', long)]
    ignore_times: bool,
    /// Do not compare sizes.
    #[arg(long)]
    ignore_size: bool,
    /// Files at the destination must never change: one that differs is an error.
    #[arg(long)]
    immutable: bool,
    /// Times that differ by less are the same.
    #[arg(long, value_name = "TIME", default_value = "1ns")]
    modify_window: Span,
}

/// How trees are listed.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Listing")]
pub(crate) struct ListingFlags {
    /// Directories that are listed and compared at the same time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    checkers: u32,
    /// Look into directories no deeper than this; 1 is the root alone.
    #[arg(long, value_name = "N")]
    max_depth: Option<u32>,
    /// Times that one call of a storage is tried.
    #[arg(long, value_name = "N", default_value_t = 10)]
    low_level_retries: u32,
}

/// How files are copied.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Transfers")]
struct TransferFlags {
    /// Bytes per second of each process that copies, such as 10M.
    #[arg(long, value_name = "RATE", default_value = "off")]
    bwlimit: Rate,
    /// Copy symbolic links as links.
    #[arg(short = 'l', long)]
    links: bool,
    /// Follow symbolic links and copy what they point to.
    #[arg(short = 'L', long, conflicts_with = "links")]
    copy_links: bool,
    /// Make directories at the destination that are empty at the source.
    #[arg(long)]
    create_empty_src_dirs: bool,
    /// Do not compare what was written with what was read.
    #[arg(long, visible_alias = "ignore-checksum")]
    no_verify: bool,
    /// Leave the time of a file at the destination that has the same content.
    #[arg(long)]
    no_update_modtime: bool,
    /// Leave the times of directories.
    #[arg(long)]
    no_update_dir_modtime: bool,
}

/// How the work is done, and how often it is tried.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Work")]
struct WorkFlags {
    /// Files that are worked on at the same time, by each worker; with --on the number that the worker's daemon was built with.
    #[arg(long, value_name = "N", default_value_t = 4)]
    transfers: u32,
    /// Tell what would be done, and do nothing.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Times that the whole run is tried, if some of it fails.
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: u32,
    /// Pause between two tries of the whole run.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    retries_sleep: Span,
}

/// What is kept of files that go.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Backups")]
struct BackupFlags {
    /// Where files go that are replaced or deleted, on the remote of the destination.
    #[arg(long, value_name = "REMOTE")]
    backup_dir: Option<String>,
    /// Appended to the names of files that are replaced or deleted; without --backup-dir they stay where they are.
    #[arg(long, value_name = "SUFFIX")]
    suffix: Option<String>,
    /// Put the suffix before the extension.
    #[arg(long)]
    suffix_keep_extension: bool,
}

/// What `sync` does with files that are only at the destination.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Deletes")]
struct SurplusFlags {
    /// Delete in a pass of its own before anything is copied.
    #[arg(long, conflicts_with_all = ["delete_during", "delete_after"])]
    delete_before: bool,
    /// Delete as it is found.
    #[arg(long, conflicts_with = "delete_after")]
    delete_during: bool,
    /// Delete when everything was copied and nothing failed; this is the default.
    #[arg(long)]
    delete_after: bool,
    /// Delete at the destination what the filters exclude.
    #[arg(long)]
    delete_excluded: bool,
    /// Delete no more files than that; one more is an error that ends the run.
    #[arg(long, value_name = "N")]
    max_delete: Option<u64>,
    /// Delete even if something could not be read or copied.
    #[arg(long)]
    ignore_errors: bool,
}

/// Which files it is about.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct FilterFlags {
    /// Include files that match a glob, and no others.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// The same, from a file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    include_from: Vec<String>,
    /// Exclude files that match a glob.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// The same, from a file.
    #[arg(long, value_name = "FILE")]
    exclude_from: Vec<String>,
    /// A rule: `+ GLOB`, `- GLOB`, or `!`, which forgets those before it.
    #[arg(short = 'f', long, value_name = "RULE", allow_hyphen_values = true)]
    filter: Vec<String>,
    /// The same, from a file.
    #[arg(long, value_name = "FILE")]
    filter_from: Vec<String>,
    /// The very files that it is about, one a line.
    #[arg(long, value_name = "FILE")]
    files_from: Vec<String>,
    /// The same, with lines as they are.
    #[arg(long, value_name = "FILE")]
    files_from_raw: Vec<String>,
    /// Exclude directories that hold a file of this name.
    #[arg(long, value_name = "NAME")]
    exclude_if_present: Vec<String>,
    /// Only files that are older, such as 7d.
    #[arg(long, value_name = "AGE", default_value = "off")]
    min_age: Age,
    /// Only files that are younger.
    #[arg(long, value_name = "AGE", default_value = "off")]
    max_age: Age,
    /// Only files of at least this size, such as 100k.
    #[arg(long, value_name = "SIZE", default_value = "off")]
    min_size: SizeSuffix,
    /// Only files of at most this size.
    #[arg(long, value_name = "SIZE", default_value = "off")]
    max_size: SizeSuffix,
    /// Rules do not tell upper from lower case.
    #[arg(long)]
    ignore_case: bool,
}

/// The default of `--cluster-lease`.
const LEASE: &str = "10s";

/// Who does the work.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Networking")]
pub(crate) struct ClusterFlags {
    /// Storage that controller and workers share, where the queue lives.
    #[arg(long, env = "RCLONE_CLUSTER", hide_env_values = true, value_name = "REMOTE")]
    pub(crate) cluster: Option<String>,
    /// `0` or none: the controller; anything else: a worker of this name, which needs --cluster.
    #[arg(long, env = "RCLONE_CLUSTER_ID", value_name = "ID")]
    pub(crate) cluster_id: Option<String>,
    /// Tell the workers to stop when the run has ended.
    #[arg(long)]
    pub(crate) cluster_quit_workers: bool,
    /// Files after which a batch is sent; with --on and no --cluster at most 256.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) cluster_batch_files: u32,
    /// Bytes after which a batch is sent; with --on and no --cluster at most 256 MiB.
    #[arg(long, value_name = "SIZE", default_value = "1Ti")]
    pub(crate) cluster_batch_size: SizeSuffix,
    /// What is left of the queue's files of a batch that is done: full (nothing), completed (those that failed), none (all stay).
    #[arg(long, value_name = "HOW", default_value_t = Cleanup::Full)]
    pub(crate) cluster_cleanup: Cleanup,
    /// How long a run waits for a worker before it fails; with --on also how long the command waits for a control node.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub(crate) no_worker_timeout: Span,
    /// Silence after which a batch is taken from its worker.
    #[arg(long, value_name = "TIME", default_value = LEASE)]
    pub(crate) cluster_lease: Span,
    /// Names the run, so that it can be resumed.
    #[arg(long, value_name = "ID")]
    pub(crate) run_id: Option<RunId>,
    /// Go on with the run of --run-id whose controller has ended; with --on and no --cluster follow the one that goes on by itself.
    #[arg(long, requires = "run_id")]
    pub(crate) resume: bool,
    /// Send the work to these workers of a running nkcluster (labels and fields, as in `nodes --select`); with --cluster they work for its queue, and are told when
    /// there is work.
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) on: Option<Selector>,
    /// With --on: tell the id of the run on standard output when it has begun, and end.
    #[arg(long, requires = "on", conflicts_with_all = ["resume", "progress"])]
    pub(crate) detach: bool,
}

/// What is shown meanwhile.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Display")]
pub(crate) struct DisplayFlags {
    /// Show the progress while it works.
    #[arg(short = 'P', long)]
    pub(crate) progress: bool,
    /// How often numbers are told without --progress; 0 is never.
    #[arg(long, value_name = "TIME", default_value = "1m")]
    pub(crate) stats: Span,
    /// Tell each file that is copied, moved or deleted; only in one process, as workers tell numbers alone.
    #[arg(short = 'v', long)]
    pub(crate) verbose: bool,
}

impl ClusterFlags {
    /// Whether this process is a worker of a transient cluster.
    pub(crate) fn is_worker(&self) -> bool {
        self.cluster_id.as_deref().is_some_and(|id| !id.is_empty() && id != "0")
    }

    /// Refuses what has no place: a run to be resumed nowhere, and a worker without a queue: it would carry out the whole run by itself, as would all the others.
    pub(crate) fn checked(self) -> Outcome<Self> {
        let wrong = |what: String| Err(Failure::usage("invalid_usage", what));
        if self.resume && self.on.is_none() && self.cluster.is_none() {
            return wrong("--resume needs --cluster or --on, to find the run".to_owned());
        }
        if self.on.is_some() && self.is_worker() {
            return wrong("--cluster-id makes this process a worker, and --on is said to a controller".to_owned());
        }
        if self.detach && self.cluster.is_some() {
            return wrong(
                "--detach leaves a run to a control node, but with --cluster this process is the controller of the run".to_owned(),
            );
        }
        if let Some(flag) = self.needs_queue().filter(|_| self.on.is_some() && self.cluster.is_none()) {
            return wrong(format!("{flag} concerns a queue, which --on has only with --cluster"));
        }
        match self.is_worker() && self.cluster.as_deref().is_none_or(str::is_empty) {
            true => {
                Err(Failure::usage("invalid_usage", "--cluster-id makes this process a worker, which needs --cluster or RCLONE_CLUSTER"))
            }
            false => Ok(self),
        }
    }

    /// A flag that says something only to a queue.
    fn needs_queue(&self) -> Option<&'static str> {
        let said = [
            ("--cluster-id", self.cluster_id.is_some()),
            ("--cluster-quit-workers", self.cluster_quit_workers),
            ("--cluster-cleanup", self.cluster_cleanup != Cleanup::Full),
            ("--cluster-lease", LEASE.parse() != Ok(self.cluster_lease)),
        ];
        said.into_iter().find_map(|(flag, is_said)| is_said.then_some(flag))
    }

    /// Sets what concerns the cluster.
    pub(crate) fn apply(&self, options: &mut Options) {
        options.cluster.clone_from(&self.cluster);
        options.cluster_id.clone_from(&self.cluster_id);
        options.cluster_quit_workers = self.cluster_quit_workers;
        options.cluster_batch_files = self.cluster_batch_files;
        options.cluster_batch_size = self.cluster_batch_size;
        options.cluster_cleanup = self.cluster_cleanup;
        options.no_worker_timeout = self.no_worker_timeout;
    }
}

impl RunFlags for CopyFlags {
    fn options(self) -> Options {
        let Self { compare, listing, transfer, work, backup, filter } = self;
        let mut options = Options {
            checksum: compare.checksum,
            size_only: compare.size_only,
            update: compare.update,
            ignore_existing: compare.ignore_existing,
            ignore_times: compare.ignore_times,
            ignore_size: compare.ignore_size,
            immutable: compare.immutable,
            modify_window: compare.modify_window,
            bwlimit: transfer.bwlimit,
            links: transfer.links,
            copy_links: transfer.copy_links,
            create_empty_src_dirs: transfer.create_empty_src_dirs,
            no_verify: transfer.no_verify,
            no_update_modtime: transfer.no_update_modtime,
            no_update_dir_modtime: transfer.no_update_dir_modtime,
            backup_dir: backup.backup_dir,
            suffix: backup.suffix,
            suffix_keep_extension: backup.suffix_keep_extension,
            filter: filter.options(),
            ..Options::default()
        };
        listing.apply(&mut options);
        work.apply(&mut options);
        options
    }
}

impl RunFlags for SyncFlags {
    fn options(self) -> Options {
        let Self { copy, surplus } = self;
        let mut options = copy.options();
        options.delete_mode = match (surplus.delete_before, surplus.delete_during) {
            (true, _) => DeleteMode::Before,
            (_, true) => DeleteMode::During,
            _ => DeleteMode::After,
        };
        options.filter.delete_excluded = surplus.delete_excluded;
        options.max_delete = surplus.max_delete;
        options.ignore_errors = surplus.ignore_errors;
        options
    }
}

impl RunFlags for DeleteFlags {
    fn options(self) -> Options {
        let Self { listing, work, filter, max_delete, links } = self;
        let mut options = Options { max_delete, links, filter: filter.options(), ..Options::default() };
        listing.apply(&mut options);
        work.apply(&mut options);
        options
    }
}

impl ListingFlags {
    /// Sets what concerns listings.
    pub(crate) fn apply(&self, options: &mut Options) {
        options.checkers = self.checkers;
        options.max_depth = self.max_depth;
        options.low_level_retries = self.low_level_retries;
    }
}

impl WorkFlags {
    /// Sets what concerns the work.
    fn apply(&self, options: &mut Options) {
        options.transfers = self.transfers;
        options.dry_run = self.dry_run;
        options.retries = self.retries;
        options.retries_sleep = self.retries_sleep;
    }
}

impl FilterFlags {
    pub(crate) fn options(self) -> FilterOptions {
        FilterOptions {
            delete_excluded: false,
            rules: RuleOptions {
                filter: self.filter,
                filter_from: self.filter_from,
                exclude: self.exclude,
                exclude_from: self.exclude_from,
                include: self.include,
                include_from: self.include_from,
            },
            exclude_if_present: self.exclude_if_present,
            files: Vec::new(),
            files_from: self.files_from,
            files_from_raw: self.files_from_raw,
            min_age: self.min_age,
            max_age: self.max_age,
            min_size: self.min_size,
            max_size: self.max_size,
            ignore_case: self.ignore_case,
        }
    }
}

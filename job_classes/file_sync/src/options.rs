//! What `copy`, `sync`, `move`, `check` and `delete` can be told: rclone's flags with rclone's defaults.

mod json;
mod units;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

pub use self::json::{Audience, OptionsJson, OptionsJsonError};
pub(crate) use self::json::{rate_in, with_rate, without_rate};
pub use self::units::{Age, SizeSuffix, Span, UnitError};
use crate::filter::FilterOptions;

/// Everything that a run can be told. The name of each field is that of its flag, with `_` for `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Files copied at the same time.
    pub transfers: u32,
    /// Directories listed and compared at the same time.
    pub checkers: u32,
    /// Compares content instead of times, where sizes are the same.
    pub checksum: bool,
    /// Compares nothing but sizes.
    pub size_only: bool,
    /// Leaves files that are newer at the destination.
    pub update: bool,
    /// Leaves all files that are at the destination.
    pub ignore_existing: bool,
    /// Copies files even if they are the same.
    pub ignore_times: bool,
    /// Does not compare sizes.
    pub ignore_size: bool,
    /// Deletes even if something could not be read or copied.
    pub ignore_errors: bool,
    /// Files at the destination must never change: one that differs is an error.
    pub immutable: bool,
    /// Times that differ by less are the same.
    pub modify_window: Span,
    /// Tells what would be done and does nothing.
    pub dry_run: bool,
    /// Deletes no more files than that; one more is an error that ends the run.
    pub max_delete: Option<u64>,
    /// When `sync` deletes.
    pub delete_mode: DeleteMode,
    /// Where files go that are replaced or deleted, on the remote of the destination.
    pub backup_dir: Option<String>,
    /// What is appended to the names of files that are replaced or deleted; without `backup_dir` they stay where they are.
    pub suffix: Option<String>,
    /// Puts the suffix before the extension.
    pub suffix_keep_extension: bool,
    /// Times that the whole run is tried.
    pub retries: u32,
    /// Pause between two tries of the whole run.
    pub retries_sleep: Span,
    /// Times that one call of a storage is tried.
    pub low_level_retries: u32,
    /// Bytes per second of a whole run.
    pub bwlimit: Rate,
    /// Copies symbolic links as links.
    pub links: bool,
    /// Follows symbolic links.
    pub copy_links: bool,
    /// Makes directories at the destination that are empty at the source.
    pub create_empty_src_dirs: bool,
    /// After a move, removes directories of the source that have become empty.
    pub delete_empty_src_dirs: bool,
    /// Does not compare what was written with what was read. rclone: `--ignore-checksum`.
    pub no_verify: bool,
    /// Leaves the time of a file at the destination that has the same content.
    pub no_update_modtime: bool,
    /// Leaves the times of directories.
    pub no_update_dir_modtime: bool,
    /// Looks into directories no deeper than this; 1 is the root alone.
    pub max_depth: Option<u32>,
    /// Parts of one large file that are copied at the same time.
    pub multi_thread_streams: u32,
    /// Files from this size on are copied in parts.
    pub multi_thread_cutoff: SizeSuffix,
    /// `check`: does not tell what is only at the destination.
    pub one_way: bool,
    /// `check`: compares content by reading it, whatever hashes there are.
    pub download: bool,
    /// The storage where the queue lives; none: no cluster.
    pub cluster: Option<String>,
    /// None or `0`: the controller; anything else: the worker of this name.
    pub cluster_id: Option<String>,
    /// Tells the workers to stop when the run has ended.
    pub cluster_quit_workers: bool,
    /// Files after which a batch is sent.
    pub cluster_batch_files: u32,
    /// Bytes after which a batch is sent.
    pub cluster_batch_size: SizeSuffix,
    /// What is left of the queue's files when a batch is done.
    pub cluster_cleanup: Cleanup,
    /// How long a run waits for a first worker.
    pub no_worker_timeout: Span,
    /// Which files and directories the run is about.
    pub filter: FilterOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transfers: 4,
            checkers: 8,
            checksum: false,
            size_only: false,
            update: false,
            ignore_existing: false,
            ignore_times: false,
            ignore_size: false,
            ignore_errors: false,
            immutable: false,
            modify_window: Span::from_duration(Duration::from_nanos(1)),
            dry_run: false,
            max_delete: None,
            delete_mode: DeleteMode::After,
            backup_dir: None,
            suffix: None,
            suffix_keep_extension: false,
            retries: 3,
            retries_sleep: Span::from_duration(Duration::ZERO),
            low_level_retries: 10,
            bwlimit: Rate::UNLIMITED,
            links: false,
            copy_links: false,
            create_empty_src_dirs: false,
            delete_empty_src_dirs: false,
            no_verify: false,
            no_update_modtime: false,
            no_update_dir_modtime: false,
            max_depth: None,
            multi_thread_streams: 4,
            multi_thread_cutoff: SizeSuffix::from_bytes(256 << 20),
            one_way: false,
            download: false,
            cluster: None,
            cluster_id: None,
            cluster_quit_workers: false,
            cluster_batch_files: 1000,
            cluster_batch_size: SizeSuffix::from_bytes(1 << 40),
            cluster_cleanup: Cleanup::Full,
            no_worker_timeout: Span::from_duration(Duration::from_secs(60)),
            filter: FilterOptions::default(),
        }
    }
}

impl Options {
    /// Refuses what contradicts itself, and raises to 1 what must not be 0, as rclone does.
    ///
    /// # Errors
    /// Two options that exclude each other.
    pub fn checked(mut self) -> Result<Self, OptionsError> {
        for at_least_one in [&mut self.transfers, &mut self.checkers, &mut self.retries, &mut self.low_level_retries] {
            *at_least_one = (*at_least_one).max(1);
        }
        for at_least_one in [&mut self.multi_thread_streams, &mut self.cluster_batch_files] {
            *at_least_one = (*at_least_one).max(1);
        }
        match () {
            () if self.links && self.copy_links => Err(OptionsError::Exclude("--links", "--copy-links")),
            () if self.checksum && self.size_only => Err(OptionsError::Exclude("--checksum", "--size-only")),
            () if self.suffix.as_ref().is_some_and(|suffix| suffix.contains('/')) => Err(OptionsError::SuffixWithSlash),
            () => Ok(self),
        }
    }
}

/// Options that cannot be used together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// These two.
    #[error("{0} and {1} exclude each other")]
    Exclude(&'static str, &'static str),
    /// The suffix would lead into another directory.
    #[error("--suffix must not have a `/`")]
    SuffixWithSlash,
}

/// When `sync` deletes what is only at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeleteMode {
    /// In a pass of its own before anything is copied.
    Before,
    /// As it is found.
    During,
    /// When everything was copied, and nothing failed.
    #[default]
    After,
}

/// What is left of the files of a batch in the queue when it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cleanup {
    /// Nothing.
    #[default]
    Full,
    /// Those of batches that failed.
    Completed,
    /// All of them.
    None,
}

impl FromStr for Cleanup {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "full" => Ok(Self::Full),
            "completed" => Ok(Self::Completed),
            "none" => Ok(Self::None),
            _ => Err(UnknownWord { word: text.chars().take(40).collect(), expected: "full, completed or none" }),
        }
    }
}

impl fmt::Display for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Completed => "completed",
            Self::None => "none",
        })
    }
}

/// A word that an option does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is unknown; expected {expected}")]
pub struct UnknownWord {
    word: String,
    expected: &'static str,
}

/// A limit of bytes per second, or none: `10M`, `off`. A number without a suffix is in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(SizeSuffix);

/// Why a text is no [`Rate`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// rclone's timetables.
    #[error("{0:?} is a timetable of bandwidth; only one rate, such as 10M, can be set here")]
    Timetable(String),
    /// rclone's pair of rates.
    #[error("{0:?} limits upload and download apart; only one rate, such as 10M, can be set here")]
    Pair(String),
    /// No size.
    #[error(transparent)]
    Size(#[from] UnitError),
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self(SizeSuffix::OFF);

    /// So many bytes per second; none, or 0, is no limit.
    pub fn from_bytes_per_second(limit: Option<u64>) -> Self {
        limit.filter(|limit| *limit > 0).map_or(Self::UNLIMITED, |limit| Self(SizeSuffix::from_bytes(limit)))
    }

    /// Bytes per second; none without a limit.
    pub fn bytes_per_second(self) -> Option<u64> {
        self.0.bytes().filter(|rate| *rate > 0)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let shown = || text.chars().take(100).collect();
        match text {
            "" => Ok(Self::UNLIMITED),
            _ if text.contains([',', ' ']) => Err(RateError::Timetable(shown())),
            _ if text.contains(':') => Err(RateError::Pair(shown())),
            _ => Ok(Self(text.parse()?)).map(|rate: Self| if rate.bytes_per_second().is_some() { rate } else { Self::UNLIMITED }),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests;

//! Options as rclone's remote control writes them in a batch: `_config` and `_filter`, each with what differs from its default.

use serde_json::{Map, Value};

use super::units::Json;
use super::{Cleanup, DeleteMode, Options, Rate};

/// The files of a run, which rclone only has as names of lists.
const FILES: &str = "Files";

/// What rclone calls the limit of bandwidth.
const BANDWIDTH: &str = "BwLimit";

/// The limit of bandwidth that a `_config` sets, if any.
pub(crate) fn rate_in(config: &Map<String, Value>) -> Result<Rate, OptionsJsonError> {
    config.get(BANDWIDTH).map_or(Ok(Rate::UNLIMITED), |value| Rate::from_json(value).ok_or_else(|| OptionsJsonError::of(BANDWIDTH, value)))
}

/// The same `_config` without its limit of bandwidth.
pub(crate) fn without_rate(config: &Map<String, Value>) -> Map<String, Value> {
    let others = config.iter().filter(|(name, _)| *name != BANDWIDTH);
    others.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The same `_config` with another limit of bandwidth.
pub(crate) fn with_rate(config: &Map<String, Value>, rate: Rate) -> Map<String, Value> {
    let mut config = without_rate(config);
    if rate != Rate::UNLIMITED {
        config.insert(BANDWIDTH.to_owned(), rate.to_json());
    }
    config
}

/// Options in rclone's JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptionsJson {
    /// The object `_config`.
    pub config: Map<String, Value>,
    /// The object `_filter`.
    pub filter: Map<String, Value>,
}

/// Whom options are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Whoever carries a batch out: what concerns the cluster stays with its controller.
    Worker,
    /// Whoever continues the run.
    Controller,
}

/// Why options in JSON cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the option {name} has an unusable value: {value}")]
pub struct OptionsJsonError {
    name: String,
    value: String,
}

impl OptionsJsonError {
    fn of(name: &str, value: &Value) -> Self {
        Self { name: name.to_owned(), value: value.to_string().chars().take(100).collect() }
    }
}

/// Each option once: where it is kept and what rclone calls it. Names that rclone does not know are ours; rclone passes over them.
macro_rules! table {
    ($visit:ident, $options:expr, $defaults:expr, $map:expr, { $($($field:ident).+ => $name:literal),+ $(,)? }) => {
        $($visit(&mut $options.$($field).+, &$defaults.$($field).+, $name, $map)?;)+
    };
}

macro_rules! config_table {
    ($visit:ident, $options:expr, $defaults:expr, $map:expr) => {
        table!($visit, $options, $defaults, $map, {
            transfers => "Transfers", checkers => "Checkers", checksum => "CheckSum", size_only => "SizeOnly", update => "UpdateOlder",
            ignore_existing => "IgnoreExisting", ignore_times => "IgnoreTimes", ignore_size => "IgnoreSize",
            ignore_errors => "IgnoreErrors", immutable => "Immutable", modify_window => "ModifyWindow", dry_run => "DryRun",
            max_delete => "MaxDelete", delete_mode => "DeleteMode", backup_dir => "BackupDir", suffix => "Suffix",
            suffix_keep_extension => "SuffixKeepExtension", retries => "Retries", retries_sleep => "RetriesInterval",
            low_level_retries => "LowLevelRetries", bwlimit => "BwLimit", links => "Links", copy_links => "CopyLinks",
            create_empty_src_dirs => "CreateEmptySrcDirs", delete_empty_src_dirs => "DeleteEmptySrcDirs",
            no_verify => "IgnoreChecksum", no_update_modtime => "NoUpdateModTime", no_update_dir_modtime => "NoUpdateDirModTime",
            max_depth => "MaxDepth", multi_thread_streams => "MultiThreadStreams", multi_thread_cutoff => "MultiThreadCutoff",
            one_way => "OneWay", download => "Download",
        });
    };
}

macro_rules! cluster_table {
    ($visit:ident, $options:expr, $defaults:expr, $map:expr) => {
        table!($visit, $options, $defaults, $map, {
            cluster => "Cluster", cluster_id => "ClusterID", cluster_quit_workers => "ClusterQuitWorkers",
            cluster_batch_files => "ClusterBatchFiles", cluster_batch_size => "ClusterBatchSize", cluster_cleanup => "ClusterCleanup",
            no_worker_timeout => "ClusterNoWorkerTimeout",
        });
    };
}

macro_rules! filter_table {
    ($visit:ident, $options:expr, $defaults:expr, $map:expr) => {
        table!($visit, $options, $defaults, $map, {
            delete_excluded => "DeleteExcluded", rules.filter => "FilterRule", rules.filter_from => "FilterFrom",
            rules.exclude => "ExcludeRule", rules.exclude_from => "ExcludeFrom", rules.include => "IncludeRule",
            rules.include_from => "IncludeFrom", exclude_if_present => "ExcludeFile", files_from => "FilesFrom",
            files_from_raw => "FilesFromRaw", min_age => "MinAge", max_age => "MaxAge", min_size => "MinSize", max_size => "MaxSize",
            ignore_case => "IgnoreCase",
        });
    };
}

impl Options {
    /// What differs from the defaults, as rclone writes it.
    pub fn to_json(&self, audience: Audience) -> OptionsJson {
        // The table visits places that can be written, so it gets a copy.
        let (mut options, defaults) = (self.clone(), Options::default());
        let mut json = OptionsJson::default();
        let done = (|| -> Result<(), OptionsJsonError> {
            config_table!(written, options, defaults, &mut json.config);
            if audience == Audience::Controller {
                cluster_table!(written, options, defaults, &mut json.config);
                // It may be long, and a batch has its own files.
                written(&mut options.filter.files, &defaults.filter.files, FILES, &mut json.filter)?;
            }
            filter_table!(written, options.filter, defaults.filter, &mut json.filter);
            Ok(())
        })();
        debug_assert!(done.is_ok(), "writing refuses nothing");
        json
    }

    /// Reads options as rclone or we have written them. Also tells the names that mean nothing here, which are passed over.
    ///
    /// # Errors
    /// A known option with a value that cannot be.
    pub fn from_json(json: &OptionsJson) -> Result<(Self, Vec<String>), OptionsJsonError> {
        let (mut options, defaults) = (Options::default(), Options::default());
        let (mut config, mut filter) = (json.config.clone(), unembedded(&json.filter));
        config_table!(read, options, defaults, &mut config);
        cluster_table!(read, options, defaults, &mut config);
        filter_table!(read, options.filter, defaults.filter, &mut filter);
        read(&mut options.filter.files, &defaults.filter.files, FILES, &mut filter)?;
        let unknown = config.into_iter().chain(filter).map(|(name, _)| name).collect();
        Ok((options, unknown))
    }
}

/// rclone's controller writes rules as `RulesOpt.FilterRule`, though it reads them as `FilterRule`; both are accepted.
fn unembedded(filter: &Map<String, Value>) -> Map<String, Value> {
    filter.iter().map(|(name, value)| (name.strip_prefix("RulesOpt.").unwrap_or(name).to_owned(), value.clone())).collect()
}

fn written<T: Json + PartialEq>(value: &mut T, default: &T, name: &str, map: &mut Map<String, Value>) -> Result<(), OptionsJsonError> {
    if value != default {
        map.insert(name.to_owned(), value.to_json());
    }
    Ok(())
}

/// Takes what it reads out of the map, so that what is left was not known.
fn read<T: Json>(place: &mut T, _default: &T, name: &str, map: &mut Map<String, Value>) -> Result<(), OptionsJsonError> {
    if let Some(value) = map.remove(name) {
        *place = T::from_json(&value).ok_or_else(|| OptionsJsonError::of(name, &value))?;
    }
    Ok(())
}

impl Json for bool {
    fn to_json(&self) -> Value {
        Value::from(*self)
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Json for u32 {
    fn to_json(&self) -> Value {
        Value::from(*self)
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_u64().and_then(|number| number.try_into().ok())
    }
}

impl Json for Option<u64> {
    fn to_json(&self) -> Value {
        self.map_or(Value::from(-1), Value::from)
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_i64().map(|number| u64::try_from(number).ok())
    }
}

impl Json for Option<u32> {
    fn to_json(&self) -> Value {
        self.map_or(Value::from(-1), Value::from)
    }

    fn from_json(value: &Value) -> Option<Self> {
        match value.as_i64()? {
            ..0 => Some(None),
            number => u32::try_from(number).ok().map(Some),
        }
    }
}

impl Json for Option<String> {
    fn to_json(&self) -> Value {
        Value::from(self.as_deref().unwrap_or_default())
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().map(|text| (!text.is_empty()).then(|| text.to_owned()))
    }
}

impl Json for Vec<String> {
    fn to_json(&self) -> Value {
        Value::from(self.clone())
    }

    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Vec::new()),
            _ => value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        }
    }
}

impl Json for Rate {
    fn to_json(&self) -> Value {
        Value::from(self.to_string())
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().and_then(|text| text.parse().ok())
    }
}

impl Json for DeleteMode {
    fn to_json(&self) -> Value {
        Value::from(match self {
            Self::Before => 1,
            Self::During => 2,
            Self::After => 3,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        match value.as_u64()? {
            1 => Some(Self::Before),
            2 => Some(Self::During),
            3 => Some(Self::After),
            _ => None,
        }
    }
}

impl Json for Cleanup {
    fn to_json(&self) -> Value {
        Value::from(self.to_string())
    }

    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().and_then(|text| text.parse().ok())
    }
}

//! `copy`, `sync`, `move`, `delete`, `check`, `queue` and `rcd`: the distributed copy.
//!
//! They need no cluster, unless `--on` names its workers, or `queue` is asked for the runs that these do. Numbers and errors go to standard error, so that standard output has only what was asked for.

mod check;
mod flags;
mod placed;
mod progress;
mod queue;
mod run;
mod runs;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use nkcluster_file_sync::{RemoteConfig, Remotes};

pub(crate) use self::check::{CheckArgs, run as check};
pub(crate) use self::flags::{CopyFlags, RunFlags, SyncFlags};
pub(crate) use self::placed::PlacedRun;
pub(crate) use self::queue::{Asked, QueueArgs, run as queue};
pub(crate) use self::run::{DeleteArgs, MoveArgs, SyncArgs, run};
pub(crate) use self::runs::run as runs;
pub(crate) use self::worker::{RcdArgs, run as rcd};
use crate::failure::{Failure, Outcome};
use crate::output;

/// The variable that names the file of remotes.
pub(crate) const REMOTES_VARIABLE: &str = "NKCLUSTER_REMOTES";
/// Where remotes are configured, unless a flag or variable says otherwise.
const REMOTES_FILE: &str = "nkcluster/remotes.toml";

/// The remotes that are configured for this user.
fn remotes(file: Option<PathBuf>) -> Outcome<Arc<Remotes>> {
    let file = file.or_else(default_file);
    let config = match file {
        Some(file) => RemoteConfig::load(&file).map_err(|error| Failure::usage("invalid_config", error.to_string()))?,
        None => RemoteConfig::default(),
    };
    Ok(Arc::new(Remotes::new(config)))
}

/// A name or message of elsewhere as a terminal may have it: without the characters that command it.
fn harmless(text: &str) -> String {
    text.chars().map(|shown| if shown.is_control() { char::REPLACEMENT_CHARACTER } else { shown }).collect()
}

/// The same for a message, which may have several lines.
fn harmless_line(text: &str) -> String {
    harmless(&output::one_line(text))
}

/// The file of remotes by the rules of freedesktop.org.
pub(crate) fn default_file() -> Option<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(home.join(REMOTES_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_commands_no_terminal() {
        assert_eq!(harmless("a\u{1b}[2J  b\r\n\u{9b}c \u{e9}"), "a\u{fffd}[2J  b\u{fffd}\u{fffd}\u{fffd}c \u{e9}");
        assert_eq!(harmless_line("one\n two\u{7}"), "one two\u{fffd}");
    }
}

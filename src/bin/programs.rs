//! The two programs of nkcluster over one `main`.
//!
//! A program started under the name `nkcluster-node`, also by `arg0`, is the daemon; under any other name it is the command of people and scripts. So
//! `nkcluster dev` starts its children from its own executable, and `cargo run --bin nkcluster -- dev` needs no second build.
//!
//! ```text
//! main ─┬─ daemon      configuration, logs, signals, ready line, exit code   (a node: nkcluster::node)
//!       └─ commands    one connection, one call, one answer                  (a handle: nkcluster::cluster)
//!            ├─ sync   the distributed copy, which needs a connection only for `--on`
//!            └─ dev    many daemons, and the tour through the public command
//! ```

mod arguments;
mod cli;
mod commands;
mod daemon;
mod dev;
mod exit;
mod failure;
mod output;
mod signals;
mod sync;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// The name under which the program is the daemon.
pub(crate) const DAEMON_NAME: &str = "nkcluster-node";

/// The one `main` of both programs: which of them it is, its name says.
pub fn main() -> ExitCode {
    let path = std::env::args_os().next().unwrap_or_default();
    match Path::new(&path).file_name() {
        Some(name) if name == OsStr::new(DAEMON_NAME) => daemon::main(),
        _ => commands::main(),
    }
}

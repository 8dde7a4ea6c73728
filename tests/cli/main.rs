//! `nkcluster` as people and scripts call it: every command with and without `--json`, exit codes, error lines.
//!
//! One small cluster serves all tests that leave it as they found it; the others start their own.

mod copy;
mod errors;
mod events;
mod files;
mod keygen;
mod members;
mod nodes;
mod resolve;
mod tasks;
mod values;

#[path = "../it/dns.rs"]
mod dns;
#[path = "../daemon/support.rs"]
mod support;

use std::path::Path;
use std::sync::OnceLock;

use self::support::{Cli, Daemon};

/// A control node `c1` and a worker `w1`, which end with the process of the tests.
struct Shared {
    cli: Cli,
    worker: Daemon,
    _control: Daemon,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{}", std::process::id()));
        let control = Daemon::control(&dir, "c1");
        let worker = Daemon::worker(&dir, "w1", &control);
        let cli = Cli::to(&control);
        cli.wait_status("w1", "ready");
        Shared { cli, worker, _control: control }
    })
}

fn cli() -> &'static Cli {
    &shared().cli
}

/// Starts a task of the class `files` that takes longer than any test; returns its id.
fn start_slow_task(cli: &Cli, worker: &Daemon) -> String {
    let dir = worker.dir().join("files/slow");
    std::fs::create_dir_all(&dir).expect("made");
    // Without content on the disk; reading it takes minutes.
    std::fs::File::create(dir.join("file")).and_then(|file| file.set_len(1 << 40)).expect("made");
    let id = worker.ready["node_id"].as_str().expect("an id");
    let started = cli.json(&["task", "start", id, "files", "{\"hash\":{\"path\":\"slow\"}}"]);
    started["task_id"].as_str().expect("an id").to_owned()
}

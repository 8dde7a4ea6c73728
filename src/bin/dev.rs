//! `nkcluster dev`: a cluster of real processes on this machine.
//!
//! ```text
//! nkcluster dev ── standard input of each child ──► nkcluster-node --control … --node-id dev1   DIR/dev1   port base
//!       │                                           nkcluster-node --control … --node-id dev2   DIR/dev2   port base + 1
//!       └ nkcluster ring, members, nodes, until     …
//!         all agree on one ring and all are ready   nkcluster-node --worker …  --node-id dev5   DIR/dev5   port base + 4
//! ```
//!
//! The children are our own executable under the name of the daemon. They end when their standard input does, so none outlives us, however we die; a signal of
//! the terminal does not reach them, so that it is always we who stop them, in order. A child that dies is told, not started again.

mod child;
mod cluster;
mod plane;
mod ports;
mod public;
mod tour;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nkcluster::types::NodeId;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::cluster::DevCluster;
use self::public::Public;
use crate::cli::DevArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};
use crate::signals::StopSignals;

/// Runs the development cluster until a signal, or the tour to its end.
pub(crate) async fn run(args: DevArgs, form: Form) -> Outcome {
    if args.once && args.controls < tour::CONTROLS_MIN {
        let message = format!("the tour loses a control node and needs {} of them: leave --controls out", tour::CONTROLS_MIN);
        return Err(Failure::usage("invalid_usage", message));
    }
    let mut signals = StopSignals::install().map_err(|error| Failure::io("cannot handle signals", &error))?;
    let home = Home::new(args.dir.clone())?;
    let mut cluster = DevCluster::new(&args, home.path())?;
    let worked = tokio::select! {
        worked = work(&mut cluster, &args, form) => worked,
        name = signals.next() => {
            if !form.is_json() {
                output::to_stderr(&format!("{name}: stopping the nodes, again kills them"));
            }
            match args.once {
                // Whoever waits for its result must not take half a tour for a whole one.
                true => Err(Failure::new("interrupted", format!("the tour was ended by {name}"))),
                false => Ok(()),
            }
        }
    };
    tokio::select! {
        () = cluster.stop() => {}
        _ = signals.next() => {}
    }
    cluster.kill().await;
    worked.and(home.remove())
}

async fn work(cluster: &mut DevCluster, args: &DevArgs, form: Form) -> Outcome {
    start(cluster, args).await?;
    let public = Public::new(cluster.connect_uri())?;
    let nodes = cluster.wait_ready(&public).await?;
    if args.once {
        return tour::run(cluster, &public, form).await;
    }
    match form {
        Form::Json => {
            let members = public.json(&["members"]).await?;
            form.document(&json!({ "connect": cluster.connect_uri(), "dir": cluster.dir(), "nodes": nodes, "members": members }))?;
        }
        Form::People => form.line(welcome(cluster, &public.text("nodes").await?, &public.text("members").await?))?,
    }
    loop {
        let (node, status) = cluster.next_death().await;
        tell_death(cluster, form, &node, status);
    }
}

/// Starts the nodes; on other ports, if any will do and somebody took one of them between our look and the start.
async fn start(cluster: &mut DevCluster, args: &DevArgs) -> Outcome {
    const TRIES: u32 = 5;
    let mut tries = if args.base_port == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        match cluster.start().await {
            Err(Failure::Told { code, .. }) if code == ports::IN_USE && tries > 0 => {
                cluster.stop().await;
                *cluster = DevCluster::new(args, cluster.dir().to_owned())?;
            }
            result => return result,
        }
    }
}

fn tell_death(cluster: &DevCluster, form: Form, node: &NodeId, status: ExitStatus) {
    let message = format!("{node} has ended by itself ({status}); it is not started again; its log is {}", cluster.log_of(node).display());
    output::to_stderr(&match form {
        Form::Json => json!({ "warning": { "code": "process_failed", "node": node, "message": message } }).to_string(),
        Form::People => format!("warning[process_failed]: {message}"),
    });
}

fn welcome(cluster: &DevCluster, nodes: &str, members: &str) -> String {
    let connect = cluster.connect_argument();
    let (first, worker) = (cluster.first(), cluster.last());
    format!(
        "{nodes}\n\n{members}\n\n\
         Everything of a node is in {}/<node>, its log in the file `log` there.\n\
         Try, in another terminal:\n\
         \x20 nkcluster{connect} nodes --select 'order && status=ready'\n\
         \x20 nkcluster{connect} info {worker}\n\
         \x20 nkcluster{connect} call {worker} echo '{{\"hello\": \"world\"}}'\n\
         \x20 nkcluster{connect} data {worker} put colour blue\n\
         \x20 nkcluster{connect} send {worker} Cargo.toml projects/Cargo.toml\n\
         \x20 nkcluster{connect} events\n\
         \x20 nkcluster{connect} members\n\
         \x20 nkcluster{connect} ping {first}\n\
         Ctrl-C stops all.",
        cluster.dir().display()
    )
}

/// Where the nodes live: a directory of the user, which stays, or a temporary one, which goes.
enum Home {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Home {
    fn new(dir: Option<PathBuf>) -> Outcome<Self> {
        match dir {
            Some(dir) => {
                let failed = |error: std::io::Error| Failure::io(format_args!("cannot use the directory {}", dir.display()), &error);
                std::fs::create_dir_all(&dir).map_err(failed)?;
                Ok(Self::Kept(dir.canonicalize().map_err(failed)?))
            }
            None => {
                let made = tempfile::Builder::new().prefix("nkcluster-dev-").tempdir();
                Ok(Self::Temporary(made.map_err(|error| Failure::io("cannot make a temporary directory", &error))?))
            }
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Kept(path) => path.clone(),
            Self::Temporary(dir) => dir.path().to_owned(),
        }
    }

    fn remove(self) -> Outcome {
        match self {
            Self::Kept(_) => Ok(()),
            Self::Temporary(dir) => remove_all(&dir.keep()),
        }
    }
}

/// Removes a directory. A process that was killed a moment ago may still write into it.
fn remove_all(dir: &Path) -> Outcome {
    const TRIES: u32 = 20;
    let mut result = std::fs::remove_dir_all(dir);
    for _ in 1..TRIES {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        result = std::fs::remove_dir_all(dir);
    }
    result.map_err(|error| Failure::io(format_args!("cannot remove {}", dir.display()), &error))
}

/// A field of a node in a list as `nkcluster nodes` prints it.
fn field<'a>(node: &'a Value, name: &str) -> &'a str {
    node.get(name).and_then(Value::as_str).unwrap_or_default()
}

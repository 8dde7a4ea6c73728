//! The arguments of `nkcluster-node`.

use std::path::PathBuf;

use clap::Parser;
use nkcluster::config::{Config, ConfigError, Layers};

const EXAMPLES: &str = "\
Examples:
  nkcluster-node --control --config /etc/nkcluster/control.toml
  nkcluster-node --worker --cluster-addr 'nkcluster://control.example:1973;transport=tls' --password-file /etc/nkcluster/secret
  nkcluster-node --worker --config worker.toml --check-config

Flags beat the environment (NKCLUSTER_<KEY> for every key of the file), which beats the file, which beats the defaults. The secret comes from a file or from
NKCLUSTER_PASSWORD, never from a flag.

SIGTERM or SIGINT drains and exits with 0; a second one exits at once.
Exit codes: 0 stopped as asked, 1 stopped by a second signal, 2 wrong usage, 64 bad configuration, 69 cannot bind, 70 a bug, or no files and threads for it.";

/// Runs a node of a cluster.
#[derive(Debug, Parser)]
#[command(name = "nkcluster-node", version, after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Be a control node, which is also a worker.
    #[arg(long, conflicts_with = "worker")]
    control: bool,
    /// Be a worker.
    #[arg(long)]
    worker: bool,
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show what would run, and exit.
    #[arg(long)]
    pub(super) check_config: bool,
    /// Fixed id of the node; random at every start without it.
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Name of the cluster.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// Control nodes to connect to, separated by commas.
    #[arg(long, value_name = "URIS")]
    cluster_addr: Option<String>,
    /// Where to listen, separated by commas; port 0 takes any that is free.
    #[arg(long, value_name = "URIS")]
    listen: Option<String>,
    /// Labels such as `core;group=group1, location;dc=here`.
    #[arg(long, value_name = "TOKENS")]
    meta: Option<String>,
    /// File with the secret of the cluster.
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
    /// Address of the HTTP server, or `off`.
    #[arg(long, value_name = "ADDR|off")]
    http: Option<String>,
    /// Where the node keeps what outlives it.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// A level, or a filter such as `info,nkcluster::connection=debug`.
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Form of the log: `text` or `json`.
    #[arg(long, value_name = "FORM")]
    log_format: Option<String>,
    /// Stop when standard input ends: a parent that dies takes us along.
    #[arg(long, hide = true)]
    pub(super) exit_with_stdin: bool,
}

impl Arguments {
    /// What flags, environment and file say together.
    pub(super) fn config(&self) -> Result<Config, ConfigError> {
        let mut layers = Layers::new();
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        layers = layers.env(std::env::vars_os())?;
        if self.control {
            layers = layers.flag("role", "control")?;
        }
        if self.worker {
            layers = layers.flag("role", "worker")?;
        }
        let flags = [
            ("node_id", &self.node_id),
            ("cluster_name", &self.cluster_name),
            ("cluster_addr", &self.cluster_addr),
            ("listen", &self.listen),
            ("meta", &self.meta),
            ("password_file", &self.password_file),
            ("http", &self.http),
            ("state_dir", &self.state_dir),
            ("log", &self.log),
            ("log_format", &self.log_format),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                layers = layers.flag(key, value)?;
            }
        }
        layers.build()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}

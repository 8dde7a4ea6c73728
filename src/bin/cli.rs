//! The arguments of `nkcluster`, which are a contract: names and meanings stay.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nkcluster::types::{ClassName, Meta, NodeId, NodeUri, Selector, TaskId, WantedStatus};

use crate::arguments::{Uris, duration, uris};
use crate::sync::{CheckArgs, CopyFlags, DeleteArgs, MoveArgs, QueueArgs, RcdArgs, SyncArgs, SyncFlags};

/// Where `nkcluster dev` has its first control node.
pub(crate) const DEVELOPMENT_URI: &str = "nkcluster://127.0.0.1:15001;transport=tcp";

const EXAMPLES: &str = "\
Examples:
  nkcluster dev                                       a cluster on this machine, to try things
  nkcluster nodes --select 'order && status=ready'    who is ready and has the label `order`
  nkcluster call dev4 echo '{\"a\": 1}'                 call a function of a worker
  nkcluster send dev4 ./model.bin models/model.bin    send a file, resuming after a cut
  nkcluster --json events --class files | jq .        follow events

Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 no control node reached or not let in, 4 no such node, class or task, 5 timed out.
Secrets come from --password-file or NKCLUSTER_PASSWORD, never from a flag; without either, the default password of development clusters is used.";

/// Commands a cluster of control nodes and workers.
#[derive(Debug, Parser)]
#[command(name = "nkcluster", version, after_help = EXAMPLES, arg_required_else_help = true, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to reach the cluster, and how to answer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Any control nodes, separated by commas; the first that lets us in is used.
    #[arg(long, global = true, env = "NKCLUSTER_CONNECT", hide_env_values = true, value_name = "URIS", value_parser = uris, default_value = DEVELOPMENT_URI)]
    pub(crate) connect: Uris,
    /// Name of the cluster.
    #[arg(long, global = true, env = "NKCLUSTER_CLUSTER_NAME", value_name = "NAME", default_value = "nkcluster")]
    pub(crate) cluster_name: String,
    /// File with the secret of operators; beats the variable NKCLUSTER_PASSWORD.
    #[arg(long, global = true, env = "NKCLUSTER_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Print JSON: one document, or one per line where the output is a stream.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Bounds connecting and single calls; of `send`, `fetch` and `events` only connecting and silence.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub(crate) timeout: Duration,
    /// Rounds that stretch the secret; the same in the whole cluster.
    #[arg(long, global = true, env = "NKCLUSTER_PBKDF2_ITERS", value_name = "ROUNDS", hide_short_help = true, default_value_t = 600_000,
        value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) pbkdf2_iters: u32,
    /// Servers of DNS to ask instead of those of the system: `ip:port`, or `ip` for port 53, separated by commas.
    #[arg(long, global = true, env = "NKCLUSTER_DNS_SERVERS", value_name = "IP:PORT", hide_short_help = true, value_parser = dns_server, value_delimiter = ',')]
    pub(crate) dns: Vec<SocketAddr>,
    /// Public key by which control nodes must sign (see `nkcluster keygen --control-key`).
    #[arg(long, global = true, env = "NKCLUSTER_CONTROL_KEY", value_name = "HEX", hide_short_help = true, value_parser = control_key)]
    pub(crate) trusted_control_key: Option<ControlKey>,
}

/// Public half of the key of the control nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ControlKey(pub(crate) [u8; 32]);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a cluster of real processes on this machine.
    #[command(after_help = "\
Examples:
  nkcluster dev                                   three control nodes, two workers, until Ctrl-C
  nkcluster dev --controls 1 --workers 4          one control node only
  nkcluster dev --workers 2 --base-port 16001     another one beside it
  nkcluster dev --once                            the tour: does every step once, exits with its result

Nodes are dev1, dev2, …: control nodes first. All control nodes are equal: any of them takes any command.")]
    Dev(DevArgs),
    /// List the nodes of the cluster.
    #[command(after_help = "\
Examples:
  nkcluster nodes
  nkcluster nodes --select 'core && group=group1 && dc!=eu && status=ready && !master'
  nkcluster --json nodes | jq -r '.[].id'")]
    Nodes {
        /// Only nodes that match: labels, values and the fields id, status, owner and class.
        #[arg(long, value_name = "SELECTOR")]
        select: Option<Selector>,
    },
    /// Show everything known of one node, its proxies included.
    #[command(after_help = "Example:\n  nkcluster info dev4")]
    Info {
        /// The node.
        node: NodeId,
    },
    /// List the control nodes, alive or not, with what they own.
    #[command(after_help = "\
Example:
  nkcluster members

States: joined, suspected (silent for 3 s), staged (waits for `commit`), leaving, left (runs, owns nothing), stopped (as asked, expected back),
unreachable, refused (cannot be a member; the reason is told below the table).")]
    Members,
    /// Show which control node owns how many partitions; with --json the owner of each.
    #[command(after_help = "Example:\n  nkcluster ring --json | jq -r '.owners[17]'")]
    Ring,
    /// Make the control node behind --connect and the one at an address members of one cluster.
    #[command(after_help = "\
Examples:
  nkcluster join 'nkcluster://10.0.0.2:1973;transport=tls'

Control nodes join by themselves through `cluster_addr`; this is for those that have none. Of the two, one must be alone.")]
    Join {
        /// Where the other control node listens.
        #[arg(value_parser = uri)]
        uri: Box<NodeUri>,
    },
    /// Let a control node leave for good: its part of the ring goes to the others at once.
    #[command(
        after_help = "Example:\n  nkcluster leave c3\n\nOne that is dead is dropped with `forget`. A node that is only stopped for a while needs neither."
    )]
    Leave {
        /// The control node.
        node: NodeId,
    },
    /// Show what a commit would move, where joins are staged (`staged_joins`).
    #[command(after_help = "Example:\n  nkcluster plan")]
    Plan,
    /// Let every staged control node join.
    #[command(after_help = "Example:\n  nkcluster plan && nkcluster commit")]
    Commit,
    /// Attach a worker that listens at an address.
    #[command(after_help = "Example:\n  nkcluster connect 'nkcluster://10.0.0.7:1973;transport=tls'")]
    Connect {
        /// Where the worker listens.
        #[arg(value_parser = uri)]
        uri: Box<NodeUri>,
    },
    /// Drop a node for good. A worker that lives and knows our addresses announces itself again; a control node must be dead.
    #[command(after_help = "Example:\n  nkcluster forget dev4")]
    Forget {
        /// The node.
        node: NodeId,
    },
    /// Change the status of a worker.
    #[command(after_help = "\
Examples:
  nkcluster status dev4 standby    takes no new tasks
  nkcluster status dev4 stopped    drains: takes no new tasks, tells the running ones to end
  nkcluster status dev4 ready      takes everything again")]
    Status {
        /// The worker.
        node: NodeId,
        /// `ready`, `standby` or `stopped`.
        status: WantedStatus,
    },
    /// Show or change the labels of a worker.
    #[command(after_help = "\
Examples:
  nkcluster meta dev4
  nkcluster meta dev4 set 'disk;size=big;ssd, location;dc=here'
  nkcluster meta dev4 unset disk,location")]
    Meta {
        /// The worker.
        node: NodeId,
        #[command(subcommand)]
        change: Option<MetaChange>,
    },
    /// Read or write the key/value store of a worker.
    #[command(after_help = "\
Examples:
  nkcluster data dev4 put limit '{\"files\": 100}'
  nkcluster data dev4 put owner alice               what is not JSON is stored as a text
  nkcluster data dev4 get limit                     null if there is none
  nkcluster data dev4 del limit")]
    Data {
        /// The worker.
        node: NodeId,
        #[command(subcommand)]
        operation: DataOperation,
    },
    /// Send one request to a class of a worker.
    #[command(after_help = "\
Examples:
  nkcluster request dev4 core '\"status\"'
  nkcluster request dev4 core - < request.json
  nkcluster request --exclusive dev4 backup '\"all\"'    over a connection of its own")]
    Request {
        /// The worker.
        node: NodeId,
        /// The class.
        class: ClassName,
        /// The request; `-` reads it from standard input.
        #[arg(value_name = "JSON", allow_negative_numbers = true)]
        payload: String,
        /// Over a connection to the worker that nothing else uses, if one can be had.
        #[arg(long)]
        exclusive: bool,
    },
    /// Start, list, command and stop tasks.
    #[command(
        subcommand,
        after_help = "\
Examples:
  nkcluster task start dev4 files '{\"hash\": {\"path\": \"models\"}}' --id nightly
  nkcluster task list dev4
  nkcluster task stop dev4 files nightly"
    )]
    Task(TaskCommand),
    /// Call a function that a worker registered.
    #[command(after_help = "Example:\n  nkcluster call dev4 echo 1 '\"two\"' '{\"three\": 3}'")]
    Call {
        /// The worker.
        node: NodeId,
        /// Name of the function.
        function: String,
        /// Its arguments.
        #[arg(value_name = "JSON", allow_negative_numbers = true)]
        args: Vec<String>,
    },
    /// Follow live events until Ctrl-C.
    #[command(after_help = "\
Examples:
  nkcluster events --node dev4
  nkcluster --json events --class files | jq -c .event
  nkcluster --json events | jq -c 'select(.task == \"t1\")'     what belongs to one task

What was lost is told as a gap: the journal of the worker was full, or this reader was too slow. Exits with 3 if the link to the control node ends.")]
    Events {
        /// Only of this class.
        #[arg(long)]
        class: Option<ClassName>,
        /// Only of this node.
        #[arg(long)]
        node: Option<NodeId>,
    },
    /// Send a file, or a directory with --recursive, to the file root of a worker.
    #[command(after_help = "\
Examples:
  nkcluster send dev4 ./model.bin models/model.bin
  nkcluster send dev4 ./model.bin models/             keeps the name
  nkcluster send -r dev4 ./site public/site
  nkcluster send --exclusive dev4 ./disk.img images/  over a connection of its own, also if the worker's main one is lost

A cut transfer goes on where it stopped, until there is no progress for --timeout; run again later, it goes on too.")]
    Send {
        /// The worker.
        node: NodeId,
        /// The file here.
        local: PathBuf,
        /// Its path below the worker's file root.
        remote: String,
        /// Send a directory with everything in it.
        #[arg(long, short)]
        recursive: bool,
        /// Over a connection to the worker that nothing else uses, if one can be had.
        #[arg(long)]
        exclusive: bool,
    },
    /// Fetch a file from the file root of a worker.
    #[command(after_help = "\
Examples:
  nkcluster fetch dev4 models/model.bin ./model.bin
  nkcluster fetch dev4 models/model.bin .             keeps the name
  nkcluster fetch --exclusive dev4 images/disk.img .  over a connection of its own")]
    Fetch {
        /// The worker.
        node: NodeId,
        /// The file's path below the worker's file root.
        remote: String,
        /// Where to put it here.
        local: PathBuf,
        /// Over a connection to the worker that nothing else uses, if one can be had.
        #[arg(long)]
        exclusive: bool,
    },
    /// Measure round trips to a worker and back.
    #[command(after_help = "Example:\n  nkcluster ping dev4 -c 20")]
    Ping {
        /// The worker.
        node: NodeId,
        /// How many.
        #[arg(long, short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        count: u32,
        /// Pause between two.
        #[arg(long, short, value_name = "TIME", value_parser = duration, default_value = "200ms")]
        interval: Duration,
    },
    /// Copy what is missing or differs from one place to another; nothing is deleted.
    #[command(after_help = "\
Examples:
  nkcluster copy /data /backup -P                                       in this process, with progress
  nkcluster copy /data :s3,provider=Other,endpoint=http://10.0.0.9:9000,env_auth=true:bucket/data
  nkcluster copy /data /backup --on 'storage && status=ready'           by workers of a running nkcluster
  nkcluster copy /data /backup --on storage --detach                    the same; tells the id of the run, and ends
  nkcluster copy /data /backup --on storage --resume --run-id ID        follow a run that goes on
  nkcluster copy /data /backup --cluster /work                          by workers that share /work, see `nkcluster rcd`
  nkcluster copy /data /backup --cluster /work --on storage             by those, and workers of a running nkcluster, which begin at once
  nkcluster copy /data /backup --cluster /work --resume --run-id ID     go on with a run whose controller has ended

Flags are rclone's. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such source, 5 failed and may succeed later, 7 had to end,
or with --on no control node was reached.
With --on a control node directs the run, and goes on without this command; where none may, or with --cluster, this command directs it. Ctrl-C ends the run.
SRC may be one file; DST is always a directory.")]
    Copy(Box<SyncArgs<CopyFlags>>),
    /// Make the destination the same as the source; what is only there is deleted.
    #[command(after_help = "\
Examples:
  nkcluster sync /data /backup --dry-run                                what would be done
  nkcluster sync /data /backup --max-delete 100 --backup-dir /old       nothing is lost
  nkcluster sync /data /backup --filter '- *.tmp' --filter '- /cache/**'

Nothing is deleted if something could not be read or copied before. Exit codes are those of `copy`.")]
    Sync(Box<SyncArgs<SyncFlags>>),
    /// Move files from one place to another.
    #[command(after_help = "\
Examples:
  nkcluster move /inbox /archive --delete-empty-src-dirs
  nkcluster move /inbox /archive --min-age 1h

A source goes only after its copy was verified, and only if it is still what was copied. Exit codes are those of `copy`.")]
    Move(Box<MoveArgs>),
    /// Delete the files of a place that the filters include.
    #[command(after_help = "\
Examples:
  nkcluster delete /cache --min-age 7d
  nkcluster delete /data --include '*.tmp' --dry-run

Directories stay. Exit codes are those of `copy`.")]
    Delete(Box<DeleteArgs>),
    /// Tell what differs between two places; nothing is changed.
    #[command(after_help = "\
Examples:
  nkcluster check /data /backup
  nkcluster check /data /backup --download --combined                   read everything, tell every file

Ends with 1 if anything differs.")]
    Check(Box<CheckArgs>),
    /// List and steer the runs of the distributed copy, or show a queue on a storage.
    #[command(after_help = "\
Examples:
  nkcluster queue                                                       the runs that control nodes direct (`--on`)
  nkcluster queue show abcdefghijklmnopqrst                             one of them, with the files that failed
  nkcluster queue pause abcdefghijklmnopqrst                            also resume, cancel
  nkcluster queue bwlimit abcdefghijklmnopqrst 10M                      bytes per second of each of its workers
  nkcluster --json queue | jq -r '.[] | select(.state != \"ended\") | .run'
  nkcluster queue --cluster /work                                       what waits, what is in work where, what is done

States: waiting (and for what), running, paused, ending (it was cancelled), ended with the exit code of the command. An end is known for a day.
Ends with 4 if there is no such run.")]
    Queue(QueueArgs),
    /// Be a worker of a distributed copy until stopped.
    #[command(after_help = "\
Examples:
  nkcluster rcd --cluster /work                                         a name is made up
  nkcluster rcd --cluster /work --cluster-id $(hostname) --transfers 8

Ctrl-C or SIGTERM stops it: files that were begun are finished, the rest goes back to the queue.")]
    Rcd(RcdArgs),
    /// Show which addresses would be tried for a URL, in order, and how DNS led to each; connects to none.
    #[command(after_help = "\
Examples:
  nkcluster resolve nkcluster://example.org                               transports by NAPTR, hosts by SRV, addresses by A and AAAA
  nkcluster resolve 'nkcluster://example.org;transport=tls' --dns 192.0.2.53
  nkcluster --json resolve nkcluster://example.org | jq -r '.[].address'

Addresses of one host and hosts of one priority come in another order each time, as for a worker.")]
    Resolve {
        /// What to resolve, as in `cluster_addr` or `--connect`.
        #[arg(value_parser = uri)]
        uri: Box<NodeUri>,
    },
    /// Make secrets and keys; needs no cluster.
    #[command(after_help = "\
Examples:
  nkcluster keygen --out /etc/nkcluster/secret             one secret for everything
  nkcluster keygen --roles                                 one per role, as lines of a configuration file
  nkcluster keygen --control-key --password-file control   public half of the key of the control nodes
  nkcluster keygen --node-token dev4 --password-file worker   the token of one worker")]
    Keygen(KeygenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Control nodes; the tour needs three.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub(crate) controls: u16,
    /// Workers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub(crate) workers: u16,
    /// Port of dev1; the next nodes have the next ports. 0 takes any that are free.
    #[arg(long, default_value_t = 15001)]
    pub(crate) base_port: u16,
    /// Where everything of the nodes lives; kept at the end. Without it, a temporary directory that is removed.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Do every step of the tour once, each by the public command, and exit with the result.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MetaChange {
    /// Set labels: the values of each are replaced, new ones are added.
    Set {
        /// Labels such as `disk;size=big;ssd, location;dc=here`.
        tokens: Meta,
    },
    /// Remove labels by name.
    Unset {
        /// Names, separated by commas or blanks.
        #[arg(required = true, value_delimiter = ',')]
        keys: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataOperation {
    /// Print a value; null if there is none.
    Get {
        /// Its key.
        key: String,
    },
    /// Store a value.
    Put {
        /// Its key.
        key: String,
        /// JSON, or else a text.
        #[arg(allow_negative_numbers = true)]
        value: String,
    },
    /// Delete a value.
    Del {
        /// Its key.
        key: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Start a task.
    Start {
        /// The worker.
        node: NodeId,
        /// The class.
        class: ClassName,
        /// What to do; `-` reads it from standard input.
        #[arg(value_name = "JSON", allow_negative_numbers = true)]
        payload: String,
        /// Its id, unique in class and worker; without it one is made.
        #[arg(long)]
        id: Option<TaskId>,
    },
    /// List the tasks of a worker.
    List {
        /// The worker.
        node: NodeId,
        /// Only of this class.
        class: Option<ClassName>,
    },
    /// Send a command to a task.
    Command {
        /// The worker.
        node: NodeId,
        /// The class.
        class: ClassName,
        /// The task.
        id: TaskId,
        /// The command; `-` reads it from standard input.
        #[arg(value_name = "JSON", allow_negative_numbers = true)]
        payload: String,
    },
    /// End a task.
    Stop {
        /// The worker.
        node: NodeId,
        /// The class.
        class: ClassName,
        /// The task.
        id: TaskId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// One secret per role: worker, admin and control.
    #[arg(long)]
    pub(crate) roles: bool,
    /// Public half of the control key, from the secret of the control nodes.
    #[arg(long, conflicts_with_all = ["roles", "node_token"])]
    pub(crate) control_key: bool,
    /// The token of one worker, from the secret of the workers.
    #[arg(long, value_name = "NODE", conflicts_with = "roles")]
    pub(crate) node_token: Option<NodeId>,
    /// Write to a new file with mode 0600 instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

fn uri(text: &str) -> nkcluster::Result<Box<NodeUri>> {
    text.parse().map(Box::new)
}

fn dns_server(text: &str) -> Result<SocketAddr, String> {
    const PORT: u16 = 53;
    let read = text.trim().parse().or_else(|_| text.trim().parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)));
    match read {
        Ok(addr) if addr.port() != 0 && !addr.ip().is_unspecified() => Ok(addr),
        _ => Err("expected an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53".to_owned()),
    }
}

fn control_key(text: &str) -> Result<ControlKey, String> {
    let wrong = || "expected 64 hexadecimal digits".to_owned();
    let text = text.trim();
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut key = [0; 32];
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(ControlKey(key))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("nkcluster "), "{} has no example", command.get_name());
        }
    }

    #[test]
    fn global_options_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["nkcluster", "meta", "w1", "set", "a;b=1", "--json", "--timeout", "5s"]).expect("parses");
        assert!(cli.global.json);
        assert_eq!(cli.global.timeout, Duration::from_secs(5));
        assert!(matches!(cli.command, Command::Meta { change: Some(MetaChange::Set { .. }), .. }));
    }

    /// clap finds arguments by name in all levels at once: an argument of a command must not have the name of a global option.
    #[test]
    fn every_command_line_of_the_contract_is_read() {
        let lines = [
            "request w1 core {}",
            "task start w1 files {} --id t1",
            "task list w1",
            "task list w1 files",
            "task command w1 files t1 -5",
            "task stop w1 files t1",
            "call w1 echo 1 -2",
            "data w1 put k -5",
            "data w1 get k",
            "meta w1",
            "meta w1 unset a,b",
            "connect nkcluster://h:1;transport=tls",
            "status w1 stopped",
            "events --class c --node n",
            "request --exclusive w1 core {}",
            "send w1 a b",
            "send --exclusive w1 a b",
            "fetch --exclusive w1 a b",
            "fetch w1 a b",
            "ping w1 -c 3",
            "dev --controls 3 --workers 2 --base-port 15001 --dir d --once",
            "queue",
            "queue --cluster /work",
            "queue --after abcdefghijklmnopqrst",
            "queue show abcdefghijklmnopqrst",
            "queue pause abcdefghijklmnopqrst",
            "queue resume abcdefghijklmnopqrst",
            "queue cancel abcdefghijklmnopqrst",
            "queue bwlimit abcdefghijklmnopqrst 10M",
            "keygen --roles --out f",
            "keygen --control-key --password-file f --cluster-name n",
        ];
        for line in lines {
            let words = ["nkcluster", "--json"].into_iter().chain(line.split(' '));
            let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(cli.global.json, "{line}");
        }
    }

    #[test]
    fn a_control_key_has_64_digits() {
        assert_eq!(control_key(&"0f".repeat(32)).expect("a key").0, [0x0f; 32]);
        assert!(control_key("0f").is_err());
        assert!(control_key(&"+f".repeat(32)).is_err());
    }
}

//! What an operator decides about a node.
//!
//! Four sources say it: flag, then environment (`NKCLUSTER_<KEY>`), then a TOML file, then the default; [`Layers`] reads them, and what it builds is right: known keys, values
//! within bounds, rules between them kept ([`Config::check`]). Keys and meanings are those of the original (checklist A2) and ours; `config/control.toml` and
//! `config/worker.toml` show each with its default and one sentence.
//!
//! ```text
//! file ─┐                       ┌ unknown key, wrong value: ConfigError with source, key and what was expected
//! env  ─┼► Layers: key → value ─┤
//! flag ─┘   highest rank wins   └► Config::control() or Config::worker() with these values ─► check()
//! ```
//!
//! Programs that embed a node may fill the fields of a [`Config`] themselves: bounds are for what comes from outside, so a test may ping every 20 ms.

mod check;
mod error;
mod keys;
mod layers;
mod raw;
mod secret_file;
mod values;

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use error::{ConfigError, Origin};
pub use layers::Layers;
pub use values::{ClassList, LogFormat, Role, Split};

use crate::types::{ClassName, Host, IpRange, Meta, NodeId, NodeUri, Secret, TlsVerify, TlsVersion, Transport};

/// Everything that an operator decides about a node. Each field is a key of the file of the same name; times there are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `role` = `control` or `worker`; also `is_control` (bool) and `type` (`primary` or `secondary`). No default: somebody must say it.
    pub role: Role,
    /// Fixed id of the node. Default: random at every start.
    pub node_id: Option<NodeId>,
    /// Name of the cluster; only nodes of the same name let each other in. Default `nkcluster`.
    pub cluster_name: String,
    /// Control nodes to connect to; without any the node never dials by itself. Default none.
    pub cluster_addr: Vec<NodeUri>,
    /// Where to listen. Default: a control node `nkcluster://all;transport=tls`, a worker nowhere.
    pub listen: Vec<NodeUri>,
    /// Labels of the node. Default none.
    pub meta: Meta,

    /// Secret of the cluster; `password_file` names a file that holds it. Default `nkcluster`, which only loopback listeners accept.
    pub password: Secret,
    /// Secret of links with workers, instead of `password`; or `worker_password_file`. Default none.
    pub worker_password: Option<Secret>,
    /// Secret of links with operators, instead of `password`; or `admin_password_file`. Default none.
    pub admin_password: Option<Secret>,
    /// Secret of links between control nodes, instead of `password`; or `control_password_file`. Default none.
    pub control_password: Option<Secret>,
    /// Public half of the key by which control nodes sign, 64 hexadecimal digits. If set, a control node that does not sign is refused. Default none.
    pub control_key: Option<[u8; 32]>,
    /// The token of this worker, instead of the secret which all workers share; or `node_token_file`. Default none.
    pub node_token: Option<Secret>,
    /// Whether a control node derives the secret of each worker from the worker secret and its id. Default `false`.
    pub node_tokens: bool,
    /// Whether the default password may guard a listener that others can reach. Default `false`.
    pub allow_default_password: bool,
    /// Whether a file with a secret may be readable by every user of the machine; it is a warning then. Default `false`.
    pub allow_readable_secrets: bool,
    /// Rounds that stretch the secrets; must be the same in the whole cluster. Default 600 000.
    pub pbkdf2_iters: u32,

    /// Own certificate chain, PEM. Default: made at the first start.
    pub tls_certfile: Option<PathBuf>,
    /// Own private key, PEM.
    pub tls_keyfile: Option<PathBuf>,
    /// Certificates that we trust, PEM.
    pub tls_cacertfile: Option<PathBuf>,
    /// Password of an encrypted private key; or `tls_password_file`.
    pub tls_password: Option<Secret>,
    /// How the certificate of the other side is checked. Default `false`.
    pub tls_verify: TlsVerify,
    /// Most intermediate certificates, 0 to 16. Default 0.
    pub tls_depth: u8,
    /// Versions of TLS, oldest first; within quic it is always 1.3. Default `1.3`.
    pub tls_versions: Vec<TlsVersion>,

    /// Time between two pings of a link, 1 to 60 s. Default 5 s.
    pub ping_time: Duration,
    /// Shortest wait of a proxy before it dials its worker again, 1 s or more. Default 10 s.
    pub proxy_connect_retry: Duration,
    /// Time between two reports of a worker about its machine, 1 s or more. Default 10 s.
    pub stats_time: Duration,
    /// Longest time to finish what runs when the node stops. Default 30 s.
    pub drain_timeout: Duration,
    /// Longest time to establish a connection. Default 30 s.
    pub connect_timeout: Duration,
    /// A connection that is silent so long is closed; 0 or none: the time of its transport. Default none.
    pub idle_timeout: Option<Duration>,
    /// The same for tcp, tls and memory. Default 180 s.
    pub tcp_timeout: Duration,
    /// The same for sctp. Default 180 s.
    pub sctp_timeout: Duration,
    /// The same for ws and wss. Default 180 s.
    pub ws_timeout: Duration,
    /// The same for quic. Default 30 s.
    pub udp_timeout: Duration,
    /// The same for clients of the HTTP server. Default 180 s.
    pub http_timeout: Duration,
    /// How long answers of DNS are kept; 0 asks afresh every time. Default 30 s.
    pub dns_cache_ttl: Duration,
    /// Servers of DNS to ask, instead of those of the system: `ip:port`, or `ip` for port 53; at most 8. Default none.
    pub dns_servers: Vec<SocketAddr>,

    /// Most connections. Default 1024.
    pub max_connections: usize,
    /// Most connections that have not proved themselves yet. Default 256.
    pub max_unauthenticated: usize,
    /// Most connections accepted per second. Default 2000.
    pub accept_rate: u32,
    /// Most requests and starting tasks that run at once on a worker. Default 1024.
    pub max_calls: usize,
    /// Memory for events that are not acknowledged yet, in bytes. Default 16 MiB.
    pub journal_bytes: usize,
    /// Memory for outcomes of calls that are not acknowledged yet, in bytes. Default 32 MiB.
    pub outcome_bytes: usize,
    /// Proxies and balancers whose connections begin with the PROXY protocol, version 2, and so with the address of the real peer. Default none.
    pub trusted_proxies: Vec<IpRange>,
    /// Origins of web pages that may connect by ws and wss, such as `https://console.example.org`. Default none.
    pub allowed_origins: Vec<String>,
    /// Tasks that accept, for each listener. Default 10.
    pub tcp_listeners: u16,
    /// Outgoing SCTP streams. Default 10.
    pub sctp_out_streams: u16,
    /// Incoming SCTP streams. Default 10.
    pub sctp_in_streams: u16,

    /// IPv4 address to tell others for listeners on `all`. Default: found out.
    pub main_ip: Option<Ipv4Addr>,
    /// IPv6 address to tell others for listeners on `all6`. Default: found out.
    pub main_ip6: Option<Ipv6Addr>,
    /// IPv4 address by which the outside reaches us. Default: `main_ip`.
    pub ext_ip: Option<Ipv4Addr>,
    /// IPv6 address by which the outside reaches us. Default: `main_ip6`.
    pub ext_ip6: Option<Ipv6Addr>,

    /// Partitions of the ring, a power of two from 8 to 4096, the same on all control nodes. Default 256.
    pub ring_size: usize,
    /// Whether a new control node waits for an operator's commit. Default `false`.
    pub staged_joins: bool,
    /// What a part of a divided cluster does. Default `serve`.
    pub split: Split,

    /// Job classes that this node runs, or `*` for all in the program. Default `core`.
    pub classes: ClassList,
    /// Job classes that may touch the machine beyond the file root, or `*`. Default none.
    pub grants: ClassList,
    /// Where the node keeps what outlives it. Default `nkcluster-data` in the working directory.
    pub state_dir: PathBuf,
    /// The only directory that file transfers reach. Default: `files` in `state_dir`; see [`Config::file_root`].
    pub file_root: Option<PathBuf>,
    /// What to log: a level, or a filter such as `info,nkcluster::connection=debug`. Default `info`.
    pub log: String,
    /// Form of the log. Default `text`.
    pub log_format: LogFormat,
    /// Address of the HTTP server, or `off`. Default off. There is no HTTP server yet.
    pub http: Option<SocketAddr>,

    /// What was odd in the sources, though not wrong; see [`Config::warnings`]. Not a key.
    pub notes: Vec<String>,
}

impl Config {
    /// The secret that everybody knows.
    pub const DEFAULT_PASSWORD: &str = "nkcluster";

    /// A control node with every default.
    pub fn control() -> Self {
        let everywhere = NodeUri::new(Host::All, Some(Transport::Tls));
        Self { listen: vec![everywhere], ..Self::with_role(Role::Control) }
    }

    /// A worker with every default.
    pub fn worker() -> Self {
        Self::with_role(Role::Worker)
    }

    fn with_role(role: Role) -> Self {
        const IDLE: Duration = Duration::from_secs(180);
        let core = ClassName::new("core").expect("a letter-only name is valid");
        Self {
            role,
            node_id: None,
            cluster_name: "nkcluster".to_owned(),
            cluster_addr: Vec::new(),
            listen: Vec::new(),
            meta: Meta::default(),
            password: Secret::new(Self::DEFAULT_PASSWORD),
            worker_password: None,
            admin_password: None,
            control_password: None,
            control_key: None,
            node_token: None,
            node_tokens: false,
            allow_default_password: false,
            allow_readable_secrets: false,
            pbkdf2_iters: 600_000,
            tls_certfile: None,
            tls_keyfile: None,
            tls_cacertfile: None,
            tls_password: None,
            tls_verify: TlsVerify::False,
            tls_depth: 0,
            tls_versions: vec![TlsVersion::V1_3],
            ping_time: Duration::from_secs(5),
            proxy_connect_retry: Duration::from_secs(10),
            stats_time: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(30),
            idle_timeout: None,
            tcp_timeout: IDLE,
            sctp_timeout: IDLE,
            ws_timeout: IDLE,
            udp_timeout: Duration::from_secs(30),
            http_timeout: IDLE,
            dns_cache_ttl: Duration::from_secs(30),
            dns_servers: Vec::new(),
            max_connections: 1024,
            max_unauthenticated: 256,
            accept_rate: 2000,
            max_calls: 1024,
            journal_bytes: 16 * 1024 * 1024,
            outcome_bytes: 32 * 1024 * 1024,
            trusted_proxies: Vec::new(),
            allowed_origins: Vec::new(),
            tcp_listeners: 10,
            sctp_out_streams: 10,
            sctp_in_streams: 10,
            main_ip: None,
            main_ip6: None,
            ext_ip: None,
            ext_ip6: None,
            ring_size: 256,
            staged_joins: false,
            split: Split::Serve,
            classes: ClassList::Only(vec![core]),
            grants: ClassList::Only(Vec::new()),
            state_dir: PathBuf::from("nkcluster-data"),
            file_root: None,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            http: None,
            notes: Vec::new(),
        }
    }

    /// Every key that the file, the environment (`NKCLUSTER_<KEY>`) and flags may say.
    pub fn keys() -> impl Iterator<Item = &'static str> {
        keys::KEYS.iter().map(|key| key.name)
    }

    /// The only directory that file transfers reach.
    pub fn file_root(&self) -> PathBuf {
        match &self.file_root {
            Some(root) => root.clone(),
            None => self.state_dir.join("files"),
        }
    }

    /// How long a connection from or to this address may be silent: what its URL says, else `idle_timeout`, else the time of its transport.
    pub fn idle_timeout_of(&self, uri: &NodeUri) -> Duration {
        let of_transport = match uri.effective_transport() {
            Transport::Tcp | Transport::Tls | Transport::Memory => self.tcp_timeout,
            Transport::Sctp => self.sctp_timeout,
            Transport::Ws | Transport::Wss => self.ws_timeout,
            Transport::Quic => self.udp_timeout,
        };
        uri.options().idle_timeout.or(self.idle_timeout).unwrap_or(of_transport)
    }

    /// How long a connection to this address may take: what its URL says, else `connect_timeout`.
    pub fn connect_timeout_of(&self, uri: &NodeUri) -> Duration {
        uri.options().connect_timeout.unwrap_or(self.connect_timeout)
    }
}

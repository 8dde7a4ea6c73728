//! What a node tells about its machine (checklist N5.2).

use serde::{Deserialize, Serialize};

/// Load, memory, disks and tasks of a node at one moment. A field that a peer does not send is zero or empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStats {
    /// Logical processors.
    pub cpus: u32,
    /// Mean number of runnable processes over one minute.
    pub load1: f64,
    /// The same over five minutes.
    pub load5: f64,
    /// The same over fifteen minutes.
    pub load15: f64,
    /// Memory of the machine, in bytes.
    pub memory_total: u64,
    /// Memory that is not available to new processes, in bytes.
    pub memory_used: u64,
    /// Mounted disks.
    pub disks: Vec<DiskStats>,
    /// Tasks that run.
    pub tasks: u32,
    /// Operating system, such as `linux`.
    pub os: String,
    /// Version of the program.
    pub version: String,
    /// The node's own clock, in milliseconds since 1970; told for people, never compared.
    pub time_ms: u64,
}

/// One disk of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskStats {
    /// Mount point.
    pub path: String,
    /// Capacity, in bytes.
    pub size: u64,
    /// Share in use, 0 to 100.
    pub used_percent: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_of_older_and_newer_peers_are_read() {
        let json = r#"{"cpus":2,"disks":[{"path":"/","colour":"red"}],"planets":9}"#;
        let stats: NodeStats = serde_json::from_str(json).expect("decodes");
        assert_eq!((stats.cpus, stats.tasks), (2, 0));
        assert_eq!(stats.disks[0].path, "/");
    }
}

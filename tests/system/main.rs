//! Both programs where the machine is in their way: proxies, firewalls, translated addresses, networks that fail, a full disk, a clock that jumps.
//!
//! The networks are made of namespaces, which needs root, `ip`, `ss`, `nft` and `tinyproxy`; disks are mounted, clocks need `faketime`. Without them the tests
//! are skipped and say so, unless `NKCLUSTER_TEST_ALL` is set.

mod clock;
mod cluster;
mod disk;
mod firewall;
mod flaps;
mod http_proxy;
mod machines;
mod namespace;
mod plane;
mod roaming;
mod web;

#[expect(dead_code, reason = "shared with the tests of the daemon, which need more of it")]
#[path = "../daemon/several.rs"]
mod several;
#[expect(dead_code, reason = "shared with the tests of the daemon, which need more of it")]
#[path = "../daemon/sockets.rs"]
mod sockets;
#[expect(dead_code, reason = "shared with the tests of the daemon and the command, which need more of it")]
#[path = "../daemon/support.rs"]
mod support;
#[path = "../daemon/workers.rs"]
mod workers;

//! Both programs on real networks that are in their way: proxies, firewalls, translated addresses.
//!
//! The networks are made of namespaces, which needs root, `ip`, `nft` and `tinyproxy`; without them the tests are skipped and say so, unless
//! `NKCLUSTER_TEST_ALL` is set.

mod cluster;
mod firewall;
mod http_proxy;
mod namespace;
mod plane;
mod web;

#[expect(dead_code, reason = "shared with the tests of the daemon and the command, which need more of it")]
#[path = "../daemon/support.rs"]
mod support;
#[path = "../daemon/workers.rs"]
mod workers;

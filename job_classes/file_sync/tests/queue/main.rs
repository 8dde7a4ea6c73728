//! The queue over real storages, and beside a real rclone.

mod claims;
mod rclone;
#[expect(dead_code, reason = "shared with the tests of object stores, which need more of it")]
#[path = "../object/server.rs"]
mod server;

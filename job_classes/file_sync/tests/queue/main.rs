//! The queue over real storages, and beside a real rclone.

mod claims;
mod rclone;
mod resumed;
#[expect(dead_code, reason = "shared with the tests of object stores, which need more of it")]
#[path = "../object/server.rs"]
mod server;

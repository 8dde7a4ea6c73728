//! nkcluster: a cluster of control nodes that manages thousands of workers.

pub mod cluster;
pub mod config;
pub mod connection;
pub mod control;
pub mod docs;
pub mod error;
pub mod job;
pub mod node;
pub mod proto;
pub mod ring;
pub mod transfer;
pub mod transport;
pub mod types;
pub mod worker;

pub use error::{Error, ErrorCode, Result};

//! Clusters in one process, on the memory network and on loopback sockets.

mod between;
mod classes;
mod coverage;
mod events;
mod failure;
mod files;
mod harness;
mod identity;
mod import_table;
mod original_basic;
mod original_task;
mod raw;
mod relay;
mod review;
mod security;
mod transports;

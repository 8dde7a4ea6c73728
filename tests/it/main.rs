//! Clusters in one process, on the memory network and on loopback sockets.

mod between;
mod classes;
mod failure;
mod harness;
mod original_basic;
mod original_task;
mod raw;
mod relay;
mod transports;

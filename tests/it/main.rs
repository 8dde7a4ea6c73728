//! Clusters in one process, on the memory network and on loopback sockets.

mod harness;
mod smoke;

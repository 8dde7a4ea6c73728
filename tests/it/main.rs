//! Clusters in one process, on the memory network and on loopback sockets.

mod bad_input;
mod between;
mod classes;
mod coverage;
mod datagrams;
mod discovery;
mod dns;
mod events;
mod exclusive;
mod failure;
mod files;
mod harness;
mod identity;
mod import_table;
mod members;
mod original_basic;
mod original_task;
mod raw;
mod relay;
mod review;
mod ring_moves;
mod scripts;
mod security;
mod streams;
mod thousands;
mod transports;

//! The wire protocol as pure values and machines: no sockets, no clock, no randomness.
//!
//! | module | holds |
//! |---|---|
//! | [`auth`] | keys, transcript, the four messages of the handshake and their two machines |
//! | [`entry`] | what an entry of a worker's journal is about |
//! | [`frame`] | frame header, kinds, incremental decoder, faults |
//! | [`head`] | fixed headers of the hot kinds: call, reply, event, ping |
//! | [`identity`] | the identity of a call, kept over retries |
//! | [`message`] | all other bodies: named MessagePack, one kind each |
//! | [`roles`] | which role may send which kind |
//! | [`session`] | a trusted link: channels, calls, streams with credit, lanes, fragments |
//!
//! Layout, limits and versions are written down in the chapter [protocol](crate::docs::protocol).

pub mod auth;
pub mod entry;
pub mod frame;
pub mod head;
pub mod identity;
pub mod message;
pub mod roles;
pub mod session;

//! The daemon as a real process: how it starts, what it says, how it ends, what survives a kill.

mod blows;
mod clones;
mod copy;
mod copy_chaos;
mod development;
mod failures;
mod garbage;
mod handover;
mod members;
mod placed_chaos;
mod placed_copy;
mod placed_runs;
mod plane;
mod queue_chaos;
mod queue_copy;
mod quic;
mod reload;
mod security;
mod several;
mod sockets;
mod start;
mod stop;
mod support;
mod workers;

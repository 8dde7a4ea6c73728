//! The daemon as a real process: how it starts, what it says, how it ends, what survives a kill.

mod copy;
mod development;
mod failures;
mod members;
mod plane;
mod quic;
mod reload;
mod security;
mod start;
mod stop;
mod support;
mod workers;

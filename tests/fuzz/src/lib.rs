//! Fuzz targets: what strangers, peers and operators may send, and what must hold whatever it is.
//!
//! Each target is a plain function of bytes that panics when a promise is broken. Three programs call it:
//!
//! ```text
//!   targets/*.rs     libFuzzer, with coverage      `.ci/fuzz SECONDS`
//!   corpus.rs        replays corpus/<target>/*     `cargo test --workspace`
//!   seeds.rs         writes the first inputs       `cargo run -p nkcluster-fuzz --bin seeds`
//! ```
//!
//! A target that finds nothing may be a good sign or a broken target. So each has a **seeded crash**: with `NKCLUSTER_SEEDED_CRASH=1` its fuzzer panics on a
//! condition of several steps, deep enough that only a fuzzer which is guided by coverage arrives there; `.ci/fuzz --seeded` proves that each is found
//! within minutes of one processor, and that no committed input is there already.
//!
//! Inputs are read by [`Input`], whose every byte means something: a mutation always gives another valid input, never a parse error of the target itself.

mod before_trust;
mod config;
mod handshake;
mod input;
mod intermediary;
mod labels;
mod payload;
mod seeded;
pub mod seeds;
mod selector;
mod session;
mod transfer;
mod uri;

pub use before_trust::before_trust;
pub use config::config;
pub use handshake::handshake;
pub use input::Input;
pub use intermediary::intermediary;
pub use labels::labels;
pub use payload::payload;
#[cfg(feature = "libfuzzer")]
pub use seeded::tried;
pub use selector::selector;
pub use session::session;
pub use transfer::transfer;
pub use uri::uri;

/// A target: panics if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by the name of its fuzzer and of the directory of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("before_trust", before_trust),
    ("config", config),
    ("handshake", handshake),
    ("intermediary", intermediary),
    ("labels", labels),
    ("payload", payload),
    ("selector", selector),
    ("session", session),
    ("transfer", transfer),
    ("uri", uri),
];

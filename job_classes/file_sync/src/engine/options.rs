//! How operations are carried out.

use std::time::Duration;

/// How files are compared with what they were copied from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Not at all, beyond the count of bytes (`--no-verify`).
    Off,
    /// By what costs no second reading: sizes, the hash which a storage tells by itself, and that the source is still what it was.
    #[default]
    Cheap,
    /// Also by reading back what was written.
    ReadBack,
}

/// What is done with symbolic links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// A copy of one is an error; listings leave them out.
    #[default]
    Refuse,
    /// They are copied as links (`--links`), where the destination has links.
    Keep,
}

/// Options of an [`Engine`](crate::Engine).
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Operations at the same time in one call (`--transfers`). Whoever makes several calls at once bounds these himself.
    pub transfers: usize,
    /// Tries of one operation in total (`--low-level-retries`).
    pub tries: u32,
    /// Pause before the second try; each further one is twice as long.
    pub backoff: Duration,
    /// Longest pause between two tries.
    pub backoff_max: Duration,
    /// How copies are verified.
    pub verify: Verify,
    /// What is done with symbolic links.
    pub links: Links,
    /// Whether copies get the time of their source.
    pub keeps_times: bool,
    /// Whether copies get the permission bits of their source, where there are any.
    pub keeps_modes: bool,
    /// Bytes per second in total (`--bwlimit`).
    pub bandwidth: Option<u64>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            transfers: 4,
            tries: 10,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            verify: Verify::default(),
            links: Links::default(),
            keeps_times: true,
            keeps_modes: true,
            bandwidth: None,
        }
    }
}

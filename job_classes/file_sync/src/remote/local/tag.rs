//! What makes one state of one local file.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;

/// Inode, size and both times, in nanoseconds since the epoch. No device: its number differs from node to node for one and the same network file
/// system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalTag {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified_ns: i128,
    pub(crate) changed_ns: i128,
}

impl LocalTag {
    pub(crate) fn of(stat: &Stat) -> Self {
        let nanoseconds = |seconds: i64, nanoseconds: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        Self {
            inode: stat.st_ino,
            size: stat.st_size as u64,
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let mut next = || parts.next();
        let unsigned = |text: &str| u64::from_str_radix(text, 16).ok();
        let signed = |text: &str| i128::from_str_radix(text, 16).ok();
        let tag = Self { inode: unsigned(next()?)?, size: unsigned(next()?)?, modified_ns: signed(next()?)?, changed_ns: signed(next()?)? };
        next().is_none().then_some(tag)
    }

    /// Whether both are the same file with the same content. A rename or another link gives a file a new change time, so that is left out.
    pub(crate) fn is_same_content(&self, other: &Self) -> bool {
        (self.inode, self.size, self.modified_ns) == (other.inode, other.size, other.modified_ns)
    }
}

impl fmt::Display for LocalTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = |value: i128| if value < 0 { format!("-{:x}", -value) } else { format!("{value:x}") };
        write!(f, "{:x}.{:x}.{}.{}", self.inode, self.size, signed(self.modified_ns), signed(self.changed_ns))
    }
}

/// A time as a file has it.
pub(super) fn time_of(seconds: i64, nanoseconds: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 { SystemTime::UNIX_EPOCH.checked_sub(whole) } else { SystemTime::UNIX_EPOCH.checked_add(whole) };
    start.and_then(|start| start.checked_add(Duration::from_nanos(nanoseconds))).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The other way round.
pub(super) fn timespec_of(time: SystemTime) -> rustix::fs::Timespec {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => rustix::fs::Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() },
        Err(error) => {
            let before = error.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            let nanoseconds = if borrow == 1 { 1_000_000_000 - before.subsec_nanos() } else { 0 };
            rustix::fs::Timespec { tv_sec: -(before.as_secs() as i64) - borrow, tv_nsec: nanoseconds.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tag_returns_from_its_text(inode: u64, size: u64, modified: i64, changed: i64) {
            let tag = LocalTag { inode, size, modified_ns: modified.into(), changed_ns: changed.into() };
            prop_assert_eq!(LocalTag::parse(&tag.to_string()), Some(tag));
        }

        #[test]
        fn a_time_returns(seconds in -10_000_000_000_i64..10_000_000_000, nanoseconds in 0_u64..1_000_000_000) {
            let time = timespec_of(time_of(seconds, nanoseconds));
            prop_assert_eq!((time.tv_sec, time.tv_nsec as u64), (seconds, nanoseconds));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f.-]{0,80}") {
            let _ = LocalTag::parse(&text);
        }
    }
}

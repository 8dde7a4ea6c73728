//! Exit codes, which scripts rely on.

use nkcluster::ErrorCode;

/// Done, or stopped as asked.
pub(crate) const DONE: u8 = 0;
/// The operation failed or was refused; the daemon got a second signal and gave up draining.
pub(crate) const FAILED: u8 = 1;
/// Wrong usage.
pub(crate) const USAGE: u8 = 2;
/// No control node was reached, or none let us in.
pub(crate) const UNREACHED: u8 = 3;
/// No such node, class or task.
pub(crate) const MISSING: u8 = 4;
/// No answer in time.
pub(crate) const TIMEOUT: u8 = 5;

/// The daemon's configuration is wrong (`EX_USAGE` of sysexits.h is 64).
pub(crate) const CONFIG: u8 = 64;
/// The daemon cannot bind an address (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// The daemon has a bug, or the machine has no files and threads for it (`EX_SOFTWARE`).
pub(crate) const INTERNAL: u8 = 70;

/// `copy`, `sync`, `move`, `delete`: the source does not exist (rclone's code).
pub(crate) const DIRECTORY_MISSING: u8 = 3;
/// The same: what failed may succeed at another time (rclone's code).
pub(crate) const TEMPORARY: u8 = 5;
/// The same: the run had to end before its end (rclone's code).
pub(crate) const FATAL: u8 = 7;

/// How the command ends after an error of the cluster.
pub(crate) fn of_error(code: &ErrorCode) -> u8 {
    match code {
        ErrorCode::NoConnections | ErrorCode::InvalidPassword | ErrorCode::UnsupportedVersion => UNREACHED,
        ErrorCode::NotFound | ErrorCode::UnknownClass | ErrorCode::TaskNotFound => MISSING,
        ErrorCode::Timeout => TIMEOUT,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_end_with_the_documented_codes() {
        assert_eq!(of_error(&ErrorCode::InvalidPassword), 3);
        assert_eq!(of_error(&ErrorCode::NotFound), 4);
        assert_eq!(of_error(&ErrorCode::UnknownClass), 4);
        assert_eq!(of_error(&ErrorCode::TaskNotFound), 4);
        assert_eq!(of_error(&ErrorCode::Timeout), 5);
        assert_eq!(of_error(&ErrorCode::NodeNotReady), 1);
        assert_eq!(of_error(&ErrorCode::Class("quota".into())), 1);
    }
}

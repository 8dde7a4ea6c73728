//! How a command fails: one line on standard error and an exit code.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use nkcluster::{Error, ErrorCode};
use serde_json::json;

use crate::exit;
use crate::output::{self, Form};

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It is told in one line.
    Told {
        /// Stable name, for programs.
        code: String,
        /// What, for whom, what to do.
        message: String,
        /// How the process ends.
        exit: u8,
    },
    /// Whoever read our output has gone away (`| head`): nobody is left to be told.
    Unread,
}

/// Result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure of ours, with a name of ours.
    pub(crate) fn new(code: impl Display, message: impl Into<String>) -> Self {
        Self::Told { code: code.to_string(), message: message.into(), exit: exit::FAILED }
    }

    /// The command line is wrong.
    pub(crate) fn usage(code: impl Display, message: impl Into<String>) -> Self {
        Self::new(code, message).with_exit(exit::USAGE)
    }

    /// No control node let us in, whatever the reason.
    pub(crate) fn unreached(error: &Error) -> Self {
        Self::new(error.code(), error.message()).with_exit(exit::UNREACHED)
    }

    /// A local file, pipe or process failed.
    pub(crate) fn io(what: impl Display, error: &io::Error) -> Self {
        Self::new("io_error", format!("{what}: {error}"))
    }

    /// The same failure with another exit code.
    pub(crate) fn with_exit(mut self, code: u8) -> Self {
        if let Self::Told { exit, .. } = &mut self {
            *exit = code;
        }
        self
    }

    /// The same failure with words in front that say what was tried.
    pub(crate) fn context(mut self, what: impl Display) -> Self {
        if let Self::Told { message, .. } = &mut self {
            *message = format!("{what}: {message}");
        }
        self
    }

    /// Tells it on standard error; returns how the process ends.
    pub(crate) fn tell(&self, form: Form) -> ExitCode {
        match self {
            Self::Unread => ExitCode::from(exit::DONE),
            Self::Told { code, message, exit } => {
                let line = match form {
                    Form::Json => json!({ "error": { "code": code, "message": message } }).to_string(),
                    Form::People => format!("error[{code}]: {}", output::one_line(message)),
                };
                output::to_stderr(&line);
                ExitCode::from(*exit)
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = exit::of_error(error.code());
        let message = match (error.may_have_run(), error.code()) {
            (true, ErrorCode::OutcomeUnknown) | (false, _) => error.message().to_owned(),
            (true, _) => format!("{} (it may have been done)", error.message()),
        };
        Self::new(error.code(), message).with_exit(exit)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Told { code, message, .. } => write!(f, "{code}: {message}"),
            Self::Unread => f.write_str("nobody reads the output"),
        }
    }
}

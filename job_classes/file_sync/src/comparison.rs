//! Whether a file is at the destination already, by rclone's rules.
//!
//! The decision is pure. Where it needs more than the listings tell, it says what: [`Verdict::AskTimes`] or [`Verdict::AskContent`]; whoever asks comes back with the
//! answer.

pub(crate) mod content;

use std::time::{Duration, SystemTime};

use crate::listing::{Item, ItemKind};
use crate::options::Options;
use crate::storage::Abilities;

/// The window of `--update` where the storages share no precision of times.
const UNKNOWN_PRECISION: Duration = Duration::from_secs(1);

/// What is to be done with a file that is on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: it is the same.
    Same,
    /// Nothing: it is another one, and is left. A move keeps its source.
    Leave,
    /// It is copied over what is there.
    Transfer,
    /// The content is the same, and gets the time of the source.
    UpdateTimes,
    /// It differs and must not.
    Immutable,
    /// The listing lacks a time which the storage knows.
    AskTimes,
    /// The content decides.
    AskContent(Question),
}

/// What the content of two files decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    if_same: After,
    if_unknown: After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Same,
    UpdateTimes,
    Transfer,
}

/// What is known of the content of two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is the same.
    Same,
    /// It differs.
    Differs,
    /// There is no way to tell.
    Unknown,
}

/// The rules of one run.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    size_only: bool,
    checksum: bool,
    ignore_existing: bool,
    ignore_times: bool,
    ignore_size: bool,
    update: bool,
    immutable: bool,
    updates_times: bool,
    /// Times that differ by less are the same; none where a storage keeps no times.
    window: Option<Duration>,
    /// Whether a time is set without writing the file again.
    sets_times: bool,
}

impl Comparison {
    pub(crate) fn new(options: &Options, source: &Abilities, destination: &Abilities) -> Self {
        let precisions = source.time_precision_ns.zip(destination.time_precision_ns);
        let least = options.modify_window.duration().unwrap_or_default();
        let window = precisions.map(|(one, other)| Duration::from_nanos(one.max(other)).max(least));
        Self {
            size_only: options.size_only,
            checksum: options.checksum,
            ignore_existing: options.ignore_existing,
            ignore_times: options.ignore_times,
            ignore_size: options.ignore_size,
            update: options.update,
            immutable: options.immutable,
            updates_times: !options.no_update_modtime,
            window,
            sets_times: destination.sets_times,
        }
    }

    /// Compares two files or links.
    pub(crate) fn compare(&self, source: Item<'_>, destination: Item<'_>) -> Verdict {
        if self.ignore_existing {
            return Verdict::Leave;
        }
        match (source.kind, destination.kind) {
            (ItemKind::File, ItemKind::File) => {}
            (ItemKind::Link(one), ItemKind::Link(other)) if one == other && !self.ignore_times => return Verdict::Same,
            _ => return self.transfer(),
        }
        if self.ignore_times {
            return self.transfer();
        }
        if self.update {
            return self.newer(source, destination);
        }
        if !self.ignore_size && source.size != destination.size {
            return self.transfer();
        }
        if self.size_only {
            return Verdict::Same;
        }
        if self.checksum {
            return ask(After::Same, After::Same);
        }
        let Some(window) = self.window else { return Verdict::Same };
        match (source.modified, destination.modified) {
            (Some(one), Some(other)) if one == other || apart(one, other) < window => Verdict::Same,
            (Some(_), Some(_)) => self.content_decides(),
            _ => Verdict::AskTimes,
        }
    }

    /// `--update`: the newer one stays.
    fn newer(&self, source: Item<'_>, destination: Item<'_>) -> Verdict {
        let (Some(from), Some(to)) = (source.modified, destination.modified) else {
            // Without times there is nothing to be newer by.
            return if self.window.is_some() { Verdict::AskTimes } else { self.by_size(source, destination) };
        };
        let window = self.window.unwrap_or(UNKNOWN_PRECISION);
        match apart(from, to) {
            distance if distance < window => self.by_size(source, destination),
            _ if to > from => Verdict::Leave,
            _ if !self.ignore_size && source.size != destination.size => self.transfer(),
            _ if self.size_only => Verdict::Same,
            _ if self.checksum => ask(After::Same, After::Same),
            _ => self.content_decides(),
        }
    }

    fn by_size(&self, source: Item<'_>, destination: Item<'_>) -> Verdict {
        match self.ignore_size || source.size == destination.size {
            false => self.transfer(),
            true if self.checksum && !self.size_only => ask(After::Same, After::Same),
            true => Verdict::Same,
        }
    }

    /// Sizes are the same and times are not.
    fn content_decides(&self) -> Verdict {
        let if_same = match (self.updates_times, self.sets_times) {
            (false, _) => After::Same,
            (true, true) => After::UpdateTimes,
            // The time is only set by writing the file again.
            (true, false) => After::Transfer,
        };
        match if_same {
            After::Transfer => self.transfer(),
            _ => ask(if_same, After::Transfer),
        }
    }

    fn transfer(&self) -> Verdict {
        if self.immutable { Verdict::Immutable } else { Verdict::Transfer }
    }

    /// Decides once the times were asked for, whether or not they became known.
    pub(crate) fn compare_again(&self, source: Item<'_>, destination: Item<'_>) -> Verdict {
        match self.compare(source, destination) {
            Verdict::AskTimes if self.update => self.by_size(source, destination),
            Verdict::AskTimes => self.content_decides(),
            verdict => verdict,
        }
    }

    /// Decides once the content is known, or known to be unknown.
    pub(crate) fn decide(&self, question: Question, answer: Answer) -> Verdict {
        let after = match answer {
            Answer::Same => question.if_same,
            Answer::Unknown => question.if_unknown,
            Answer::Differs => After::Transfer,
        };
        match after {
            After::Same => Verdict::Same,
            After::UpdateTimes if self.immutable => Verdict::Immutable,
            After::UpdateTimes => Verdict::UpdateTimes,
            After::Transfer => self.transfer(),
        }
    }

    /// Whether the time of a directory at the destination is as good as that of the source.
    pub(crate) fn is_same_time(&self, source: Option<SystemTime>, destination: Option<SystemTime>) -> bool {
        if self.size_only || self.immutable || self.ignore_existing {
            return true;
        }
        let (Some(window), Some(from), Some(to)) = (self.window, source, destination) else { return true };
        !self.ignore_times && (from == to || apart(from, to) < window || (self.update && to > from))
    }
}

fn ask(if_same: After, if_unknown: After) -> Verdict {
    Verdict::AskContent(Question { if_same, if_unknown })
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

#[cfg(test)]
mod tests;

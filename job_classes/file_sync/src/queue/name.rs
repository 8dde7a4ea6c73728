//! Names of the files in a queue.
//!
//! ```text
//! pending/2026-11-26T22-52-10.123456789Z-<run, 20>-<batch, 12 hex>-<attempt, 4>.json
//! processing/<the same>-<worker id>.json
//! done/<the same>.json
//! ```
//!
//! The shape is that of rclone, `<time>-<20 characters>.json`. Its colons are not allowed on Windows and its times lose trailing zeros, which breaks their order; here
//! all before the worker id has a fixed width, so names sort by age, and a worker id may have any `-` it likes. Names that rclone wrote are read too.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::attempt::{Attempt, RunId};

/// Characters of the time in a name of ours.
const TIME_CHARS: usize = 30;
/// Characters of a run id, and of what rclone draws at random.
const RUN_CHARS: usize = 20;
/// Characters of the number of a batch.
const BATCH_CHARS: usize = 12;
/// Characters of the number of an attempt.
const ATTEMPT_CHARS: usize = 4;
/// Characters of a whole name of ours, without `.json`.
const JOB_CHARS: usize = TIME_CHARS + 1 + RUN_CHARS + 1 + BATCH_CHARS + 1 + ATTEMPT_CHARS;
/// Longest name of a job that is read; rclone's have 51 characters.
const FOREIGN_CHARS_MAX: usize = 80;
/// Longest id of a worker: a name of Kubernetes has at most 63 characters, and a whole file name 255.
const WORKER_BYTES_MAX: usize = 128;
/// Largest number of an attempt that fits.
pub const ATTEMPT_MAX: u32 = 9_999;
/// Batches that a plan can make. Larger numbers are those of children, which the holders of batches split off.
pub const PLANNED_BATCHES_MAX: u64 = 1 << 28;
/// Numbers that belong to one planned batch and to those that are split off from it.
pub const FAMILY: u64 = 1 << 20;

/// Names a worker in the files of a queue.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(Box<str>);

/// Why a text is no worker id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no worker id: 1 to {WORKER_BYTES_MAX} characters, none of them `/`, `\\`, `:` or a control character, the first no dot")]
pub struct WorkerIdError(String);

impl WorkerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerId {
    type Err = WorkerIdError;

    fn from_str(text: &str) -> Result<Self, WorkerIdError> {
        let is_fine = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':');
        match (1..=WORKER_BYTES_MAX).contains(&text.len()) && !text.starts_with('.') && text.chars().all(is_fine) {
            true => Ok(Self(text.into())),
            false => Err(WorkerIdError(text.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for WorkerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WorkerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Names one attempt at a batch, ours or rclone's. Names sort by age.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobName {
    text: Box<str>,
    attempt: Option<Attempt>,
}

impl JobName {
    /// The name of an attempt at a batch that was planned at `time`. The time only orders names; no two clocks are compared.
    pub fn new(time: SystemTime, attempt: Attempt) -> Self {
        Self::of(&time_text(time), attempt)
    }

    fn of(time: &str, attempt: Attempt) -> Self {
        let Attempt { run, batch, attempt: number } = attempt;
        Self { text: format!("{time}-{run}-{batch:012x}-{number:04}").into(), attempt: Some(attempt) }
    }

    /// Reads the name of a file in `pending` or `done`; none if it is no job.
    pub fn parse(file: &str) -> Option<Self> {
        let (job, rest) = Self::prefix(file.strip_suffix(".json")?)?;
        rest.is_empty().then_some(job)
    }

    /// Reads the name of a file in `processing`; none if it is no claim.
    pub fn parse_claimed(file: &str) -> Option<(Self, WorkerId)> {
        let (job, rest) = Self::prefix(file.strip_suffix(".json")?)?;
        Some((job, rest.strip_prefix('-')?.parse().ok()?))
    }

    /// Reads the name of a file in `claims`: whose log it is, and which record of it.
    pub fn parse_log(file: &str) -> Option<(Self, u32)> {
        let (job, number) = file.rsplit_once('.')?;
        let (job, rest) = Self::prefix(job)?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        (rest.is_empty() && is_number).then_some((job, number.parse().ok()?))
    }

    /// Splits a text into the job at its beginning and the rest.
    fn prefix(text: &str) -> Option<(Self, &str)> {
        Self::prefix_of_ours(text).or_else(|| Self::prefix_of_rclone(text))
    }

    fn prefix_of_ours(text: &str) -> Option<(Self, &str)> {
        let (job, rest) = text.split_at_checked(JOB_CHARS)?;
        let (time, numbers) = job.split_at_checked(TIME_CHARS)?;
        let mut numbers = numbers.strip_prefix('-')?.split('-');
        let (run, batch, attempt) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let attempt = Attempt { run: run.parse().ok()?, batch: u64::from_str_radix(batch, 16).ok()?, attempt: attempt.parse().ok()? };
        let is_time = time.bytes().zip(b"0000-00-00T00-00-00.000000000Z").all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        });
        let named = Self::of(time, attempt);
        // What is written otherwise than we write it is not ours: two texts must not name one attempt.
        (is_time && *named.text == *job).then_some((named, rest))
    }

    fn prefix_of_rclone(text: &str) -> Option<(Self, &str)> {
        let time = text.find("Z-").filter(|at| (19..TIME_CHARS).contains(at))?;
        let is_time = text[..time].bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b':' | b'T' | b'.'));
        let end = time + 2 + RUN_CHARS;
        let is_random = text.get(time + 2..end)?.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_job = is_time && is_random && text[..time].contains(':') && end <= FOREIGN_CHARS_MAX;
        is_job.then(|| (Self { text: text[..end].into(), attempt: None }, &text[end..]))
    }

    /// The name as text, without `.json`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Which attempt it is; none for rclone's, which are not numbered.
    pub fn attempt(&self) -> Option<Attempt> {
        self.attempt
    }

    /// The name under which the batch is offered again; none if it was offered too often for a name.
    pub fn next(&self) -> Option<Self> {
        let attempt = self.attempt?;
        let next = Attempt { attempt: attempt.attempt + 1, ..attempt };
        (next.attempt <= ATTEMPT_MAX).then(|| Self::of(&self.text[..TIME_CHARS], next))
    }

    /// The first name of another batch of the same run and the same age: of one that was split off.
    pub fn sibling(&self, batch: u64) -> Option<Self> {
        let attempt = self.attempt?;
        Some(Self::of(&self.text[..TIME_CHARS], Attempt { batch, attempt: 0, ..attempt }))
    }

    /// Where it waits.
    pub fn pending(&self) -> String {
        format!("queue/pending/{self}.json")
    }

    /// Where a worker keeps it.
    pub fn processing(&self, worker: &WorkerId) -> String {
        format!("queue/processing/{self}-{worker}.json")
    }

    /// Where its result appears.
    pub fn done(&self) -> String {
        format!("queue/done/{self}.json")
    }

    /// Record `number` of its log.
    pub fn log(&self, number: u32) -> String {
        format!("queue/claims/{self}.{number}")
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The number of a child that a batch with `width` numbers splits off, and the width that each of both has then; none if the batch has no number left to give.
///
/// A batch gives half of its numbers away with each split, so that no two splits can ever choose the same one.
pub(crate) fn child_of(batch: u64, width: u64) -> Option<(u64, u64)> {
    let half = width / 2;
    (half > 0 && width <= FAMILY).then(|| (batch + half * PLANNED_BATCHES_MAX, half))
}

/// The number of the planned batch that a batch came from.
pub(crate) fn planned_of(batch: u64) -> u64 {
    batch % PLANNED_BATCHES_MAX
}

/// Whose directory a run has for its records.
pub(crate) fn run_directory(run: RunId) -> String {
    format!("run/{run}")
}

/// A time as `2026-11-26T22-52-10.123456789Z`.
pub(crate) fn time_text(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Days to year, month and day, counted in years that begin with March, so that the leap day is the last one; 400 years have 146097 days.
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = (year_of_era + era * 400 + u64::from(month <= 2)).min(9_999);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{:09}Z", since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run() -> RunId {
        RunId::from_random([7; RUN_CHARS])
    }

    fn job(seconds: u64, nanos: u32, batch: u64, attempt: u32) -> JobName {
        JobName::new(UNIX_EPOCH + Duration::new(seconds, nanos), Attempt { run: run(), batch, attempt })
    }

    #[test]
    fn a_name_is_as_wide_whatever_the_time_and_is_read_back() {
        let early = job(1_764_197_530, 120_000_000, 3, 0);
        assert_eq!(early.as_str(), format!("2025-11-26T22-52-10.120000000Z-{}-000000000003-0000", run()));
        assert_eq!(early.as_str().len(), JOB_CHARS);
        assert_eq!(JobName::parse(&format!("{early}.json")), Some(early.clone()));
        assert!(early < job(1_764_197_530, 120_000_001, 0, 0), "rclone trims the zeros, so that .12Z sorts after .120000001Z");
        assert_eq!(early.next(), Some(job(1_764_197_530, 120_000_000, 3, 1)));
        assert_eq!(job(0, 0, 0, ATTEMPT_MAX).next(), None);
        assert_eq!(time_text(UNIX_EPOCH + Duration::from_secs(951_782_400)), "2000-02-29T00-00-00.000000000Z");
    }

    #[test]
    fn a_worker_id_may_have_any_hyphens() {
        let name = job(1, 2, 3, 4);
        for worker in ["0", "pod-7d4b-x2z", "-", "a.json", "w-000000000003-0000"] {
            let worker: WorkerId = worker.parse().expect("an id");
            let path = name.processing(&worker);
            assert_eq!(JobName::parse_claimed(path.rsplit_once('/').expect("a path").1), Some((name.clone(), worker)));
        }
        for worker in ["", ".hidden", "a/b", "a\nb", &"x".repeat(200)] {
            assert!(worker.parse::<WorkerId>().is_err(), "{worker:?}");
        }
    }

    #[test]
    fn names_that_rclone_wrote_are_read() {
        for time in ["2025-11-26T22:52:10Z", "2025-11-26T22:52:10.5Z", "2025-11-26T22:52:10.123456789Z"] {
            let name = JobName::parse(&format!("{time}-bahufok4fuqixec7jija.json")).expect("rclone's");
            assert_eq!((name.attempt(), name.as_str().len()), (None, time.len() + 21));
            let (claimed, worker) = JobName::parse_claimed(&format!("{name}-my-pod-3.json")).expect("claimed");
            assert_eq!((claimed, worker.as_str()), (name, "my-pod-3"));
        }
        for other in ["QUIT.json", "QUIT-w1.json", "readme.txt", "2025-11-26T22:52:10Z-short.json", "x.json", ".json", "Z-.json"] {
            assert_eq!(JobName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn no_two_splits_choose_one_number() {
        let mut seen = std::collections::BTreeSet::new();
        let mut open = vec![(5_u64, 1_u64 << 10)];
        while let Some((batch, width)) = open.pop() {
            match child_of(batch, width) {
                Some((child, half)) => open.extend([(batch, half), (child, half)]),
                None => assert!(seen.insert(batch), "{batch} twice"),
            }
            assert_eq!(planned_of(batch), 5);
        }
        assert_eq!(seen.len(), 1 << 10);
        assert!(child_of(PLANNED_BATCHES_MAX - 1, FAMILY).is_some_and(|(child, _)| child < 1 << (4 * BATCH_CHARS)));
    }

    proptest! {
        #[test]
        fn any_name_is_read_back_and_sorts_by_age(
            (a, b) in (0_u64..4_000_000_000, 0_u64..4_000_000_000),
            nanos in 0_u32..1_000_000_000,
            batch in 0_u64..1 << 48,
            attempt in 0..=ATTEMPT_MAX,
        ) {
            let (first, second) = (job(a, nanos, batch, attempt), job(b, nanos, batch, attempt));
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            prop_assert_eq!(JobName::parse(&format!("{first}.json")), Some(first.clone()));
            prop_assert_eq!(JobName::parse_log(&format!("{first}.7")), Some((first, 7)));
        }

        #[test]
        fn no_text_is_a_name_that_it_does_not_return_as(text in "\\PC{0,100}") {
            if let Some(name) = JobName::parse(&text) {
                prop_assert_eq!(format!("{name}.json"), text);
            }
        }
    }
}

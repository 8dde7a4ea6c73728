//! Sizes, spans of time and ages, spelt as on rclone's command line.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// What sizes without a suffix are counted in.
const KIBI: f64 = 1024.0;
const DAY_NS: f64 = 24.0 * 3600e9;
/// Largest number that floating point keeps exactly.
const EXACT_NUMBER_MAX: u64 = 1 << 53;
/// Longest text of a size, span or age that is looked at.
const TEXT_BYTES_MAX: usize = 100;

/// A size in bytes, or none: `10`, which is 10 KiB, `100B`, `1.5Mi`, `1Ti`, `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeSuffix(Option<u64>);

/// A span of time, or none: `90` seconds, `1h30m`, `1.5d`, `2w`, `1M` of thirty days, `1y` of 365, `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Option<Duration>);

/// How old something is: a [`Span`] before now, or a moment such as `2026-11-26`, `2026-11-26T22:00:00` (both local time) or one of RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// So long before now; off means that it does not matter.
    Span(Span),
    /// Since then.
    Moment(SystemTime),
}

/// Why a text is no [`SizeSuffix`], [`Span`] or [`Age`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct UnitError {
    text: String,
    what: &'static str,
}

impl SizeSuffix {
    /// No size at all.
    pub const OFF: Self = Self(None);

    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(Some(bytes))
    }

    /// In bytes; none if it is off.
    pub const fn bytes(self) -> Option<u64> {
        self.0
    }
}

impl Span {
    /// No span at all.
    pub const OFF: Self = Self(None);

    /// That long.
    pub const fn from_duration(duration: Duration) -> Self {
        Self(Some(duration))
    }

    /// How long; none if it is off.
    pub const fn duration(self) -> Option<Duration> {
        self.0
    }
}

impl Age {
    /// An age that does not matter.
    pub const OFF: Self = Self::Span(Span::OFF);

    /// The moment that is so long before `now`; none if it is off.
    pub fn before(self, now: SystemTime) -> Option<SystemTime> {
        match self {
            Self::Moment(moment) => Some(moment),
            Self::Span(span) => span.0.map(|span| now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH)),
        }
    }
}

impl Default for Age {
    fn default() -> Self {
        Self::OFF
    }
}

fn refused(text: &str, what: &'static str) -> UnitError {
    UnitError { text: text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned(), what }
}

/// A number such as `1`, `.5` or `1e3`, not negative and not beyond what fits.
fn number(text: &str) -> Option<f64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let number: f64 = text.parse().ok().filter(|_| is_plain && text.len() <= TEXT_BYTES_MAX)?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

fn multiplier(symbol: u8) -> Option<f64> {
    let power = b"kmgtpe".iter().position(|known| *known == symbol.to_ascii_lowercase())?;
    Some(KIBI.powi(power as i32 + 1))
}

impl FromStr for SizeSuffix {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::OFF);
        }
        let (digits, factor) = match *text.as_bytes() {
            [.., b'0'..=b'9' | b'.'] => (text, Some(KIBI)),
            [.., symbol, b'i', b'b' | b'B'] => (&text[..text.len() - 3], multiplier(symbol)),
            [.., b'b' | b'B'] => (&text[..text.len() - 1], Some(1.0)),
            [.., symbol, b'i' | b'I'] if symbol.is_ascii() => (&text[..text.len() - 2], multiplier(symbol)),
            [.., symbol] if symbol.is_ascii() => (&text[..text.len() - 1], multiplier(symbol)),
            _ => (text, None),
        };
        let bytes = factor.and_then(|factor| Some(number(digits)? * factor)).filter(|bytes| *bytes < i64::MAX as f64);
        bytes.map(|bytes| Self(Some(bytes as u64))).ok_or_else(|| refused(text, "size, such as 100B, 10M or 1.5Gi"))
    }
}

impl fmt::Display for SizeSuffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.0 else { return f.write_str("off") };
        // The largest unit that says it exactly, so that the text returns as the same size.
        let power = (0..=6u32).rev().find(|power| bytes > 0 && bytes % (1 << (10 * power)) == 0).unwrap_or(0);
        write!(f, "{}{}", bytes >> (10 * power), ["B", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power as usize])
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let ns = clock_span(text).or_else(|| long_span(text)).filter(|ns| *ns < i64::MAX.unsigned_abs());
        ns.map(|ns| Self(Some(Duration::from_nanos(ns)))).ok_or_else(|| refused(text, "span of time, such as 90s, 1h30m or 2d"))
    }
}

/// `1h30m`, in nanoseconds: any number of parts, each with its unit. Whole numbers are kept exactly.
fn clock_span(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1000),
        ("µs", 1000),
        ("μs", 1000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    if text == "0" {
        return Some(0);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut sum = None;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount = &rest[..digits];
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, ns) = UNITS.iter().find(|(name, _)| *name == &rest[..unit])?;
        rest = &rest[unit..];
        let part = match amount.parse::<u64>() {
            Ok(whole) => whole.checked_mul(*ns)?,
            Err(_) => (number(amount)? * *ns as f64) as u64,
        };
        sum = Some(u64::checked_add(sum.unwrap_or(0), part)?);
    }
    sum
}

/// `1.5d`, in nanoseconds: one number with one long unit, or of seconds.
fn long_span(text: &str) -> Option<u64> {
    let mut ns = None;
    for (unit, days) in [('d', 1.0), ('w', 7.0), ('M', 30.0), ('y', 365.0)] {
        if let Some(digits) = text.strip_suffix(unit) {
            ns = Some(number(digits)? * days * DAY_NS);
        }
    }
    let ns = ns.or_else(|| Some(number(text)? * 1e9))?;
    (ns < i64::MAX as f64).then_some(ns as u64)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(span) = self.0 else { return f.write_str("off") };
        let (seconds, ns) = (span.as_secs(), span.subsec_nanos());
        match (seconds, ns) {
            (0, 0) => f.write_str("0s"),
            (_, 0) if seconds % 86400 == 0 => write!(f, "{}d", seconds / 86400),
            (_, 0) => {
                for (amount, unit) in [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")] {
                    if amount > 0 {
                        write!(f, "{amount}{unit}")?;
                    }
                }
                Ok(())
            }
            (0, ns) => write!(f, "{ns}ns"),
            (seconds, ns) => write!(f, "{seconds}s{ns}ns"),
        }
    }
}

impl FromStr for Age {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if let Ok(span) = text.parse() {
            return Ok(Self::Span(span));
        }
        let local = |moment: jiff::civil::DateTime| moment.to_zoned(jiff::tz::TimeZone::system()).map(|moment| moment.timestamp());
        let moment = text.parse::<jiff::Timestamp>().or_else(|_| text.parse::<jiff::civil::DateTime>().and_then(local));
        moment.map(|moment| Self::Moment(moment.into())).map_err(|_| refused(text, "age, such as 2d, or day, such as 2026-11-26"))
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Span(span) => span.fmt(f),
            Self::Moment(moment) => match jiff::Timestamp::try_from(*moment) {
                Ok(moment) => moment.fmt(f),
                Err(_) => f.write_str("off"),
            },
        }
    }
}

/// A value of rclone's JSON: numbers and texts are both read.
pub(super) trait Json: Sized {
    fn to_json(&self) -> Value;
    fn from_json(value: &Value) -> Option<Self>;
}

impl Json for SizeSuffix {
    fn to_json(&self) -> Value {
        self.0.map_or(Value::from(-1), Value::from)
    }

    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => text.parse().ok(),
            _ => value.as_i64().map(|bytes| Self(u64::try_from(bytes).ok())),
        }
    }
}

impl Json for Span {
    fn to_json(&self) -> Value {
        // rclone passes its numbers through floating point, so larger ones are written as text, and so is its number for `off`.
        let number = self.0.and_then(|span| u64::try_from(span.as_nanos()).ok()).filter(|ns| *ns <= EXACT_NUMBER_MAX);
        number.map_or_else(|| Value::from(self.to_string()), Value::from)
    }

    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => text.parse().ok(),
            _ => match (value.as_u64(), value.as_f64()) {
                (Some(ns), _) if ns < i64::MAX.unsigned_abs() => Some(Self(Some(Duration::from_nanos(ns)))),
                (_, Some(number)) if number >= i64::MAX as f64 => Some(Self::OFF),
                _ => None,
            },
        }
    }
}

impl Json for Age {
    fn to_json(&self) -> Value {
        match self {
            Self::Span(span) => span.to_json(),
            Self::Moment(_) => Value::from(self.to_string()),
        }
    }

    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => text.parse().ok(),
            _ => Span::from_json(value).map(Self::Span),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_rclone_reads_them() {
        let cases: [(&str, u64); 14] = [
            ("0", 0),
            ("1", 1024),
            ("2.5", 2560),
            ("1B", 1),
            ("102B", 102),
            ("1k", 1024),
            ("1Ki", 1024),
            ("1KiB", 1024),
            ("1M", 1 << 20),
            ("1.g", 1 << 30),
            ("10Gi", 10 << 30),
            ("1Ti", 1 << 40),
            ("1P", 1 << 50),
            ("1E", 1 << 60),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(SizeSuffix::from_bytes(bytes)), "{text}");
        }
        assert_eq!("OFF".parse(), Ok(SizeSuffix::OFF));
        for text in ["", "1q", "-1", "1.q", "+-5", "1Kib2", "i", "Mi", "ü", "1ü", "üi", "100E", "nan", "infM", "1 M"] {
            assert!(text.parse::<SizeSuffix>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_are_read_as_rclone_reads_them() {
        let cases: [(&str, u64); 14] = [
            ("0", 0),
            ("15", 15_000),
            ("1ms", 1),
            ("1s", 1000),
            ("1m", 60_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("1d", 86_400_000),
            ("1.5d", 129_600_000),
            ("1w", 604_800_000),
            ("1M", 2_592_000_000),
            ("1y", 31_536_000_000),
            ("1m30", 0),
            ("1h1s1ms", 3_601_001),
        ];
        for (text, ms) in cases {
            let expected = if text == "1m30" { None } else { Some(Span::from_duration(Duration::from_millis(ms))) };
            assert_eq!(text.parse::<Span>().ok(), expected, "{text}");
        }
        assert_eq!("off".parse(), Ok(Span::OFF));
        for text in ["", "1x", "-1s", "h", "1d1h", "1e400", "300000d", "1 d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_age_is_a_span_or_a_moment() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!("1d".parse::<Age>().expect("an age").before(now), Some(now - Duration::from_secs(86400)));
        assert_eq!("off".parse::<Age>().expect("an age").before(now), None);
        let moment: Age = "1970-01-02T00:00:00Z".parse().expect("a moment");
        assert_eq!(moment.before(now), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(86400)));
        for text in ["2001-02-03", "2001-02-03T10:11:12", "2001-02-03 10:11:12"] {
            assert!(matches!(text.parse(), Ok(Age::Moment(_))), "{text}");
        }
        assert!("yesterday".parse::<Age>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_returns_as_the_same(bytes in 0..1u64 << 50, ns in 0..1u64 << 58) {
            let size = SizeSuffix::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            prop_assert_eq!(SizeSuffix::from_json(&size.to_json()), Some(size));
            let span = Span::from_duration(Duration::from_nanos(ns));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            prop_assert_eq!(Span::from_json(&span.to_json()), Some(span));
        }

        #[test]
        fn no_text_is_a_panic(text in any::<String>()) {
            let _ = (text.parse::<SizeSuffix>(), text.parse::<Span>(), text.parse::<Age>());
        }
    }
}

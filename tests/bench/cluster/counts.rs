//! Counts the connections that workers make, by listening to what they log. It costs them nothing but a look at the name of each record.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Width of what is counted together, in milliseconds.
pub(crate) const SLOT_MS: u64 = 100;

static SLOTS: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

fn slots() -> MutexGuard<'static, BTreeMap<u64, u64>> {
    SLOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970: the processes of one bench share the clock of one machine.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Connections made per slot, as `slot:count` words.
pub(crate) fn told() -> String {
    slots().iter().map(|(slot, count)| format!("{slot}:{count}")).collect::<Vec<_>>().join(" ")
}

/// What [`told`] said.
pub(crate) fn read(line: &str) -> BTreeMap<u64, u64> {
    let pair = |word: &str| word.split_once(':').and_then(|(slot, count)| Some((slot.parse().ok()?, count.parse().ok()?)));
    line.split_whitespace().map(|word| pair(word).expect("slot:count")).collect()
}

/// Counts from now on.
pub(crate) fn listen() {
    tracing::subscriber::set_global_default(Counter).expect("nobody else listens");
}

struct Counter;

#[derive(Default)]
struct IsConnected(bool);

impl Visit for IsConnected {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = matches!(format!("{value:?}").as_str(), "connected" | "redirected");
        }
    }
}

impl Subscriber for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target() == "nkcluster::worker::agent"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut seen = IsConnected::default();
        event.record(&mut seen);
        if seen.0 {
            *slots().entry(now_ms() / SLOT_MS).or_default() += 1;
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The most in any ten slots in a row.
pub(crate) fn peak_of_a_second(slots: &BTreeMap<u64, u64>) -> u64 {
    let width = 1000 / SLOT_MS;
    slots.keys().map(|first| slots.range(*first..first + width).map(|(_, count)| *count).sum()).max().unwrap_or(0)
}

/// Seconds since `from`.
pub(crate) fn seconds_since(from: Instant) -> f64 {
    from.elapsed().as_secs_f64()
}

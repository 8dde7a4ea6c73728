//! Crashes on purpose, to prove that the fuzzers bite.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// `seeded_crash!("target", first, second, …)` panics if all conditions hold, in a fuzzer that runs with `NKCLUSTER_SEEDED_CRASH=1`; in every other build it is nothing.
///
/// Each condition is a branch of its own, so that coverage rewards every step on the way.
macro_rules! seeded_crash {
    ($target:literal, $($step:expr),+ $(,)?) => {
        if cfg!(feature = "libfuzzer") && $crate::seeded::is_on() {
            $crate::seeded::seeded_crash!(@steps $target, 1, $($step),+);
        }
    };
    (@steps $target:literal, $depth:expr, $step:expr $(, $more:expr)*) => {
        if $step {
            $crate::seeded::step($depth);
            $crate::seeded::seeded_crash!(@steps $target, $depth + 1, $($more),*);
        }
    };
    (@steps $target:literal, $depth:expr,) => {
        panic!(concat!("seeded crash of ", $target))
    };
}

pub(crate) use seeded_crash;

/// Whether this process proves that its fuzzer bites.
pub(crate) fn is_on() -> bool {
    static IS_ON: LazyLock<bool> = LazyLock::new(|| std::env::var_os("NKCLUSTER_SEEDED_CRASH").is_some_and(|value| value == "1"));
    *IS_ON
}

/// Tells each step when it is first taken: a proof that fails has got so far. A call also keeps the optimiser from joining the steps into one comparison.
#[inline(never)]
pub(crate) fn step(depth: u32) {
    DEPTH.fetch_max(depth, Ordering::Relaxed);
    if DEEPEST.fetch_max(depth, Ordering::Relaxed) < depth {
        eprintln!("step {depth} towards the seeded crash");
    }
}

/// Steps of the present input, and of the best one.
static DEPTH: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);

/// Runs a target on one input of libFuzzer, and tells whether the input may be kept.
///
/// While a seeded crash is looked for, inputs that took fewer steps than the best one are not: coverage still has to find each step, but it is looked for from
/// where the last one was found, and not from each of the hundreds of inputs that cover something else. The time of a proof has no long tail that way.
#[cfg(feature = "libfuzzer")]
pub fn tried(target: crate::Target, data: &[u8]) -> libfuzzer_sys::Corpus {
    DEPTH.store(0, Ordering::Relaxed);
    target(data);
    if is_on() && DEPTH.load(Ordering::Relaxed) < DEEPEST.load(Ordering::Relaxed) {
        return libfuzzer_sys::Corpus::Reject;
    }
    libfuzzer_sys::Corpus::Keep
}

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
    static DEEPEST: AtomicU32 = AtomicU32::new(0);
    if DEEPEST.fetch_max(depth, Ordering::Relaxed) < depth {
        eprintln!("step {depth} towards the seeded crash");
    }
}

//! Stories in which something happens at any moment, drawn from a seed that a failure names: `NKCLUSTER_MODEL_SEED=<seed>` draws the same again, though processes
//! never run the same twice; `NKCLUSTER_MODEL_SEEDS=<count>` runs a five-thousandth as many seeds.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Numbers that follow from a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Runs a story for so many seeds in an ordinary run; what it tells is told with a failure. `module` has the test.
pub(crate) fn for_each_seed(seeds: u64, module: &str, story: impl Fn(u64, &mut Vec<String>)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("NKCLUSTER_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NKCLUSTER_MODEL_SEEDS").map_or(seeds, |seeds| (seeds / 5000).max(1)),
    };
    for seed in seeds {
        let mut told = Vec::new();
        if let Err(wrong) = catch_unwind(AssertUnwindSafe(|| story(seed, &mut told))) {
            let told = told.join(", ");
            eprintln!("seed {seed}: {told}; to see the like: NKCLUSTER_MODEL_SEED={seed} cargo test --workspace --test daemon {module}");
            resume_unwind(wrong);
        }
    }
}

//! Models: the real machines of both roles in pairs, on a wire of real frames, under a virtual clock, against a reference that knows only what must be true.
//!
//! A script is drawn from a seed. What fails names its seed; `NKCLUSTER_MODEL_SEED=<seed>` runs that one alone, `NKCLUSTER_MODEL_SEEDS=<count>` that many instead of
//! the sample of an ordinary run. A model that finds nothing proves nothing: each one is also run with faults that are built in on purpose, and must find every one.

mod calls;
mod journal;

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use crate::proto::frame::{self, Frame};
use crate::proto::session::{Outbox, Session};

/// Within so many scripts a built-in fault must be found.
const SEEDS_FOR_A_FAULT: u64 = 1500;

/// Random numbers that are the same for ever (splitmix64).
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    pub(super) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// What a script found to be wrong.
pub(super) type Found = Result<(), String>;

/// Frames that a session has to send, as they stand on the wire.
pub(super) fn take_frames<T>(session: &mut Session<T>, wire: &mut VecDeque<Frame>) {
    let (mut outbox, mut bytes) = (Outbox::default(), BytesMut::new());
    while session.has_output() {
        session.transmit(&mut outbox, 128 * 1024, &mut Vec::new());
        for piece in outbox.pieces() {
            bytes.put_slice(piece);
        }
        let all = outbox.len();
        outbox.advance(all);
        outbox.drained();
    }
    while let Some(frame) = frame::take_frame(&mut bytes, frame::BYTES_MAX).expect("a session sends valid frames") {
        wire.push_back(frame);
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Runs the scripts of many seeds, which must find nothing.
pub(super) fn holds(name: &str, seeds: u64, script: impl Fn(u64) -> Found) {
    let seeds = match number("NKCLUSTER_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NKCLUSTER_MODEL_SEEDS").unwrap_or(seeds),
    };
    for seed in seeds {
        if let Err(wrong) = script(seed) {
            panic!("{wrong}\nto see it again: NKCLUSTER_MODEL_SEED={seed} cargo test -p nkcluster --lib {name}");
        }
    }
}

/// Runs the scripts until one finds the fault that is built in.
pub(super) fn finds(fault: &str, script: impl Fn(u64) -> Found) {
    let found = (0..SEEDS_FOR_A_FAULT).find_map(|seed| script(seed).err().map(|wrong| (seed, wrong)));
    match found {
        Some((seed, wrong)) => println!("{fault}: found with seed {seed}: {wrong}"),
        None => panic!("{fault} was not found with {SEEDS_FOR_A_FAULT} seeds"),
    }
}

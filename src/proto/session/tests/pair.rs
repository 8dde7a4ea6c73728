//! Two sessions and the wire between them.

use std::collections::VecDeque;

use super::*;

pub(super) const DIALLER: usize = 0;
pub(super) const LISTENER: usize = 1;

/// What the harness breaks on purpose, to show that a property notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Nothing.
    None,
    /// One reply vanishes on the way.
    LosesReply,
    /// One frame of stream data arrives twice.
    RepeatsData,
}

/// One end: a session with what a shell keeps beside it.
pub(super) struct End {
    pub(super) session: Session<u64>,
    /// What arrived and was not looked at.
    pub(super) incoming: Vec<Incoming<u64>>,
    pub(super) fault: Option<Fault>,
    pub(super) writable: Vec<StreamKey>,
    outbox: Outbox,
    buffer: BytesMut,
}

/// Two ends, and bytes on their way: each piece with the moment of its arrival.
pub(super) struct Pair {
    pub(super) ends: [End; 2],
    on_the_way: [VecDeque<(u64, Bytes)>; 2],
    now: u64,
    random: u64,
    mutant: Mutant,
    pub(super) cut: bool,
}

impl Pair {
    pub(super) fn new(seed: u64) -> Self {
        Self::between(seed, Role::Control, Role::Control)
    }

    pub(super) fn between(seed: u64, dialler: Role, listener: Role) -> Self {
        let end = |side, peer| End {
            session: Session::new(side, peer),
            incoming: Vec::new(),
            fault: None,
            writable: Vec::new(),
            outbox: Outbox::default(),
            buffer: BytesMut::new(),
        };
        let ends = [end(Side::Dialler, listener), end(Side::Listener, dialler)];
        Self { ends, on_the_way: Default::default(), now: 0, random: seed, mutant: Mutant::None, cut: false }
    }

    pub(super) fn with(mut self, mutant: Mutant) -> Self {
        self.mutant = mutant;
        self
    }

    pub(super) fn session(&mut self, end: usize) -> &mut Session<u64> {
        &mut self.ends[end].session
    }

    /// Takes what arrived at an end.
    pub(super) fn incoming(&mut self, end: usize) -> Vec<Incoming<u64>> {
        std::mem::take(&mut self.ends[end].incoming)
    }

    /// A number below `bound` (splitmix64: good enough, and the same on every run).
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// One turn of an end's writer.
    pub(super) fn write(&mut self, end: usize, bytes_max: usize) {
        let delay = self.below(20);
        let End { session, outbox, writable, .. } = &mut self.ends[end];
        session.transmit(outbox, bytes_max, writable);
        let mut bytes = BytesMut::new();
        drain(outbox, &mut bytes);
        if self.cut || bytes.is_empty() {
            return;
        }
        let to = &mut self.on_the_way[1 - end];
        // Bytes never overtake each other.
        let at = to.back().map_or(0, |(at, _)| *at).max(self.now + delay);
        to.push_back((at, bytes.freeze()));
    }

    /// One turn of an end's reader: at most `bytes_max` of what has arrived by now.
    pub(super) fn read(&mut self, end: usize, bytes_max: usize) {
        let Some((at, piece)) = self.on_the_way[end].front_mut() else { return };
        if *at > self.now {
            return;
        }
        let bytes = piece.split_to(piece.len().min(bytes_max));
        if piece.is_empty() {
            self.on_the_way[end].pop_front();
        }
        let End { session, incoming, fault, buffer, .. } = &mut self.ends[end];
        buffer.put_slice(&bytes);
        loop {
            match frame::take_frame(buffer, frame::BYTES_MAX) {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    let repeat = match (self.mutant, frame.kind) {
                        (Mutant::LosesReply, Kind::Reply) => {
                            self.mutant = Mutant::None;
                            continue;
                        }
                        (Mutant::RepeatsData, Kind::StreamData) if frame.body.len() > 5 => {
                            self.mutant = Mutant::None;
                            Some(frame.clone())
                        }
                        _ => None,
                    };
                    for frame in std::iter::once(frame).chain(repeat) {
                        if let Err(found) = session.handle_frame(frame, incoming) {
                            fault.get_or_insert(found);
                        }
                    }
                }
                Err(found) => {
                    fault.get_or_insert(found);
                    return;
                }
            }
        }
    }

    /// A random turn of a random end; time goes on.
    pub(super) fn turn(&mut self) {
        let end = self.below(2) as usize;
        // Now and then byte by byte, else anything up to more than a frame.
        let most = [1, 7, 300, 70_000, 300_000][self.below(5) as usize];
        let bytes = 1 + self.below(most) as usize;
        if self.below(2) == 0 {
            self.write(end, bytes);
        } else {
            self.read(end, bytes);
        }
        self.now += self.below(3);
    }

    /// Runs until nothing is on the way and nobody has anything to send.
    pub(super) fn settle(&mut self) {
        loop {
            for end in [DIALLER, LISTENER] {
                self.write(end, WRITE_BYTES);
                while !self.on_the_way[end].is_empty() {
                    self.now = self.now.max(self.on_the_way[end][0].0);
                    self.read(end, usize::MAX);
                }
            }
            let busy = self.ends.iter().any(|end| end.session.has_output()) || self.on_the_way.iter().any(|way| !way.is_empty());
            if !busy {
                return;
            }
        }
    }

    /// The socket ends: what is on the way is lost, both shells close their sessions. Returns the tokens of the unanswered calls.
    pub(super) fn cut(&mut self) -> [Vec<u64>; 2] {
        self.cut = true;
        self.on_the_way = Default::default();
        [DIALLER, LISTENER].map(|end| self.session(end).close(&error("the link was cut")).tokens)
    }

    pub(super) fn assert_no_fault(&self) {
        for (end, name) in self.ends.iter().zip(["dialler", "listener"]) {
            assert_eq!(end.fault, None, "at the {name}");
        }
    }
}

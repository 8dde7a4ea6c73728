//! Calls between handles and a worker, over two control nodes whose links are cut at any frame.
//!
//! ```text
//!   handles: Ledger, Attempts ─► control nodes: address, Session ═ frames ═ Session, Adoption ─► worker: Calls, Tasks
//! ```
//!
//! The reference counts what the worker really carried out. Whatever happens: nothing is done twice, every call has exactly one answer, the answer is that of the
//! one time that it was carried out, an answer that denies is true, and nothing is unknown unless a bound dropped it.

mod links;
mod worker;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Dice, Found, finds, holds, take_frames};
use crate::cluster::{Attempts, Failed, Ledger, Settled, address};
use crate::error::{Error, ErrorCode};
use crate::proto::auth::Role;
use crate::proto::frame::Frame;
use crate::proto::head::{CallHead, Outcome, Rank, Verb};
use crate::proto::identity::{CallIdentity, Ticket};
use crate::proto::message::{Adopt, Adopted, Fenced, Message, OutcomeAck};
use crate::proto::session::{Incoming, Session, Side};
use crate::types::{ClassName, Incarnation, NodeId, TaskId};
use crate::worker::adoption::{AdoptAnswer, AdoptRequest, Adoption, ChannelKey, Standing};
use crate::worker::calls::{Arrived, Asked, Calls};
use crate::worker::tasks::{EndReason, Tasks};

const STEPS: usize = 250;
const HANDLES: usize = 4;
const OWNERS: usize = 2;

/// What is built in to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The worker remembers no call.
    NoMemory,
    /// It forgets an outcome as soon as time passes.
    ForgetEarly,
    /// It carries out a retry of what it is carrying out.
    DoubleStart,
    /// Nobody looks which incarnation of the worker is meant.
    NoIncarnationCheck,
    /// A cut link tells its callers that nothing was done.
    AnswerNotRunAfterRun,
    /// The last attempt alone decides what the caller is told.
    DenyEarlierAttempt,
    /// A handle acknowledges what it waits for.
    AckBeforeAnswer,
    /// Every attempt has an identity of its own.
    NewIdentityForRetry,
    /// Nobody says that an attempt is not the first one.
    NoRetryFlag,
    /// Those who wait for a call that runs get no answer.
    ForgetWaiters,
}

const FAULTS: [Fault; 10] = [
    Fault::NoMemory,
    Fault::ForgetEarly,
    Fault::DoubleStart,
    Fault::NoIncarnationCheck,
    Fault::AnswerNotRunAfterRun,
    Fault::DenyEarlierAttempt,
    Fault::AckBeforeAnswer,
    Fault::NewIdentityForRetry,
    Fault::NoRetryFlag,
    Fault::ForgetWaiters,
];

/// What a script may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Nothing is ever dropped for lack of room; copies of calls come late over other paths.
    Ample,
    /// Few bytes for outcomes; late copies as well.
    FewBytes,
    /// Few edges and numbers too: then only handles repeat what they have sent.
    Tiny,
}

/// What comes back with an answer: the call and its attempt; none for a late copy.
type Token = Option<(usize, u32)>;
/// Whom the worker answers: link, channel, call.
type Caller = (usize, u16, u32);

/// A call of a handle.
struct Call {
    handle: usize,
    number: u64,
    attempts: Attempts,
    made: u32,
    patient: bool,
    deadline: Instant,
    state: State,
    /// The attempt that is on its way.
    sent: Option<(CallHead, Bytes)>,
    /// How often the worker carried it out, and with what result.
    runs: u32,
    result: Option<Bytes>,
    answer: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Another attempt will be made then.
    Pausing(Instant),
    /// Sent over this link, under this number there.
    Sent {
        link: usize,
        channel: u16,
        call: u32,
    },
    Answered,
}

/// A link between a control node and the worker. Either end may have gone while the other does not know yet.
struct Link {
    owner: usize,
    control: Option<Session<Token>>,
    worker: Option<Session<()>>,
    to_worker: VecDeque<Frame>,
    to_control: VecDeque<Frame>,
    channel: u16,
    /// Whether calls are sent over it.
    published: bool,
    incarnation: Incarnation,
}

struct Worker {
    incarnation: Incarnation,
    calls: Calls<Caller>,
    tasks: Tasks,
    adoption: Adoption,
    /// What it carries out, and for whom: the identity, the call of the model, the first caller, the task that is starting.
    running: Vec<(CallIdentity, usize, Caller, Option<TaskId>)>,
}

/// A copy of a call on its way through somewhere else, until when it may still come, and what it is about.
struct LateCopy {
    head: CallHead,
    payload: Bytes,
    until: Instant,
}

struct World {
    dice: Dice,
    fault: Option<Fault>,
    room: Room,
    now: Instant,
    ledgers: Vec<Ledger>,
    calls: Vec<Call>,
    links: Vec<Link>,
    copies: Vec<LateCopy>,
    worker: Worker,
    restarts: u8,
    tasks_made: u32,
    /// What was found in the middle of a step.
    wrong: Option<String>,
}

fn class() -> ClassName {
    ClassName::new("model").expect("a valid name")
}

fn node() -> NodeId {
    NodeId::new("w1").expect("a valid name")
}

fn edge(handle: usize) -> Incarnation {
    Incarnation::from_bytes([100 + handle as u8; 16])
}

fn life(restarts: u8) -> Incarnation {
    Incarnation::from_bytes([1 + restarts; 16])
}

fn key(link: usize, channel: u16) -> ChannelKey {
    ChannelKey((link as u64) << 16 | u64::from(channel))
}

impl Worker {
    fn new(restarts: u8, room: Room) -> Self {
        let incarnation = life(restarts);
        let calls = match room {
            Room::Ample => Calls::new(incarnation, usize::MAX),
            Room::FewBytes => Calls::new(incarnation, 1500),
            Room::Tiny => Calls::with_tables(incarnation, 1500, 2, 2),
        };
        let adoption = Adoption::new(incarnation, Duration::from_secs(5));
        Self { incarnation, calls, tasks: Tasks::new(), adoption, running: Vec::new() }
    }
}

impl World {
    fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut dice = Dice::new(seed);
        let room = [Room::Ample, Room::Ample, Room::FewBytes, Room::Tiny][dice.below(4)];
        Self {
            dice,
            fault,
            room,
            now: Instant::now(),
            ledgers: (0..HANDLES).map(|_| Ledger::new()).collect(),
            calls: Vec::new(),
            links: Vec::new(),
            copies: Vec::new(),
            worker: Worker::new(0, room),
            restarts: 0,
            tasks_made: 0,
            wrong: None,
        }
    }

    fn fails(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    // ---- handles

    fn begin_call(&mut self) {
        let handle = self.dice.below(HANDLES);
        let number = self.ledgers[handle].begin();
        let (verb, task) = match self.dice.below(3) {
            0 => (Verb::Request, None),
            1 => {
                self.tasks_made += 1;
                (Verb::Task, Some(format!("t{}", self.tasks_made)))
            }
            _ => (Verb::Command, Some(format!("t{}", 1 + self.dice.below(self.tasks_made as usize + 1)))),
        };
        let timeout = Duration::from_secs(2 + self.dice.below(60) as u64);
        let head = CallHead {
            verb,
            timeout_ms: timeout.as_millis() as u32,
            identity: CallIdentity { edge: edge(handle), number },
            retry: false,
            incarnation: Incarnation::default(),
            node: None,
            class: Some(class()),
            task: task.map(|task| TaskId::new(task).expect("a valid name")),
            exclusive: false,
            hops: 0,
        };
        self.calls.push(Call {
            handle,
            number,
            attempts: Attempts::new(head),
            made: 0,
            patient: self.dice.percent(85),
            deadline: self.now + timeout,
            state: State::Pausing(self.now),
            sent: None,
            runs: 0,
            result: None,
            answer: None,
        });
        self.attempt(self.calls.len() - 1);
    }

    fn attempt(&mut self, index: usize) {
        if self.fault == Some(Fault::NewIdentityForRetry) && self.calls[index].made > 0 {
            let handle = self.calls[index].handle;
            self.calls[index].attempts.head.identity.number = self.ledgers[handle].begin();
        }
        let published: Vec<usize> =
            (0..self.links.len()).filter(|link| self.links[*link].published && self.links[*link].control.is_some()).collect();
        let call = &mut self.calls[index];
        call.made += 1;
        if published.is_empty() {
            return self.failed(index, Error::new(ErrorCode::NotConnected, "away"));
        }
        let number = published[self.dice.below(published.len())];
        let link = &mut self.links[number];
        let mut head = call.attempts.head.clone();
        head.timeout_ms = call.deadline.saturating_duration_since(self.now).as_millis() as u32;
        if self.fault == Some(Fault::NoRetryFlag) {
            head.retry = false;
        }
        if self.fault == Some(Fault::NoIncarnationCheck) {
            head.incarnation = Incarnation::default();
        }
        if let Err(error) = address(&mut head, link.incarnation) {
            return self.failed(index, error);
        }
        let payload = Bytes::copy_from_slice(&(index as u64).to_be_bytes());
        let Some(session) = link.control.as_mut() else { return };
        match session.call(link.channel, &head, &payload, false, Some((index, call.made))) {
            Ok((sent, _)) => {
                call.state = State::Sent { link: number, channel: link.channel, call: sent };
                call.sent = Some((head, payload));
                if self.fault == Some(Fault::AckBeforeAnswer) {
                    let (handle, number) = (call.handle, call.number);
                    self.ledgers[handle].end(number, &node(), 0);
                }
            }
            Err(unsent) => self.failed(index, unsent.error),
        }
        self.flush(number);
    }

    fn failed(&mut self, index: usize, error: Error) {
        let pause = Duration::from_millis(20 + self.dice.below(180) as u64);
        let call = &mut self.calls[index];
        let failed = call.attempts.failed(error.clone());
        let deny = |told: Error| if self.fault == Some(Fault::DenyEarlierAttempt) { error } else { told };
        match failed {
            Failed::MayTryAgain(_) if call.patient && self.now + pause < call.deadline => call.state = State::Pausing(self.now + pause),
            Failed::MayTryAgain(told) | Failed::Final(told) => {
                let told = deny(told);
                self.answered(index, Err(told));
            }
        }
    }

    fn answered(&mut self, index: usize, outcome: Outcome) {
        let call = &mut self.calls[index];
        if call.answer.is_some() {
            return self.fails(format!("call {index} was answered twice"));
        }
        call.state = State::Answered;
        call.answer = Some(outcome);
        let (handle, number) = (call.handle, call.number);
        if self.ledgers[handle].end(number, &node(), 100) {
            let settled = self.ledgers[handle].take(&node());
            self.acknowledge(handle, settled);
        }
    }

    /// Over whichever control node; it may be lost.
    fn acknowledge(&mut self, handle: usize, settled: Settled) {
        let alive: Vec<usize> =
            (0..self.links.len()).filter(|link| self.links[*link].published && self.links[*link].control.is_some()).collect();
        if alive.is_empty() || self.dice.percent(20) {
            return;
        }
        let link = alive[self.dice.below(alive.len())];
        let ack = OutcomeAck { edge: edge(handle), node: None, below: settled.below, ranges: settled.ranges };
        let channel = self.links[link].channel;
        if let Some(session) = self.links[link].control.as_mut() {
            session.message(channel, &Message::OutcomeAck(ack));
        }
        self.flush(link);
    }

    /// Nobody knows what becomes of the attempt: a relay may still hold it, and bring it later.
    fn lingers(&mut self, index: usize) {
        let call = &mut self.calls[index];
        if let Some((head, payload)) = call.sent.take() {
            self.copies.push(LateCopy { head, payload, until: call.deadline + Duration::from_secs(60) });
        }
    }

    /// The caller no longer waits.
    fn give_up(&mut self, index: usize, error: Error) {
        self.lingers(index);
        if let State::Sent { link, channel, call } = self.calls[index].state {
            if let Some(session) = self.links[link].control.as_mut() {
                session.forget_call(channel, call);
            }
            self.flush(link);
        }
        self.answered(index, Err(error));
    }

    // ---- time

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.worker.calls.expire(self.now);
        if self.fault == Some(Fault::ForgetEarly) {
            self.worker.calls.expire(self.now + Duration::from_secs(3600));
        }
        for index in 0..self.calls.len() {
            match self.calls[index].state {
                State::Answered => {}
                _ if self.calls[index].deadline <= self.now => {
                    let error = Error::new(ErrorCode::Timeout, "too late").after_sending();
                    self.give_up(index, error);
                }
                State::Pausing(until) if until <= self.now => self.attempt(index),
                State::Pausing(_) | State::Sent { .. } => {}
            }
        }
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..12 => self.begin_call(),
            12..58 => self.deliver(),
            58..72 => self.work(),
            72..77 => {
                let time = Duration::from_millis(self.dice.below(400) as u64);
                self.wait(time);
            }
            77..79 => {
                let time = Duration::from_secs(self.dice.below(15) as u64);
                self.wait(time);
            }
            79..83 => self.connect(),
            83..85 => {
                let alive: Vec<usize> = (0..self.links.len()).filter(|link| self.links[*link].control.is_some()).collect();
                if !alive.is_empty() {
                    let link = alive[self.dice.below(alive.len())];
                    self.adopt(link);
                }
            }
            85..90 if !self.links.is_empty() => {
                let link = self.dice.below(self.links.len());
                if self.dice.percent(70) { self.control_lost(link) } else { self.worker_lost(link) }
            }
            90..94 => self.late_copy(),
            94..97 => {
                let handle = self.dice.below(HANDLES);
                let (settled, nodes) = self.ledgers[handle].take_all();
                if !nodes.is_empty() {
                    self.acknowledge(handle, settled);
                }
            }
            97 if self.dice.percent(30) => self.restart_worker(),
            98 => {
                let open: Vec<usize> = (0..self.calls.len()).filter(|index| self.calls[*index].state != State::Answered).collect();
                if !open.is_empty() {
                    let index = open[self.dice.below(open.len())];
                    self.give_up(index, Error::new(ErrorCode::Timeout, "given up").after_sending());
                }
            }
            _ => {}
        }
    }

    /// The network heals, and everything comes to its end.
    fn heal(&mut self) {
        for link in 0..self.links.len() {
            self.control_lost(link);
            self.worker_lost(link);
        }
        self.connect();
        // Retries arrive while what they repeat is still being carried out.
        for _ in 0..3 {
            while self.links.iter().any(|link| !link.to_worker.is_empty() || !link.to_control.is_empty()) {
                self.deliver();
            }
            self.wait(Duration::from_millis(100));
        }
        for _ in 0..20 {
            self.quiet();
            let last = self.links.len() - 1;
            if !self.links[last].published {
                self.adopt(last);
            }
            self.wait(Duration::from_millis(200));
        }
        self.begin_call();
        while self.calls.iter().any(|call| call.state != State::Answered) && self.wrong.is_none() {
            self.quiet();
            self.wait(Duration::from_millis(500));
        }
    }

    /// Everything that is on its way arrives, and everything that runs ends: then nobody waits for an answer.
    fn quiet(&mut self) {
        loop {
            while self.links.iter().any(|link| !link.to_worker.is_empty() || !link.to_control.is_empty()) {
                self.deliver();
            }
            if self.worker.running.is_empty() {
                break;
            }
            self.work();
        }
        if let Some(index) = self.calls.iter().position(|call| matches!(call.state, State::Sent { .. })) {
            self.fails(format!("call {index} waits for an answer that nobody owes it"));
        }
    }

    fn check(&self) -> Found {
        for (index, call) in self.calls.iter().enumerate() {
            let what = || format!("call {index} ({:?}, {:?} room)", call.attempts.head.verb, self.room);
            match &call.answer {
                None => return Err(format!("{} has no answer", what())),
                Some(Ok(reply)) => {
                    if call.runs != 1 || call.result.as_ref() != Some(reply) {
                        return Err(format!("{} was carried out {} times, and answered with something else", what(), call.runs));
                    }
                }
                Some(Err(error)) if !error.may_have_run() && call.runs > 0 => {
                    return Err(format!("{} was carried out, but its caller is told that it was not: {error}", what()));
                }
                Some(Err(error)) if *error.code() == ErrorCode::OutcomeUnknown && self.room == Room::Ample => {
                    return Err(format!("{} is unknown, though nothing was dropped", what()));
                }
                Some(Err(_)) => {}
            }
        }
        Ok(())
    }

    fn script(mut self) -> Found {
        self.connect();
        for _ in 0..STEPS {
            self.step();
            if let Some(wrong) = self.wrong.take() {
                return Err(wrong);
            }
        }
        self.heal();
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        self.check()?;
        // What a healthy cluster is asked it answers, whatever was before.
        match self.calls.last().map(|call| &call.answer) {
            Some(Some(Err(error))) if *error.code() == ErrorCode::NotConnected || *error.code() == ErrorCode::Timeout => {
                Err(format!("the last call got no answer of the worker: {error}"))
            }
            _ => Ok(()),
        }
    }
}

#[test]
fn nothing_is_done_twice_and_every_answer_is_true() {
    holds("nothing_is_done_twice_and_every_answer_is_true", 1500, |seed| World::new(seed, None).script());
}

#[test]
fn every_fault_that_is_built_in_is_found() {
    for fault in FAULTS {
        finds(&format!("{fault:?}"), |seed| World::new(seed, Some(fault)).script());
    }
}

#[test]
fn the_scripts_come_everywhere() {
    let (mut answered, mut waited, mut unknown, mut refused, mut late) = (0, 0, 0, 0, 0);
    for seed in 0..100 {
        let mut world = World::new(seed, None);
        world.connect();
        for _ in 0..STEPS {
            world.step();
        }
        world.heal();
        for call in &world.calls {
            match &call.answer {
                Some(Ok(_)) if call.made > 1 => waited += 1,
                Some(Ok(_)) => answered += 1,
                Some(Err(error)) if *error.code() == ErrorCode::OutcomeUnknown => unknown += 1,
                Some(Err(error)) if *error.code() == ErrorCode::Timeout => late += 1,
                _ => refused += 1,
            }
        }
    }
    println!("answered {answered}, after a retry {waited}, unknown {unknown}, refused {refused}, late {late}");
    assert!(answered > 300 && waited > 100 && unknown > 5 && refused > 50 && late > 50);
}

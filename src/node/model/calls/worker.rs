//! The worker: what its handler and its executor do, with work that takes as long as the script wants.

use super::*;

impl World {
    pub(super) fn worker_hears(&mut self, number: usize) {
        let link = &mut self.links[number];
        let (Some(frame), Some(session)) = (link.to_worker.pop_front(), link.worker.as_mut()) else { return };
        let mut incoming = Vec::new();
        if let Err(fault) = session.handle_frame(frame, &mut incoming) {
            return self.fails(format!("the control node broke the protocol: {fault}"));
        }
        for incoming in incoming {
            match incoming {
                Incoming::Call { channel, call, head, payload, .. } => self.arrived((number, channel, call), &head, &payload),
                Incoming::Message { channel, message: Message::Adopt(adopt) } => self.adopted(number, channel, adopt),
                Incoming::Message { channel, message: Message::OutcomeAck(ack) }
                    if self.worker.adoption.check(key(number, channel)) == Standing::Current =>
                {
                    self.worker.calls.settle(ack.edge, ack.below, &ack.ranges);
                }
                _ => {}
            }
        }
    }

    pub(super) fn adopted(&mut self, number: usize, channel: u16, adopt: Adopt) {
        let request = AdoptRequest {
            channel: key(number, channel),
            worker_incarnation: adopt.worker_incarnation,
            seen_term: adopt.seen_term,
            owner: adopt.owner,
            owner_incarnation: adopt.owner_incarnation,
            rank: adopt.rank,
            ticket: adopt.ticket,
        };
        let answer = match self.worker.adoption.adopt(request, Ticket::from_bytes([9; 16]), self.now) {
            AdoptAnswer::Granted { term, ticket, .. } => Adopted::Granted { term, ticket },
            AdoptAnswer::Refused { term, holder, reason } => Adopted::Refused { term, holder, reason: reason.name().to_owned() },
        };
        if let Some(session) = self.links[number].worker.as_mut() {
            session.message(channel, &Message::Adopted(answer));
        }
    }

    pub(super) fn arrived(&mut self, caller: Caller, head: &CallHead, payload: &Bytes) {
        let (number, channel, call) = caller;
        if let Standing::Fenced { term, holder } = self.worker.adoption.check(key(number, channel)) {
            if let Some(session) = self.links[number].worker.as_mut() {
                session.message(channel, &Message::Fenced(Fenced { term, holder }));
                session.reply(channel, call, &Err(Error::new(ErrorCode::Fenced, "held by another one")));
            }
            return;
        }
        let index = u64::from_be_bytes(payload[..].try_into().expect("eight bytes")) as usize;
        let mut asked = Asked::new(head, self.now + Duration::from_millis(u64::from(head.timeout_ms)));
        match self.fault {
            Some(Fault::NoIncarnationCheck) => asked.incarnation = Incarnation::default(),
            Some(Fault::NoMemory) => self.worker.calls = Calls::new(self.worker.incarnation, usize::MAX),
            _ => {}
        }
        match self.worker.calls.arrive(asked, caller, self.now) {
            Arrived::Execute(caller) => self.execute(caller, head, index),
            Arrived::Waits if self.fault == Some(Fault::DoubleStart) => self.execute(caller, head, index),
            Arrived::Waits => {}
            Arrived::Answer(caller, outcome) => self.reply(caller, &outcome),
        }
    }

    pub(super) fn execute(&mut self, caller: Caller, head: &CallHead, index: usize) {
        let identity = head.identity;
        if self.dice.percent(5) {
            let busy = Err(Error::new(ErrorCode::Busy, "no room"));
            let waiters = self.worker.calls.abandon(identity);
            return waiters.into_iter().chain([caller]).for_each(|caller| self.reply(caller, &busy));
        }
        let task = head.task.clone().filter(|_| head.verb != Verb::Request);
        let refused = match (&task, head.verb) {
            (Some(task), Verb::Task) => self.worker.tasks.start(&class(), task, 0).err(),
            (Some(task), _) if self.worker.tasks.row(&class(), task).is_none() => Some(Error::new(ErrorCode::TaskNotFound, "no such task")),
            _ => None,
        };
        if let Some(error) = refused {
            return self.finish(identity, caller, Err(error));
        }
        self.calls[index].runs += 1;
        let lives = self.calls[index].runs;
        if lives > 1 {
            self.fails(format!("call {index} ({:?}) was carried out {lives} times", head.verb));
        }
        self.worker.running.push((identity, index, caller, task.filter(|_| head.verb == Verb::Task)));
    }

    /// Something that the worker carries out comes to its end.
    pub(super) fn work(&mut self) {
        if self.worker.running.is_empty() {
            return;
        }
        let which = self.dice.below(self.worker.running.len());
        let (identity, index, caller, task) = self.worker.running.swap_remove(which);
        if let Some(task) = task {
            self.worker.tasks.started(&class(), &task);
            if self.dice.percent(30) {
                self.worker.tasks.ended(&class(), &task, EndReason::Normal);
            }
        }
        let mut result = vec![0; 8 + self.dice.below(600)];
        result[..8].copy_from_slice(&self.dice.next().to_be_bytes());
        let result = Bytes::from(result);
        self.calls[index].result.get_or_insert(result.clone());
        self.finish(identity, caller, Ok(result));
    }

    pub(super) fn finish(&mut self, identity: CallIdentity, caller: Caller, outcome: Outcome) {
        let mut waiters = self.worker.calls.finish(identity, &outcome, self.now);
        if self.fault == Some(Fault::ForgetWaiters) {
            waiters.clear();
        }
        waiters.into_iter().chain([caller]).for_each(|caller| self.reply(caller, &outcome));
    }

    pub(super) fn reply(&mut self, (number, channel, call): Caller, outcome: &Outcome) {
        if let Some(session) = self.links[number].worker.as_mut() {
            session.reply(channel, call, outcome);
        }
        self.flush(number);
    }

    /// A copy of a call comes out of some relay.
    pub(super) fn late_copy(&mut self) {
        let current: Vec<usize> =
            (0..self.links.len()).filter(|link| self.links[*link].control.is_some() && self.links[*link].worker.is_some()).collect();
        if self.room == Room::Tiny || current.is_empty() || self.copies.is_empty() {
            return;
        }
        let copy = self.copies.swap_remove(self.dice.below(self.copies.len()));
        let number = current[self.dice.below(current.len())];
        let link = &mut self.links[number];
        if copy.until > self.now
            && let Some(session) = link.control.as_mut()
        {
            let _ = session.call(link.channel, &copy.head, &copy.payload, false, None);
        }
        self.flush(number);
    }
}

//! Links between two control nodes and the worker. Either end may find one cut before the other does.

use super::*;

impl World {
    pub(super) fn connect(&mut self) {
        let owner = self.dice.below(OWNERS);
        let mut control = Session::new(Side::Listener, Role::Worker);
        let channel = control.open_channel().expect("there is room");
        self.links.push(Link {
            owner,
            control: Some(control),
            worker: Some(Session::new(Side::Dialler, Role::Control)),
            to_worker: VecDeque::new(),
            to_control: VecDeque::new(),
            channel,
            published: false,
            incarnation: self.worker.incarnation,
        });
        self.adopt(self.links.len() - 1);
    }

    /// A control node wants the worker. What it knows of the term may be old.
    pub(super) fn adopt(&mut self, number: usize) {
        let old = self.dice.percent(10);
        let view = self.dice.below(3) as u32;
        let term = self.worker.adoption.term();
        let link = &mut self.links[number];
        let Some(session) = link.control.as_mut() else { return };
        let adopt = Adopt {
            worker_incarnation: link.incarnation,
            seen_term: term.saturating_sub(u64::from(old)),
            owner: NodeId::new(format!("c{}", link.owner)).expect("a valid name"),
            owner_incarnation: Incarnation::from_bytes([200 + link.owner as u8; 16]),
            rank: Rank { view, hash: link.owner as u64 },
            ticket: None,
            ping_ms: 5000,
        };
        session.message(link.channel, &Message::Adopt(adopt));
        self.flush(number);
    }

    pub(super) fn flush(&mut self, number: usize) {
        let link = &mut self.links[number];
        if let Some(session) = &mut link.control {
            take_frames(session, &mut link.to_worker);
        }
        if let Some(session) = &mut link.worker {
            take_frames(session, &mut link.to_control);
        }
    }

    /// The control node finds the link cut. What is on its way to the worker may still be read there.
    pub(super) fn control_lost(&mut self, number: usize) {
        let link = &mut self.links[number];
        let Some(mut session) = link.control.take() else { return };
        link.published = false;
        link.to_control.clear();
        if self.dice.percent(50) {
            let left = self.dice.below(link.to_worker.len() + 1);
            link.to_worker.truncate(left);
        }
        let incarnation = link.incarnation;
        let mut error = Error::new(ErrorCode::ConnectionFailed, "cut").addressed_to(incarnation);
        if self.fault != Some(Fault::AnswerNotRunAfterRun) {
            error = error.after_sending();
        }
        for (index, attempt) in session.close(&error).tokens.into_iter().flatten() {
            self.lingers(index);
            self.attempt_ended(index, attempt, Err(error.clone()));
        }
    }

    /// The worker finds the link cut. What is on its way to the control node may still be read there.
    pub(super) fn worker_lost(&mut self, number: usize) {
        let link = &mut self.links[number];
        link.worker = None;
        link.to_worker.clear();
        if self.dice.percent(50) {
            let left = self.dice.below(link.to_control.len() + 1);
            link.to_control.truncate(left);
        }
        self.worker.adoption.channel_closed(key(number, link.channel));
    }

    pub(super) fn restart_worker(&mut self) {
        for number in 0..self.links.len() {
            if self.links[number].worker.is_some() {
                self.worker_lost(number);
            }
        }
        self.restarts += 1;
        self.worker = Worker::new(self.restarts, self.room);
    }

    pub(super) fn deliver(&mut self) {
        let links: Vec<usize> = (0..self.links.len())
            .filter(|link| !self.links[*link].to_worker.is_empty() || !self.links[*link].to_control.is_empty())
            .collect();
        if links.is_empty() {
            return;
        }
        let number = links[self.dice.below(links.len())];
        let towards_worker =
            self.links[number].to_control.is_empty() || (!self.links[number].to_worker.is_empty() && self.dice.percent(50));
        if towards_worker {
            self.worker_hears(number)
        } else {
            self.control_hears(number)
        }
        self.flush(number);
    }

    pub(super) fn control_hears(&mut self, number: usize) {
        let link = &mut self.links[number];
        let (Some(frame), Some(session)) = (link.to_control.pop_front(), link.control.as_mut()) else { return };
        let mut incoming = Vec::new();
        if let Err(fault) = session.handle_frame(frame, &mut incoming) {
            return self.fails(format!("the worker broke the protocol: {fault}"));
        }
        let incarnation = link.incarnation;
        for incoming in incoming {
            match incoming {
                Incoming::Reply { token: Some((index, attempt)), outcome } => {
                    let told = outcome.map_err(|error| match error.code() {
                        ErrorCode::Fenced => Error::new(ErrorCode::NotConnected, "fenced"),
                        _ => error.addressed_to(incarnation),
                    });
                    self.attempt_ended(index, attempt, told);
                }
                Incoming::Message { message: Message::Adopted(Adopted::Granted { .. }), .. } => self.links[number].published = true,
                Incoming::Message { message: Message::Fenced(_), .. } => self.links[number].published = false,
                _ => {}
            }
        }
    }

    pub(super) fn attempt_ended(&mut self, index: usize, attempt: u32, outcome: Outcome) {
        let call = &self.calls[index];
        if call.made != attempt || !matches!(call.state, State::Sent { .. }) {
            return self.fails(format!("attempt {attempt} of call {index} ended twice"));
        }
        match outcome {
            Ok(reply) => self.answered(index, Ok(reply)),
            Err(error) => self.failed(index, error),
        }
    }
}

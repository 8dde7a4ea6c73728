//! One master for each name, among those that stand for it (checklist N1.13, A14 23 to 25).
//!
//! A process that wants to do what only one should do [stands](Election::stand) for a name. The first that registered is the master; the others know it, and
//! the next in order follows it. The list of a name is a [placed actor](super::PlacedActor): it moves with the ring, and is made anew by the candidates
//! themselves, who register again and again, if nothing is left of it.
//!
//! The mastership is a lease: a candidate that has not been heard for [`SILENCE_MAX`] loses its place, and believes in itself only for [`BELIEF_MAX`] after it
//! last asked successfully, and a list that was lost names nobody until then. So two candidates never both take themselves for the master, as long as clocks run at the same rate and the control nodes
//! are not split; in a split each side has one. What must never be done twice belongs to a worker, or behind conditional storage.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::placed::{PlacedActor, PlacedCalls, PlacedContext};
use crate::cluster::{Cluster, random_incarnation};
use crate::error::Result;
use crate::types::{ClassName, Incarnation};

/// Pause between two registrations of a candidate.
const AGAIN: Duration = Duration::from_millis(500);
/// A candidate that is not heard for this long has gone.
pub const SILENCE_MAX: Duration = Duration::from_millis(2500);
/// A candidate that could not ask for this long knows of no master.
pub const BELIEF_MAX: Duration = Duration::from_millis(2000);
/// Candidates of one name.
const CANDIDATES_MAX: usize = 4096;

/// Who stands for a name, as a candidate knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// In order of registration: the first one is the master.
    pub candidates: Vec<Incarnation>,
}

impl Standing {
    /// The master, if there is one.
    pub fn master(&self) -> Option<Incarnation> {
        self.candidates.first().copied()
    }
}

/// Elections, as an extension of [`Cluster`].
pub trait Election {
    /// Stands for a name until the candidate is dropped.
    fn stand(&self, name: &ClassName) -> Candidate;
}

impl Election for Cluster {
    fn stand(&self, name: &ClassName) -> Candidate {
        let id = random_incarnation();
        let standing = watch::Sender::new(Standing::default());
        let seen = standing.subscribe();
        let (leave, left) = watch::channel(());
        let task = tokio::spawn(campaign(self.clone(), name.clone(), id, standing, left));
        Candidate { id, seen, _leave: leave, task: Some(Arc::new(task)) }
    }
}

/// One that stands for a name. Dropped, it gives its place up at once.
#[derive(Debug)]
pub struct Candidate {
    id: Incarnation,
    seen: watch::Receiver<Standing>,
    /// Its end is seen by the campaign, which then says goodbye.
    _leave: watch::Sender<()>,
    task: Option<Arc<JoinHandle<()>>>,
}

impl Candidate {
    /// Its name among the candidates.
    pub fn id(&self) -> Incarnation {
        self.id
    }

    /// Whether it is the master now.
    pub fn is_master(&self) -> bool {
        self.seen.borrow().master() == Some(self.id)
    }

    /// The latest that is known, and every change of it. Without candidates nothing is known: there is no control node to ask.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.seen.clone()
    }

    /// Ends as a killed process would: without a word, so that its place falls to the next one only after [`SILENCE_MAX`].
    pub fn vanish(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn campaign(cluster: Cluster, name: ClassName, id: Incarnation, standing: watch::Sender<Standing>, mut left: watch::Receiver<()>) {
    let mut heard = Instant::now();
    loop {
        let asked = Instant::now();
        let message = Message::Register(id);
        tokio::select! {
            answer = cluster.placed::<Register>(name.as_str(), &message, BELIEF_MAX) => match answer {
                Ok(now) => {
                    heard = asked;
                    standing.send_if_modified(|before| (*before != now).then(|| *before = now).is_some());
                }
                Err(error) => tracing::debug!(%name, %error, "the candidates of a name cannot be asked"),
            },
            // A belief ends in time, also while an answer is awaited.
            () = tokio::time::sleep_until(heard + BELIEF_MAX) => {}
            _ = left.changed() => break,
        }
        if heard.elapsed() >= BELIEF_MAX {
            standing.send_if_modified(|before| !std::mem::take(before).candidates.is_empty());
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = tokio::time::sleep_until(heard + BELIEF_MAX), if !standing.borrow().candidates.is_empty() => {}
            _ = left.changed() => break,
        }
    }
    // If this is lost, silence says the same a little later.
    let _ = cluster.placed::<Register>(name.as_str(), &Message::Leave(id), BELIEF_MAX).await;
}

/// The list of one name.
pub(super) struct Register {
    candidates: Vec<(Incarnation, Instant)>,
    /// A list that begins with nothing names nobody until then: one whose list was lost may still take itself for the master.
    quiet_until: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    Register(Incarnation),
    Leave(Incarnation),
}

impl Register {
    fn enter(&mut self, candidate: Incarnation) {
        let now = Instant::now();
        match self.candidates.iter().position(|(known, _)| *known == candidate) {
            Some(place) => self.candidates[place].1 = now,
            None if self.candidates.len() < CANDIDATES_MAX => self.candidates.push((candidate, now)),
            None => {}
        }
    }

    fn list(&self) -> Vec<Incarnation> {
        self.candidates.iter().map(|(candidate, _)| *candidate).collect()
    }
}

impl PlacedActor for Register {
    const NAME: &'static str = "nkcluster.election";
    type Message = Message;
    type Reply = Standing;
    type Record = Vec<Incarnation>;

    async fn start(_: PlacedContext, record: Option<Vec<Incarnation>>) -> Result<Self> {
        // Each has the whole silence to be heard here.
        let now = Instant::now();
        let quiet_until = record.is_none().then(|| now + BELIEF_MAX);
        let candidates = record.unwrap_or_default().into_iter().take(CANDIDATES_MAX).map(|candidate| (candidate, now));
        Ok(Self { candidates: candidates.collect(), quiet_until })
    }

    async fn handle(&mut self, message: Message) -> Result<Standing> {
        self.candidates.retain(|(_, heard)| heard.elapsed() < SILENCE_MAX);
        match message {
            Message::Register(candidate) => self.enter(candidate),
            Message::Leave(candidate) => self.candidates.retain(|(known, _)| *known != candidate),
        }
        match self.quiet_until {
            Some(until) if Instant::now() < until => Ok(Standing::default()),
            _ => Ok(Standing { candidates: self.list() }),
        }
    }

    async fn hand_over(self) -> Vec<Incarnation> {
        self.list()
    }

    async fn join(&mut self, other: Vec<Incarnation>) {
        other.into_iter().for_each(|candidate| self.enter(candidate));
    }

    fn record(&self) -> Option<Vec<Incarnation>> {
        Some(self.list())
    }

    fn is_over(&self) -> bool {
        self.candidates.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(n: u8) -> Incarnation {
        Incarnation::from_bytes([n; 16])
    }

    async fn register(list: &mut Register, n: u8) -> Vec<Incarnation> {
        list.handle(Message::Register(who(n))).await.expect("registered").candidates
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_one_is_the_master_and_the_next_in_order_follows() {
        let mut list = Register { candidates: Vec::new(), quiet_until: None };
        for n in [3, 1, 2, 3] {
            register(&mut list, n).await;
        }
        assert_eq!(list.list(), [who(3), who(1), who(2)]);
        let left = list.handle(Message::Leave(who(3))).await.expect("left");
        assert_eq!(left.master(), Some(who(1)));
        // One that comes back stands behind all others.
        assert_eq!(register(&mut list, 3).await, [who(1), who(2), who(3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_silent_loses_its_place_and_not_before() {
        let mut list = Register { candidates: Vec::new(), quiet_until: None };
        register(&mut list, 1).await;
        register(&mut list, 2).await;
        tokio::time::advance(SILENCE_MAX - Duration::from_millis(1)).await;
        assert_eq!(register(&mut list, 2).await, [who(1), who(2)]);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(register(&mut list, 2).await, [who(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_was_lost_names_nobody_while_one_may_believe_in_itself() {
        let mut list = Register { candidates: Vec::new(), quiet_until: Some(Instant::now() + BELIEF_MAX) };
        assert_eq!(register(&mut list, 1).await, []);
        tokio::time::advance(BELIEF_MAX - Duration::from_millis(1)).await;
        assert_eq!(register(&mut list, 2).await, []);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(register(&mut list, 2).await, [who(1), who(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_order_survives_a_move_and_others_stand_behind_when_two_lists_join() {
        let mut list = Register { candidates: vec![(who(2), Instant::now()), (who(1), Instant::now())], quiet_until: None };
        list.join(vec![who(3), who(1)]).await;
        assert_eq!(list.hand_over().await, [who(2), who(1), who(3)]);
    }
}

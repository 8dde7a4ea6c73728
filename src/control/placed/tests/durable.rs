//! Actors of a durable kind: they go on without anybody who asks.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

pub(super) use super::super::durable::SETTLED;
use super::*;
use crate::types::ClassName;

/// Adds up what it is told, and counts how often it has begun.
pub(super) struct Account {
    ctx: PlacedContext,
    lives: u64,
    sum: Arc<AtomicU64>,
    over: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Balance {
    lives: u64,
    sum: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Say {
    Add(u64),
    /// Adds by itself, when [`GO`] is said.
    AddLater(u64),
    End,
}

/// Lets actors go on that add by themselves.
static GO: Notify = Notify::const_new();
/// Starts of actors that cannot: those whose key is `broken`.
static BROKEN_STARTS: AtomicU64 = AtomicU64::new(0);

pub(super) fn broken_starts() -> u64 {
    BROKEN_STARTS.load(Ordering::SeqCst)
}

impl PlacedActor for Account {
    const NAME: &'static str = "account";
    type Message = Say;
    type Reply = Balance;
    type Record = Balance;
    const DURABLE: bool = true;

    async fn start(ctx: PlacedContext, record: Option<Balance>) -> Result<Self> {
        if &*ctx.key == "broken" {
            BROKEN_STARTS.fetch_add(1, Ordering::SeqCst);
            return Err(Error::new(ErrorCode::Internal, "it does not start, as asked"));
        }
        if ctx.key.starts_with("stuck") {
            std::future::pending::<()>().await;
        }
        let Balance { lives, sum } = record.unwrap_or_default();
        Ok(Self { ctx, lives: lives + 1, sum: Arc::new(sum.into()), over: false })
    }

    async fn handle(&mut self, message: Say) -> Result<Balance> {
        match message {
            Say::Add(more) => drop(self.sum.fetch_add(more, Ordering::SeqCst)),
            Say::AddLater(more) => {
                let (ctx, sum) = (self.ctx.clone(), Arc::clone(&self.sum));
                tokio::spawn(async move {
                    GO.notified().await;
                    sum.fetch_add(more, Ordering::SeqCst);
                    ctx.recorded().await
                });
            }
            Say::End => self.over = true,
        }
        Ok(self.balance())
    }

    async fn hand_over(self) -> Balance {
        self.balance()
    }

    async fn join(&mut self, other: Balance) {
        self.lives = self.lives.max(other.lives);
        self.sum.fetch_max(other.sum, Ordering::SeqCst);
    }

    fn record(&self) -> Option<Balance> {
        Some(self.balance()).filter(|balance| balance.sum > 0)
    }

    fn is_over(&self) -> bool {
        self.over || self.record().is_none()
    }
}

impl Account {
    fn balance(&self) -> Balance {
        Balance { lives: self.lives, sum: self.sum.load(Ordering::SeqCst) }
    }
}

pub(super) fn key(name: &str) -> PlacedKey {
    PlacedKey { kind: ClassName::new(Account::NAME).expect("valid"), key: name.to_owned() }
}

fn hash(name: &str) -> u64 {
    KeyHash::of(name).bits()
}

pub(super) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_true() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Plane {
    pub(super) async fn say(&self, through: &str, name: &str, say: Say) -> Balance {
        self.cluster(through).placed::<Account>(name, &say, DEADLINE).await.expect("answered")
    }

    fn lives_at(&self, node: &str, name: &str) -> bool {
        self.node(node).shared.placed.lock().actors.contains_key(&key(name))
    }

    /// The sum in the copy of a node.
    fn kept_at(&self, node: &str, name: &str) -> Option<u64> {
        let record = self.node(node).shared.placed.lock().copies.find(&key(name))?;
        Some(Payload::from_bytes(record.bytes).decode::<Balance>().expect("its record").sum)
    }

    /// A key that this node owns, as the first one sees it.
    pub(super) fn name_of(&self, owner: &str) -> String {
        let view = self.nodes[0].shared.view();
        (0..).map(|number| format!("key{number}")).find(|name| view.ring.owner(name) == Some(&id(owner))).expect("it owns some")
    }

    /// Records in the state directory of a node.
    fn files(&self, node: &str) -> usize {
        let files = std::fs::read_dir(self._dir.path().join(node).join("placed")).into_iter().flatten();
        files.filter(|file| file.as_ref().is_ok_and(|file| file.path().extension().is_some_and(|ending| ending == "record"))).count()
    }

    /// Cuts a node off the others, and lets it do nothing; what lives there stays.
    async fn cut_off(&self, node: &str) {
        let shared = &self.node(node).shared;
        shared.view.send_modify(|view| Arc::make_mut(view).frozen = true);
        for link in shared.links() {
            link.close(Error::new(ErrorCode::ConnectionFailed, "cut by the test"));
            link.ended().await;
        }
        until("the others to miss it", || self.nodes.iter().all(|other| other.shared.peers.find(&id(node)).is_none())).await;
    }

    /// Has the same node back.
    fn join_again(&self, node: &str) {
        for other in self.nodes.iter().filter(|other| other.shared.id != id(node)) {
            link(&self.node(node).shared, &other.shared);
        }
        self.see(&ALL);
    }

    /// Lets a node see no other, and do nothing, as if it were away.
    fn send_away(&self, node: &str) {
        self.node(node).shared.view.send_modify(|view| Arc::make_mut(view).frozen = true);
        self.node(node).shared.placed.cut();
    }
}

#[tokio::test]
async fn what_changes_a_record_is_answered_when_it_is_kept_and_goes_on_elsewhere_without_a_message() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let name = plane.name_of("c3");
    plane.say("c1", &name, Say::Add(5)).await;
    assert_eq!(ALL.map(|node| (plane.kept_at(node, &name), plane.files(node))), [(Some(5), 1); 3]);
    plane.node("c3").cut();
    plane.see(&ALL[..2]);
    until("the next owner to start it", || ALL[..2].iter().any(|node| plane.lives_at(node, &name))).await;
    assert_eq!(plane.say("c1", &name, Say::Add(1)).await, Balance { lives: 2, sum: 6 });
}

#[tokio::test]
async fn a_record_that_changes_without_a_message_is_kept_too() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let name = plane.name_of("c2");
    plane.say("c2", &name, Say::Add(1)).await;
    plane.say("c2", &name, Say::AddLater(2)).await;
    GO.notify_one();
    until("it to be kept everywhere", || ALL.iter().all(|node| plane.kept_at(node, &name) == Some(3))).await;
}

#[tokio::test]
async fn a_restart_of_all_control_nodes_is_outlived() {
    let mut plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let name = plane.name_of("c1");
    plane.say("c2", &name, Say::Add(4)).await;
    for node in &plane.nodes {
        node.cut();
    }
    // Of one of them the disk is lost too.
    std::fs::remove_dir_all(plane._dir.path().join("c1")).expect("it has a directory");
    plane = Plane::start_in(&ALL, plane._dir).await;
    plane.see(&ALL);
    until("its owner to start it", || plane.lives_at("c1", &name)).await;
    assert_eq!(plane.say("c3", &name, Say::Add(1)).await, Balance { lives: 2, sum: 5 });
}

#[tokio::test]
async fn of_one_that_is_over_nothing_is_kept_but_a_mark_and_one_that_has_lived_on_elsewhere_is_taken_in() {
    let mut plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let name = plane.name_of("c1");
    plane.say("c1", &name, Say::Add(1)).await;
    let old = plane.node("c3").shared.placed.lock().copies.belongings(&key(&name)).expect("kept");
    plane.say("c1", &name, Say::End).await;
    until("nothing to be kept", || ALL.iter().all(|node| plane.kept_at(node, &name).is_none() && plane.files(node) == 0)).await;
    // Nobody is asked in vain whether it is there, and nothing remains of that.
    assert_eq!(plane.say("c2", &name, Say::Add(0)).await, Balance { lives: 1, sum: 0 });
    until("nothing to live", || !plane.lives_at("c1", &name)).await;
    // What comes late is refused, also after a restart of all.
    for node in &plane.nodes {
        node.cut();
    }
    plane = Plane::start_in(&ALL, plane._dir).await;
    plane.see(&ALL);
    until("the marks to be read", || ALL.iter().all(|node| *plane.node(node).shared.placed.is_loaded.borrow())).await;
    for node in ALL {
        let over = keep(&plane.node(node).shared, old.clone()).await.expect_err("it is over");
        assert!(over >= old.record.stamp);
    }
    // One that has lived on elsewhere, in a split, is no copy: nothing of it is lost.
    arrive(&plane.node("c1").shared, old).await.expect("it is taken");
    assert_eq!(plane.say("c2", &name, Say::Add(7)).await, Balance { lives: 2, sum: 8 });
    assert_eq!(ALL.map(|node| (plane.kept_at(node, &name), plane.files(node))), [(Some(8), 1); 3]);
}

#[tokio::test]
async fn a_node_that_was_away_when_an_actor_ended_does_not_bring_it_back_whether_it_owns_its_key_or_not() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    for owner in ["c1", "c3"] {
        let name = plane.name_of(owner);
        plane.say("c1", &name, Say::Add(1)).await;
        plane.send_away("c3");
        plane.see(&ALL[..2]);
        // The next one goes on with it, if it has to, and ends it.
        plane.say("c1", &name, Say::End).await;
        until("nothing to be kept", || ALL[..2].iter().all(|node| plane.kept_at(node, &name).is_none())).await;
        assert_eq!((plane.kept_at("c3", &name), plane.files("c3")), (Some(1), 1), "it was away");
        plane.see(&ALL);
        until("it to hear that the actor is over", || plane.kept_at("c3", &name).is_none() && plane.files("c3") == 0).await;
        // One that had come back would stay.
        until("nothing to live", || ALL.iter().all(|node| !plane.lives_at(node, &name))).await;
        // A new one is younger than the marks, and kept.
        assert_eq!(plane.say("c2", &name, Say::Add(5)).await, Balance { lives: 1, sum: 5 }, "{owner}");
        assert_eq!(ALL.map(|node| plane.kept_at(node, &name)), [Some(5); 3]);
        plane.say("c2", &name, Say::End).await;
        until("nothing to be kept", || ALL.iter().all(|node| plane.kept_at(node, &name).is_none() && plane.files(node) == 0)).await;
    }
}

#[tokio::test]
async fn one_that_lives_on_is_kept_where_it_was_over_meanwhile() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let name = plane.name_of("c3");
    plane.say("c1", &name, Say::Add(1)).await;
    plane.cut_off("c3").await;
    plane.see(&ALL[..2]);
    // The next one goes on with it and ends it, while it lives on where it was.
    plane.say("c1", &name, Say::End).await;
    let mark = |node| plane.node(node).shared.placed.lock().copies.over(&key(&name));
    until("the marks", || ALL[..2].iter().all(|node| mark(node).is_some())).await;
    plane.join_again("c3");
    assert_eq!(plane.say("c1", &name, Say::Add(7)).await, Balance { lives: 1, sum: 8 });
    assert_eq!(ALL.map(|node| (plane.kept_at(node, &name), plane.files(node), mark(node))), [(Some(8), 1, None); 3]);
    // Its age is above what was over, also for what it does from now on.
    plane.say("c1", &name, Say::Add(1)).await;
    plane.cut_off("c3").await;
    plane.see(&ALL[..2]);
    assert_eq!(plane.say("c1", &name, Say::Add(1)).await, Balance { lives: 2, sum: 10 });
}

#[tokio::test]
async fn a_hand_over_that_is_tried_again_brings_nothing_back() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let name = plane.name_of("c3");
    plane.say("c1", &name, Say::Add(5)).await;
    plane.see(&ALL[..2]);
    let view = plane.node("c1").shared.view();
    let owner = view.ring.owner(&name).expect("one of two").to_string();
    plane.node("c3").shared.view.send_replace(Arc::new(View { me: id("c3"), frozen: true, ..(*view).clone() }));
    let (record, _) = surrender(&plane.node("c3").shared, &key(&name), hash(&name)).await.expect("handed over");
    let handed_over = Belongings { key: key(&name), hash: hash(&name), record: record.expect("it lives there") };
    let arrives = async |belongings: &Belongings| arrive(&plane.node(&owner).shared, belongings.clone()).await.expect("it is taken");
    arrives(&handed_over).await;
    assert_eq!(plane.say("c1", &name, Say::Add(1)).await, Balance { lives: 2, sum: 6 });
    let ends = async || {
        plane.say("c1", &name, Say::End).await;
        until("nothing to be kept", || ALL[..2].iter().all(|node| plane.kept_at(node, &name).is_none() && plane.files(node) == 0)).await;
    };
    ends().await;
    // As if the answer had been lost.
    arrives(&handed_over).await;
    assert!(!plane.lives_at(&owner, &name) && plane.kept_at(&owner, &name).is_none(), "it was over");
    // Nor is it taken into another one of the key.
    assert_eq!(plane.say("c2", &name, Say::Add(2)).await, Balance { lives: 1, sum: 2 });
    arrives(&handed_over).await;
    assert_eq!(plane.say("c2", &name, Say::Add(1)).await, Balance { lives: 1, sum: 3 });
    ends().await;
    arrives(&handed_over).await;
    assert!(!plane.lives_at(&owner, &name), "it was over before that");
    // Another hand-over, of one that lived on elsewhere, is.
    let mut other = handed_over;
    other.record.hand_overs.push(7);
    arrives(&other).await;
    assert_eq!(plane.say("c1", &name, Say::Add(1)).await, Balance { lives: 2, sum: 6 });
}

#[tokio::test]
async fn a_copy_that_has_no_business_where_it_is_goes_to_the_owner() {
    let names = ["c1", "c2", "c3", "c4"];
    let plane = Plane::start(&names).await;
    plane.see(&names);
    let name = plane.name_of("c1");
    let view = plane.node("c1").shared.view();
    let next = view.ring.successors(view.ring.partition(&name), COPIES);
    let stranger = names[1..].iter().find(|node| !next.contains(&&id(node))).expect("four nodes, three that keep it");
    let bytes = Payload::encode(&Balance { lives: 1, sum: 9 }).expect("encoded").into_bytes().into();
    let record = Record { stamp: Stamp { life: 1, version: 1 }, hand_overs: HandOvers::default(), bytes };
    keep(&plane.node(stranger).shared, Belongings { key: key(&name), hash: hash(&name), record }).await.expect("kept");
    until("its owner to start it", || plane.lives_at("c1", &name)).await;
    until("the copy to go", || plane.kept_at(stranger, &name).is_none() && plane.files(stranger) == 0).await;
    assert_eq!(plane.say(stranger, &name, Say::Add(1)).await, Balance { lives: 2, sum: 10 });
}

#[tokio::test]
async fn what_is_recorded_after_a_join_is_newer_than_what_was_joined() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let name = plane.name_of("c1");
    plane.say("c1", &name, Say::Add(5)).await;
    // Another one of the key lived elsewhere for long; what it recorded is kept by others.
    let Belongings { key, hash, record } = plane.node("c1").shared.placed.lock().copies.belongings(&key(&name)).expect("kept");
    let bytes = Payload::encode(&Balance { lives: 1, sum: 3 }).expect("encoded").into_bytes().into();
    let stamp = Stamp { version: record.stamp.version + 1_000, ..record.stamp };
    let other = Belongings { key, hash, record: Record { stamp, hand_overs: HandOvers::default(), bytes } };
    keep(&plane.node("c3").shared, other.clone()).await.expect("kept");
    assert_eq!(plane.kept_at("c3", &name), Some(3));
    arrive(&plane.node("c1").shared, other).await.expect("it is joined");
    assert_eq!(ALL.map(|node| plane.kept_at(node, &name)), [Some(5); 3]);
    plane.say("c2", &name, Say::Add(1)).await;
    assert_eq!(ALL.map(|node| plane.kept_at(node, &name)), [Some(6); 3]);
}

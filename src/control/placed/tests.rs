//! Three control nodes with real links between them, whose views the test sets.

mod durable;
mod listing;

use std::collections::BTreeMap as Map;

use tokio::io::duplex;

use super::*;
use crate::cluster::{Cluster, random_incarnation};
use crate::config::Config;
use crate::connection::LinkParts;
use crate::connection::establish::{Established, Party};
use crate::control::view::Member;
use crate::control::{Control, peers};
use crate::job::election::{Candidate, Election as _};
use crate::job::{Classes, PlacedActor, PlacedCalls, PlacedContext};
use crate::proto::auth::{Identity, Keyring, KeyringInput, Peer, Role, VERSIONS};
use crate::proto::session::Side;
use crate::ring::RingSize;
use crate::transport::{CertificateCheck, DialOptions, Wire, WireFacts};
use crate::types::{Incarnation, Secret, Transport};

/// Far longer than anything here takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// Counts, by the life in which it counted, so that what two of them had can be joined.
struct Counter {
    life: String,
    counts: Map<String, u64>,
    recorded: bool,
    over: bool,
}

#[derive(Serialize, Deserialize)]
enum Say {
    Add(u64),
    Panic,
    Slow,
    End,
}

impl Counter {
    fn take(&mut self, counts: Map<String, u64>) {
        for (life, count) in counts {
            let own = self.counts.entry(life).or_default();
            *own = (*own).max(count);
        }
    }
}

impl PlacedActor for Counter {
    const NAME: &'static str = "counter";
    type Message = Say;
    type Reply = (NodeId, u64);
    type Record = Map<String, u64>;

    async fn start(ctx: PlacedContext, record: Option<Self::Record>) -> Result<Self> {
        let recorded = !ctx.key.starts_with("unrecorded");
        Ok(Self { life: format!("{}.{:?}", ctx.node, random_incarnation()), counts: record.unwrap_or_default(), recorded, over: false })
    }

    async fn handle(&mut self, message: Say) -> Result<Self::Reply> {
        match message {
            Say::Add(more) => *self.counts.entry(self.life.clone()).or_default() += more,
            Say::Panic => panic!("as asked"),
            Say::Slow => tokio::task::yield_now().await,
            Say::End => self.over = true,
        }
        let node = self.life.split('.').next().expect("the name of the node");
        Ok((NodeId::new(node)?, self.counts.values().sum()))
    }

    async fn hand_over(self) -> Self::Record {
        self.counts
    }

    async fn join(&mut self, other: Self::Record) {
        self.take(other);
    }

    fn record(&self) -> Option<Self::Record> {
        self.recorded.then(|| self.counts.clone())
    }

    fn is_over(&self) -> bool {
        self.over
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

struct Plane {
    nodes: Vec<Control>,
    _dir: tempfile::TempDir,
}

impl Plane {
    async fn start(names: &[&str]) -> Self {
        Self::start_in(names, tempfile::tempdir().expect("a directory")).await
    }

    /// The same, with the state directories of earlier ones.
    async fn start_in(names: &[&str], dir: tempfile::TempDir) -> Self {
        let input =
            KeyringInput { cluster: "test".into(), iterations: 1, password: Some(Secret::new("a secret")), ..KeyringInput::default() };
        let keyring = Arc::new(Keyring::derive(Role::Control, &input).expect("a good keyring"));
        let mut nodes = Vec::new();
        for name in names {
            let incarnation = random_incarnation();
            let identity = Identity {
                cluster: "test".into(),
                role: Role::Control,
                id: id(name),
                incarnation,
                versions: VERSIONS.to_vec(),
                features: Vec::new(),
            };
            let party = Party::new(identity, Arc::clone(&keyring));
            let classes = Classes::new().with_placed::<Counter>().with_placed::<durable::Account>();
            let shared = Shared::new(
                Arc::new(Config { state_dir: dir.path().join(name), ..Config::control() }),
                id(name),
                incarnation,
                classes,
                party,
                DialOptions::default(),
            );
            nodes.push(Control::new(shared));
        }
        let plane = Self { nodes, _dir: dir };
        for (index, one) in plane.nodes.iter().enumerate() {
            for other in &plane.nodes[..index] {
                link(&one.shared, &other.shared);
            }
        }
        plane
    }

    fn node(&self, name: &str) -> &Control {
        self.nodes.iter().find(|node| node.shared.id == id(name)).expect("one of ours")
    }

    fn cluster(&self, name: &str) -> Cluster {
        self.node(name).cluster()
    }

    /// Publishes one view on these nodes: they see exactly each other.
    fn see(&self, names: &[&str]) {
        for me in names {
            let live = names.iter().map(|name| {
                let next_hop = (name != me).then(|| id(name));
                (id(name), Member { incarnation: Incarnation::NONE, listen: Vec::new(), next_hop })
            });
            let ring = Ring::new(RingSize::default(), names.iter().map(|name| id(name)));
            let view = View { me: id(me), live: live.collect(), ring, frozen: false };
            self.node(me).shared.view.send_replace(Arc::new(view));
        }
    }

    async fn add(&self, through: &str, key: &str, more: u64) -> (NodeId, u64) {
        self.cluster(through).placed::<Counter>(key, &Say::Add(more), DEADLINE).await.expect("counted")
    }
}

fn link(one: &Arc<Shared>, other: &Arc<Shared>) {
    let (a, b) = duplex(64 * 1024);
    for (shared, peer, stream, side) in [(one, other, a, Side::Dialler), (other, one, b, Side::Listener)] {
        let facts = WireFacts {
            transport: Transport::Memory,
            remote: format!("memory:{}", peer.id),
            local: String::new(),
            peer_addr: None,
            binding: None,
            certificate: CertificateCheck::Unchecked,
        };
        let wire = Wire::new(stream, facts);
        let peer = Peer { role: Role::Control, id: peer.id.clone(), incarnation: peer.incarnation, version: 1, features: Vec::new() };
        peers::start(shared, LinkParts { established: Established { wire, peer, uri: None }, side }, None);
    }
}

const ALL: [&str; 3] = ["c1", "c2", "c3"];

fn keys() -> Vec<String> {
    (0..30).map(|key| format!("key{key}")).collect()
}

#[tokio::test]
async fn a_key_has_one_actor_whoever_is_asked_and_keys_spread() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let mut homes = BTreeSet::new();
    for key in keys() {
        for (asked, name) in ALL.iter().enumerate() {
            let (home, count) = plane.add(name, &key, 1).await;
            assert_eq!(count, asked as u64 + 1, "{key} counts alone");
            assert_eq!(Some(&home), plane.node(name).shared.view().ring.owner(&key));
            homes.insert(home);
        }
    }
    assert_eq!(homes.len(), 3);
}

#[tokio::test]
async fn state_follows_the_ring_when_nodes_come_and_go() {
    let plane = Plane::start(&ALL).await;
    let mut expected = 0;
    for names in [&ALL[..1], &ALL[..2], &ALL[..], &ALL[1..], &ALL[2..], &ALL[..2]] {
        // Also those that are left know that they own nothing now.
        plane.see(names);
        for name in ALL.iter().filter(|name| !names.contains(name)) {
            let mut view = (*plane.node(names[0]).shared.view()).clone();
            view.me = id(name);
            plane.node(name).shared.view.send_replace(Arc::new(view));
        }
        expected += 1;
        for key in keys() {
            let (home, count) = plane.add(names[0], &key, 1).await;
            assert_eq!(count, expected, "{key} at {home} with {names:?}");
            assert!(names.contains(&home.as_str()));
        }
    }
}

#[tokio::test]
async fn calls_go_on_while_actors_move_and_each_is_counted_once() {
    let plane = Arc::new(Plane::start(&ALL).await);
    plane.see(&ALL[..1]);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..6_usize {
        let plane = Arc::clone(&plane);
        callers.spawn(async move {
            for round in 0..40_usize {
                plane.add("c1", &format!("key{}", (caller + round) % 7), 1).await;
            }
        });
    }
    for names in [&ALL[..], &ALL[..2], &ALL[..]] {
        tokio::task::yield_now().await;
        // A node out of the view belongs to nobody: it hands everything over.
        for me in ALL {
            let live = names.iter().map(|name| {
                (id(name), Member { incarnation: Incarnation::NONE, listen: Vec::new(), next_hop: (*name != me).then(|| id(name)) })
            });
            let ring = Ring::new(RingSize::default(), names.iter().map(|name| id(name)));
            plane.node(me).shared.view.send_replace(Arc::new(View { me: id(me), live: live.collect(), ring, frozen: false }));
        }
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("no caller failed");
    }
    let mut total = 0;
    for key in 0..7 {
        total += plane.add("c2", &format!("key{key}"), 0).await.1;
    }
    assert_eq!(total, 6 * 40);
}

#[tokio::test]
async fn what_was_recorded_survives_the_death_of_its_node() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let owned = |key: &String| plane.node("c1").shared.view().ring.owner(key) == Some(&id("c3"));
    let kept = keys().into_iter().find(owned).expect("c3 owns some");
    let lost = (0..).map(|n| format!("unrecorded{n}")).find(owned).expect("c3 owns some");
    for key in [&kept, &lost] {
        plane.add("c1", key, 5).await;
    }
    // Both of the others keep it.
    let key = PlacedKey { kind: crate::types::ClassName::new("counter").expect("valid"), key: kept.clone() };
    let deadline = Instant::now() + DEADLINE;
    while ["c1", "c2"].iter().any(|name| plane.node(name).shared.placed.lock().copies.find(&key).is_none()) {
        assert!(Instant::now() < deadline, "the record was not kept");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    plane.node("c3").cut();
    plane.see(&ALL[..2]);
    assert_eq!(plane.add("c1", &kept, 1).await.1, 6);
    assert_eq!(plane.add("c1", &lost, 1).await.1, 1);
}

#[tokio::test]
async fn two_of_one_key_are_joined_when_a_split_heals() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL[..2]);
    plane.see(&ALL[2..]);
    for key in keys() {
        plane.add("c1", &key, 10).await;
        plane.add("c3", &key, 1).await;
    }
    plane.see(&ALL);
    let deadline = Instant::now() + DEADLINE;
    for key in keys() {
        while plane.add("c2", &key, 0).await.1 != 11 {
            assert!(Instant::now() < deadline, "{key} was not joined");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_panic_fails_its_caller_and_the_next_one_goes_on_from_the_record() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    plane.add("c1", "key1", 3).await;
    let key = PlacedKey { kind: crate::types::ClassName::new("counter").expect("valid"), key: "key1".into() };
    let deadline = Instant::now() + DEADLINE;
    while ALL.iter().filter(|name| plane.node(name).shared.placed.lock().copies.find(&key).is_some()).count() < 2 {
        assert!(Instant::now() < deadline, "the record was not kept");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let error = plane.cluster("c1").placed::<Counter>("key1", &Say::Panic, DEADLINE).await.expect_err("it panics");
    assert!(error.may_have_run(), "{error}");
    assert_eq!(plane.add("c2", "key1", 1).await.1, 4);
}

#[tokio::test]
async fn a_frozen_owner_handles_nothing() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL[..1]);
    plane.node("c1").shared.view.send_modify(|view| Arc::make_mut(view).frozen = true);
    let error = plane.cluster("c1").placed::<Counter>("key1", &Say::Slow, Duration::from_millis(300)).await.expect_err("nobody acts");
    assert!(!error.may_have_run(), "{error}");
}

#[tokio::test]
async fn an_owner_that_does_not_answer_is_not_replaced_by_a_blank_one() {
    let plane = Plane::start(&ALL[..2]).await;
    plane.see(&ALL[..1]);
    let view = plane.node("c1").shared.view();
    let with_two = view.ring.with(id("c2"));
    let key = keys().into_iter().find(|key| with_two.owner(key) == Some(&id("c2"))).expect("c2 gets some");
    plane.add("c1", &key, 7).await;
    // c2 knows that c1 had it, and cannot ask: it must not count from nothing.
    for link in plane.node("c2").shared.links() {
        link.close(Error::new(ErrorCode::ConnectionFailed, "cut by the test"));
        link.ended().await;
    }
    plane.node("c2").shared.placed.lock().rings.push_front(view.ring.clone());
    let live = ["c1", "c2"].map(|name| (id(name), Member { incarnation: Incarnation::NONE, listen: Vec::new(), next_hop: None }));
    let view = View { me: id("c2"), live: live.into(), ring: with_two, frozen: false };
    plane.node("c2").shared.view.send_replace(Arc::new(view));
    let refused = plane.cluster("c2").placed::<Counter>(&key, &Say::Add(1), Duration::from_millis(300)).await;
    // The last try may have had too little time left to be told.
    let refused = refused.expect_err("nobody knows");
    assert!(matches!(refused.code(), ErrorCode::NotConnected | ErrorCode::Timeout), "{refused}");
    link(&plane.node("c2").shared, &plane.node("c1").shared);
    plane.see(&ALL[..2]);
    assert_eq!(plane.add("c2", &key, 1).await.1, 8);
}

#[tokio::test]
async fn a_node_that_has_just_joined_asks_whoever_had_the_actor_before() {
    let names = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"];
    let (old, newcomer) = names.split_at(7);
    let plane = Plane::start(&names).await;
    plane.see(old);
    let view = plane.node("c1").shared.view();
    let after = view.ring.with(id("c8"));
    // Not one of those that would own it next by the new ring, who are asked anyway.
    let key = (0..100_000).map(|key| format!("unrecorded{key}")).find(|key| {
        let before = view.ring.owner(key).expect("somebody");
        after.owner(key) == Some(&id("c8")) && !after.successors(after.partition(key), COPIES).contains(&before)
    });
    let key = key.expect("a key that comes from far");
    let owner = view.ring.owner(&key).expect("somebody").to_string();
    assert_eq!(plane.add(&owner, &key, 7).await.1, 7);
    // Only the newcomer knows that it is there.
    let live = names.map(|name| (id(name), Member { incarnation: Incarnation::NONE, listen: Vec::new(), next_hop: Some(id(name)) }));
    let view = View { me: id("c8"), live: live.into(), ring: after, frozen: false };
    plane.node("c8").shared.view.send_replace(Arc::new(view));
    let early = plane.cluster("c8").placed::<Counter>(&key, &Say::Add(1), Duration::from_millis(300)).await;
    assert!(early.as_ref().is_err_and(|error| !error.may_have_run()) || early.as_ref().is_ok_and(|(_, count)| *count == 8), "{early:?}");
    plane.see(&names);
    let counted = if early.is_ok() { 9 } else { 8 };
    assert_eq!(plane.add(newcomer[0], &key, 1).await, (id("c8"), counted));
}

#[tokio::test]
async fn an_actor_that_is_over_ends_and_the_next_message_starts_another_one() {
    let plane = Plane::start(&ALL[..1]).await;
    plane.see(&ALL[..1]);
    let hosted = || plane.node("c1").shared.placed.lock().actors.keys().map(|key| key.key.clone()).collect::<Vec<_>>();
    assert_eq!(plane.add("c1", "unrecorded", 5).await.1, 5);
    assert_eq!(hosted(), ["unrecorded"]);
    plane.cluster("c1").placed::<Counter>("unrecorded", &Say::End, DEADLINE).await.expect("ended");
    let ended = async {
        while !hosted().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("nothing of it is left here");
    assert_eq!(plane.add("c1", "unrecorded", 1).await.1, 1);
}

#[tokio::test]
async fn a_node_that_stops_starts_no_actor() {
    let plane = Plane::start(&ALL[..1]).await;
    plane.see(&ALL[..1]);
    plane.node("c1").shared.begin_stop();
    plane.node("c1").shared.placed.cut();
    let refused = plane.cluster("c1").placed::<Counter>("key1", &Say::Add(1), Duration::from_millis(300)).await;
    assert!(refused.as_ref().is_err_and(|error| !error.may_have_run()), "{refused:?}");
    assert!(plane.node("c1").shared.placed.lock().actors.is_empty(), "nobody would end it");
}

#[tokio::test]
async fn what_is_unknown_or_too_long_is_told() {
    let plane = Plane::start(&ALL[..1]).await;
    let cluster = plane.cluster("c1");
    let kind = crate::types::ClassName::new("nobody").expect("valid");
    let call = |key: String| PlacedCall { key: PlacedKey { kind: kind.clone(), key }, hash: 0, message: Vec::new() };
    assert_eq!(cluster.call_placed(call("k".into()), DEADLINE).await.expect_err("unknown").code(), &ErrorCode::UnknownClass);
    assert_eq!(cluster.call_placed(call("k".repeat(300)), DEADLINE).await.expect_err("too long").code(), &ErrorCode::InvalidName);
}

#[tokio::test]
async fn the_leader_of_a_name_is_the_same_everywhere_and_another_one_when_it_has_gone() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let class = crate::types::ClassName::new("files").expect("valid");
    let leader = plane.cluster("c1").leader(&class, DEADLINE).await.expect("there is one");
    for name in ALL {
        assert_eq!(plane.cluster(name).leader(&class, DEADLINE).await, Ok(leader.clone()));
    }
    let rest: Vec<&str> = ALL.into_iter().filter(|name| *name != leader.as_str()).collect();
    plane.see(&rest);
    let next = plane.cluster(rest[0]).leader(&class, DEADLINE).await.expect("there is one");
    assert!(rest.contains(&next.as_str()));
}

/// The master, as soon as all of these agree on who it is.
async fn agreed(candidates: &[&Candidate]) -> Incarnation {
    let agreement = async {
        loop {
            let masters: BTreeSet<_> = candidates.iter().map(|candidate| candidate.standing().borrow().clone().master()).collect();
            match (masters.len(), masters.first()) {
                (1, Some(Some(master))) if candidates.iter().any(|candidate| candidate.id() == *master) => return *master,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, agreement).await.expect("they agree in time")
}

#[tokio::test(start_paused = true)]
async fn a_master_is_the_first_of_its_name_and_another_follows_wherever_the_list_lives() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let class = crate::types::ClassName::new("files").expect("valid");
    let first = plane.cluster("c1").stand(&class);
    assert_eq!(agreed(&[&first]).await, first.id());
    let second = plane.cluster("c2").stand(&class);
    let third = plane.cluster("c3").stand(&class);
    assert_eq!(agreed(&[&first, &second, &third]).await, first.id());
    // The list moves, and its order stays.
    plane.see(&ALL[..1]);
    for name in &ALL[1..] {
        let mut view = (*plane.node("c1").shared.view()).clone();
        view.me = id(name);
        plane.node(name).shared.view.send_replace(Arc::new(view));
    }
    assert_eq!(agreed(&[&first, &second, &third]).await, first.id());
    // The list is lost: whoever registers again first is the master.
    plane.node("c1").shared.placed.lock().actors.clear();
    let heir = agreed(&[&first, &second, &third]).await;
    let (heir, rest): (Vec<_>, Vec<_>) = [first, second, third].into_iter().partition(|candidate| candidate.id() == heir);
    heir.into_iter().for_each(Candidate::vanish);
    let next = agreed(&rest.iter().collect::<Vec<_>>()).await;
    let (next, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|candidate| candidate.id() == next);
    // One that says goodbye needs no silence.
    drop(next);
    assert_eq!(agreed(&[&rest[0]]).await, rest[0].id());
    assert!(rest[0].is_master());
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_can_ask_nobody_believes_in_no_master() {
    let plane = Plane::start(&ALL[..1]).await;
    let class = crate::types::ClassName::new("files").expect("valid");
    let candidate = plane.cluster("c1").stand(&class);
    agreed(&[&candidate]).await;
    plane.node("c1").shared.view.send_modify(|view| Arc::make_mut(view).frozen = true);
    let mut standing = candidate.standing();
    let lost = standing.wait_for(|standing| standing.master().is_none());
    tokio::time::timeout(DEADLINE, lost).await.expect("in time").expect("the campaign lives");
    assert!(!candidate.is_master());
}

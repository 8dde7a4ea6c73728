//! One proxy, told what happened: the lists of actions, and that no order of events breaks its promises.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const PING_TIME: Duration = Duration::from_secs(4);
const CONNECT_RETRY: Duration = Duration::from_secs(10);
/// 75 % of `PING_TIME`.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

fn incarnation(number: u8) -> Incarnation {
    Incarnation::from_bytes([number; 16])
}

fn ticket(number: u8) -> Ticket {
    Ticket::from_bytes([number; 16])
}

fn addresses() -> Vec<NodeUri> {
    vec!["nkcluster://w1:1;transport=tcp".parse().expect("a valid URL")]
}

fn describe(term: u64) -> Describe {
    Describe {
        listen: Vec::new(),
        meta: Default::default(),
        status: NodeStatus::Ready,
        classes: Vec::new(),
        version: String::new(),
        term,
        holder: None,
    }
}

fn listening(term: u64) -> Describe {
    Describe { listen: addresses(), ..describe(term) }
}

fn update(status: NodeStatus) -> Update {
    Update { status, meta: Default::default(), listen: Vec::new(), stats: None, tasks: 0 }
}

fn granted(term: u64) -> Adopted {
    Adopted::Granted { term, ticket: ticket(term as u8) }
}

fn refused(term: u64) -> Adopted {
    Adopted::Refused { term, holder: None, reason: "held".to_owned() }
}

fn adopt(link: LinkKey, of: u8, seen_term: u64, ticket: Option<Ticket>) -> Action {
    let setup = setup();
    let adopt = Adopt {
        worker_incarnation: incarnation(of),
        seen_term,
        owner: setup.owner,
        owner_incarnation: setup.owner_incarnation,
        rank: setup.rank,
        ticket,
        ping_ms: u32::try_from(setup.ping_time.as_millis()).expect("short"),
    };
    Action::Adopt { link, adopt: Box::new(adopt) }
}

fn close(link: LinkKey, code: ErrorCode, what: &str) -> Action {
    Action::Close { link, reason: Error::new(code, what) }
}

fn pulse(link: LinkKey) -> Action {
    Action::Ping { link, purpose: PingFor::Pulse, timeout: PING_TIMEOUT }
}

fn challenge(link: LinkKey, newcomer: LinkKey) -> Action {
    Action::Ping { link, purpose: PingFor::Challenge { newcomer }, timeout: PING_TIMEOUT }
}

fn setup() -> Setup {
    Setup {
        owner: NodeId::new("c1").expect("a valid name"),
        owner_incarnation: incarnation(200),
        rank: Rank { view: 1, hash: 0 },
        ping_time: PING_TIME,
        connect_retry: CONNECT_RETRY,
    }
}

/// A proxy with its clock.
struct Proxy {
    state: State,
    now: Instant,
}

impl Proxy {
    fn new() -> Self {
        Self { state: State::new(setup()), now: Instant::now() }
    }

    /// One that holds incarnation 1 over link 1, under term 1, and has had its first ping answered.
    fn holding(describe: Describe) -> Self {
        let mut proxy = Self::new();
        proxy.up(1, 1, describe);
        proxy.adopted(1, granted(1));
        assert_eq!(proxy.timeout(), [pulse(1)]);
        proxy.state.ponged(1, PingFor::Pulse, proxy.now);
        proxy
    }

    fn up(&mut self, link: LinkKey, of: u8, describe: Describe) -> Vec<Action> {
        self.state.link_up(link, incarnation(of), describe, Arrival::Plain, self.now)
    }

    fn down(&mut self, link: LinkKey) -> Vec<Action> {
        self.state.link_down(link, self.now)
    }

    fn adopted(&mut self, link: LinkKey, answer: Adopted) -> Vec<Action> {
        self.state.adopted(link, answer, self.now)
    }

    fn fenced(&mut self, link: LinkKey, term: u64) -> Vec<Action> {
        self.state.fenced(link, term, self.now)
    }

    fn ponged(&mut self, link: LinkKey, purpose: PingFor) -> Vec<Action> {
        self.state.ponged(link, purpose, self.now)
    }

    fn ping_lost(&mut self, link: LinkKey) -> Vec<Action> {
        self.state.ping_lost(link, self.now)
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn timeout(&mut self) -> Vec<Action> {
        self.state.handle_timeout(self.now)
    }

    /// Time until the next deadline.
    fn left(&self) -> Option<Duration> {
        self.state.next_deadline().map(|at| at.saturating_duration_since(self.now))
    }
}

#[test]
fn a_worker_is_adopted_published_and_told_ready() {
    let mut proxy = Proxy::new();
    assert_eq!((proxy.state.status(), proxy.left()), (NodeStatus::NotConnected, None));
    assert_eq!(proxy.up(1, 1, describe(3)), [Action::NewIncarnation(incarnation(1)), adopt(1, 1, 3, None)]);
    assert_eq!(proxy.state.status(), NodeStatus::NotConnected, "not before it obeys");
    assert_eq!(proxy.adopted(1, granted(4)), [Action::Publish { link: 1 }, Action::Tell(NodeStatus::Ready)]);
    assert_eq!((proxy.state.status(), proxy.state.term), (NodeStatus::Ready, 4));
    assert_eq!(proxy.timeout(), [pulse(1)], "pinged at once");
    assert_eq!(proxy.left(), None, "one ping at a time");
}

#[test]
fn a_refused_adoption_is_tried_again_with_the_told_term_less_and_less_often() {
    let mut proxy = Proxy::new();
    proxy.up(1, 1, describe(3));
    let mut pause = ADOPT_AGAIN;
    for term in 10..20 {
        assert_eq!(proxy.adopted(1, refused(term)), []);
        assert_eq!(proxy.left(), Some(pause));
        assert_eq!(proxy.timeout(), [], "not before its time");
        proxy.wait(pause);
        assert_eq!(proxy.timeout(), [adopt(1, 1, term, None)]);
        assert_eq!(proxy.timeout(), [], "one at a time");
        pause = (2 * pause).min(ADOPT_AGAIN_MAX);
    }
    // A worker that answers is not given up, however often it refuses.
    assert_eq!(proxy.adopted(1, granted(21)), [Action::Publish { link: 1 }, Action::Tell(NodeStatus::Ready)]);
}

#[test]
fn a_worker_that_does_not_answer_an_adoption_is_closed() {
    for refused_before in [false, true] {
        let mut proxy = Proxy::new();
        proxy.up(1, 1, listening(0));
        if refused_before {
            proxy.adopted(1, refused(1));
            proxy.wait(ADOPT_AGAIN);
            proxy.timeout();
        }
        assert_eq!(proxy.left(), Some(ADOPT_TIMEOUT));
        proxy.wait(ADOPT_TIMEOUT);
        let late = close(1, ErrorCode::Timeout, "the worker did not answer an adoption");
        assert_eq!(proxy.timeout(), [Action::Dial(addresses()), late]);
        assert_eq!(proxy.down(1), [], "the end of the closed link is no news");
    }
}

#[test]
fn a_lost_link_is_told_once_and_dialled_at_once() {
    let mut proxy = Proxy::holding(listening(0));
    assert_eq!(proxy.down(1), [Action::Unpublish, Action::Tell(NodeStatus::NotConnected), Action::Dial(addresses())]);
    assert_eq!(proxy.down(1), []);
    assert_eq!(proxy.left(), None, "the dial is under way");
    for jitter in [0.0, 0.5, 1.0] {
        proxy.state.dial_failed(jitter, proxy.now);
        let pause = CONNECT_RETRY.mul_f64(0.75 + jitter / 2.0);
        assert_eq!(proxy.left(), Some(pause));
        proxy.wait(pause);
        assert_eq!(proxy.timeout(), [Action::Dial(addresses())]);
    }
    // Back: nothing but ready is told, and its incarnation is no new one.
    assert_eq!(proxy.up(2, 1, listening(1)), [adopt(2, 1, 1, Some(ticket(1)))]);
    assert_eq!(proxy.adopted(2, granted(2)), [Action::Publish { link: 2 }, Action::Tell(NodeStatus::Ready)]);
    // A dial that fails late changes nothing.
    proxy.state.dial_failed(0.5, proxy.now);
    assert_eq!(proxy.timeout(), [pulse(2)]);
}

#[test]
fn a_worker_without_addresses_is_waited_for() {
    let mut proxy = Proxy::holding(describe(0));
    assert_eq!(proxy.down(1), [Action::Unpublish, Action::Tell(NodeStatus::NotConnected)]);
    assert_eq!(proxy.left(), None);
    proxy.wait(Duration::from_secs(3600));
    assert_eq!(proxy.timeout(), []);
}

#[test]
fn a_ping_follows_the_answer_of_the_one_before() {
    let mut proxy = Proxy::holding(describe(0));
    for _ in 0..3 {
        assert_eq!(proxy.left(), Some(PING_TIME));
        proxy.wait(PING_TIME);
        assert_eq!(proxy.timeout(), [pulse(1)]);
        assert_eq!(proxy.timeout(), []);
        proxy.wait(Duration::from_secs(1));
        assert_eq!(proxy.ponged(1, PingFor::Pulse), []);
    }
}

#[test]
fn a_lost_ping_ends_the_link() {
    let mut proxy = Proxy::holding(listening(0));
    let lost = close(1, ErrorCode::ConnectionFailed, "a ping was not answered in time");
    assert_eq!(proxy.ping_lost(1), [Action::Unpublish, Action::Tell(NodeStatus::NotConnected), Action::Dial(addresses()), lost]);
    assert_eq!(proxy.ping_lost(1), []);
}

#[test]
fn a_second_link_of_the_same_incarnation_replaces_the_first() {
    let mut proxy = Proxy::holding(describe(0));
    let replaced = close(1, ErrorCode::ConnectionFailed, "the worker has made a new connection");
    assert_eq!(proxy.up(2, 1, describe(1)), [Action::Unpublish, replaced.clone(), adopt(2, 1, 1, Some(ticket(1)))]);
    assert_eq!(proxy.down(1), []);
    assert_eq!(proxy.adopted(2, granted(2)), [Action::Publish { link: 2 }], "it was never told away");
    // One that was not adopted yet is replaced too; nothing was published of it.
    let mut proxy = Proxy::new();
    proxy.up(1, 1, describe(0));
    assert_eq!(proxy.up(2, 1, describe(0)), [replaced, adopt(2, 1, 0, None)]);
}

#[test]
fn a_worker_that_describes_itself_again_is_no_other_one() {
    let mut proxy = Proxy::holding(describe(0));
    assert_eq!(proxy.up(1, 1, listening(1)), []);
    assert_eq!(proxy.state.describe.as_ref().map(|describe| describe.listen.clone()), Some(addresses()));
    // Nor is a newcomer that does it.
    assert_eq!(proxy.up(2, 2, describe(0)), [challenge(1, 2)]);
    assert_eq!(proxy.up(2, 2, describe(7)), []);
    let taken = proxy.down(1);
    assert!(taken.contains(&adopt(2, 2, 7, None)), "{taken:?}");
}

#[test]
fn the_clone_of_a_live_worker_is_refused_with_an_alarm() {
    for adopting in [false, true] {
        let mut proxy = if adopting { Proxy::new() } else { Proxy::holding(describe(0)) };
        if adopting {
            proxy.up(1, 1, describe(0));
        }
        assert_eq!(proxy.up(2, 2, describe(0)), [challenge(1, 2)]);
        let what = format!("the id is in use by another live node ({}); give this one its own node_id", incarnation(1));
        assert_eq!(
            proxy.ponged(1, PingFor::Challenge { newcomer: 2 }),
            [Action::Alarm { newcomer: 2 }, close(2, ErrorCode::NodeIdInUse, &what)]
        );
        assert_eq!(proxy.down(2), []);
        assert_eq!(proxy.state.incarnation(), Some(incarnation(1)));
        assert_eq!(proxy.state.is_held(), !adopting);
        assert!(proxy.state.uses(1));
    }
}

#[test]
fn a_restarted_worker_is_taken_when_its_old_link_is_dead() {
    let taken = [Action::Unpublish, Action::Tell(NodeStatus::NotConnected), Action::NewIncarnation(incarnation(2)), adopt(2, 2, 0, None)];
    for by_ping in [false, true] {
        let mut proxy = Proxy::holding(listening(0));
        assert_eq!(proxy.up(2, 2, describe(0)), [challenge(1, 2)]);
        let actions = if by_ping { proxy.ping_lost(1) } else { proxy.down(1) };
        assert_eq!(actions[..4], taken);
        assert_eq!(actions.len(), if by_ping { 5 } else { 4 }, "and the old link is closed, if it still is there");
        assert_eq!(proxy.adopted(2, granted(1)), [Action::Publish { link: 2 }, Action::Tell(NodeStatus::Ready)]);
        // A late answer of the old one judges nobody.
        assert_eq!(proxy.ponged(1, PingFor::Challenge { newcomer: 2 }), []);
    }
}

#[test]
fn an_answer_that_was_under_way_before_the_newcomer_came_does_not_judge_it() {
    let mut proxy = Proxy::holding(describe(0));
    proxy.wait(PING_TIME);
    assert_eq!(proxy.timeout(), [pulse(1)]);
    assert_eq!(proxy.up(2, 2, describe(0)), [challenge(1, 2)]);
    assert_eq!(proxy.ponged(1, PingFor::Pulse), []);
    assert_eq!(proxy.left(), Some(PING_TIME), "it is an answer to the ping all the same");
    // The newcomer still waits for the word about the old link.
    assert!(proxy.down(1).contains(&adopt(2, 2, 0, None)));
}

#[test]
fn a_challenge_does_not_move_the_regular_ping() {
    let mut proxy = Proxy::holding(describe(0));
    proxy.wait(Duration::from_secs(1));
    proxy.up(2, 2, describe(0));
    proxy.ponged(1, PingFor::Challenge { newcomer: 2 });
    assert_eq!(proxy.left(), Some(Duration::from_secs(3)));
}

#[test]
fn of_two_newcomers_the_later_one_is_judged_by_its_own_ping() {
    let mut proxy = Proxy::holding(describe(0));
    assert_eq!(proxy.up(2, 2, describe(0)), [challenge(1, 2)]);
    let replaced = close(2, ErrorCode::Busy, "another node with the same id came after you");
    assert_eq!(proxy.up(3, 3, describe(0)), [replaced, challenge(1, 3)]);
    assert_eq!(proxy.ponged(1, PingFor::Challenge { newcomer: 2 }), []);
    assert_eq!(proxy.ponged(1, PingFor::Challenge { newcomer: 3 })[0], Action::Alarm { newcomer: 3 });
}

#[test]
fn a_new_link_of_the_live_worker_refuses_the_newcomer() {
    let mut proxy = Proxy::holding(describe(0));
    proxy.up(2, 2, describe(0));
    let actions = proxy.up(3, 1, describe(1));
    assert_eq!(actions.len(), 5, "{actions:?}");
    assert_eq!(actions[0], Action::Unpublish);
    assert!(matches!(actions[1], Action::Close { link: 1, .. }));
    assert_eq!(actions[2], Action::Alarm { newcomer: 2 });
    assert!(matches!(&actions[3], Action::Close { link: 2, reason } if reason.code() == &ErrorCode::NodeIdInUse));
    assert_eq!(actions[4], adopt(3, 1, 1, Some(ticket(1))));
}

#[test]
fn a_newcomer_that_goes_by_itself_is_forgotten() {
    let mut proxy = Proxy::holding(describe(0));
    proxy.up(2, 2, describe(0));
    assert_eq!(proxy.down(2), []);
    assert_eq!(proxy.ponged(1, PingFor::Challenge { newcomer: 2 }), []);
    assert_eq!(proxy.down(1), [Action::Unpublish, Action::Tell(NodeStatus::NotConnected)]);
}

#[test]
fn a_fenced_proxy_is_passive_and_asks_again_with_the_seen_term() {
    let mut proxy = Proxy::holding(describe(0));
    assert_eq!(proxy.fenced(1, 5), [Action::Unpublish, Action::Tell(NodeStatus::NotConnected)]);
    assert_eq!(proxy.state.status(), NodeStatus::NotConnected);
    assert_eq!(proxy.fenced(1, 6), [], "told once");
    assert_eq!(proxy.ponged(1, PingFor::Pulse), []);
    proxy.wait(ADOPT_AGAIN);
    assert_eq!(proxy.timeout(), [adopt(1, 1, 5, None)], "its ticket is worth nothing any more");
    assert_eq!(proxy.adopted(1, refused(7)), []);
    proxy.wait(ADOPT_AGAIN);
    assert_eq!(proxy.timeout(), [adopt(1, 1, 7, None)]);
    assert_eq!(proxy.adopted(1, granted(8)), [Action::Publish { link: 1 }, Action::Tell(NodeStatus::Ready)]);
}

#[test]
fn a_fence_of_an_older_term_changes_nothing() {
    let mut proxy = Proxy::holding(describe(0));
    assert_eq!(proxy.fenced(1, 1), []);
    assert_eq!(proxy.fenced(1, 0), []);
    assert!(proxy.state.is_held());
}

#[test]
fn late_messages_of_old_links_change_nothing() {
    let mut proxy = Proxy::holding(describe(0));
    proxy.up(2, 1, describe(1));
    proxy.adopted(2, granted(2));
    let before = format!("{:?}", proxy.state);
    assert_eq!(proxy.adopted(1, granted(9)), []);
    assert_eq!(proxy.adopted(1, refused(9)), []);
    assert_eq!(proxy.fenced(1, 9), []);
    assert_eq!(proxy.ponged(1, PingFor::Pulse), []);
    assert_eq!(proxy.ping_lost(1), []);
    assert_eq!(proxy.down(1), []);
    proxy.state.updated(1, update(NodeStatus::Stopped));
    proxy.state.dial_failed(0.5, proxy.now);
    // Nor does an answer that nobody asked for any more.
    assert_eq!(proxy.adopted(2, granted(9)), []);
    assert_eq!(proxy.adopted(2, refused(9)), []);
    assert_eq!(format!("{:?}", proxy.state), before);
}

#[test]
fn news_of_the_worker_are_kept() {
    let mut proxy = Proxy::holding(describe(0));
    proxy.state.updated(1, Update { listen: addresses(), ..update(NodeStatus::Standby) });
    assert_eq!(proxy.state.status(), NodeStatus::Standby);
    assert!(proxy.down(1).contains(&Action::Dial(addresses())), "dialled where it listens now");
    proxy.state.updated(1, update(NodeStatus::Ready));
    assert_eq!(proxy.state.status(), NodeStatus::NotConnected);
}

#[test]
fn no_worker_says_that_it_is_not_connected() {
    let mut proxy = Proxy::new();
    proxy.up(1, 1, Describe { status: NodeStatus::NotConnected, ..describe(0) });
    assert_eq!(proxy.adopted(1, granted(1))[1], Action::Tell(NodeStatus::Connecting));
    proxy.state.updated(1, update(NodeStatus::NotConnected));
    assert_eq!(proxy.state.status(), NodeStatus::Connecting);
}

#[derive(Clone, Copy, Debug)]
enum Input {
    Up { link: LinkKey, of: u8, listens: bool },
    Down(LinkKey),
    Granted(LinkKey, u64),
    Refused(LinkKey, u64),
    Fenced(LinkKey, u64),
    Pong(LinkKey, Option<LinkKey>),
    PingLost(LinkKey),
    DialFailed,
    Update(LinkKey),
    Pass(u64),
    Better(LinkKey),
    Claim(Claim),
    Move,
    MoveFailed,
}

fn input() -> impl Strategy<Value = Input> {
    let (link, term) = (0_u64..6, 0_u64..8);
    prop_oneof![
        4 => (link.clone(), any::<bool>()).prop_map(|(link, listens)| Input::Up { link, of: 1 + (link % 3) as u8, listens }),
        2 => link.clone().prop_map(Input::Down),
        4 => (link.clone(), term.clone()).prop_map(|(link, term)| Input::Granted(link, term)),
        2 => (link.clone(), term.clone()).prop_map(|(link, term)| Input::Refused(link, term)),
        2 => (link.clone(), term).prop_map(|(link, term)| Input::Fenced(link, term)),
        3 => (link.clone(), prop::option::of(link.clone())).prop_map(|(link, newcomer)| Input::Pong(link, newcomer)),
        1 => link.clone().prop_map(Input::PingLost),
        1 => Just(Input::DialFailed),
        1 => link.clone().prop_map(Input::Update),
        3 => link.prop_map(Input::Better),
        2 => prop::sample::select(vec![Claim::Owner, Claim::Other, Claim::Frozen]).prop_map(Input::Claim),
        2 => Just(Input::Move),
        1 => Just(Input::MoveFailed),
        4 => (0_u64..12_000).prop_map(Input::Pass),
    ]
}

/// What the shell and the cluster see of a proxy.
#[derive(Default)]
struct World {
    /// Links that are up, and were not closed by the proxy.
    open: BTreeSet<LinkKey>,
    published: Option<LinkKey>,
    told_away: Option<bool>,
    incarnation: Option<Incarnation>,
    dialling: bool,
}

impl World {
    fn look(&mut self, actions: &[Action], state: &State) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                Action::Publish { link } => {
                    // One that replaces another is told before that one is drained.
                    prop_assert!(self.published.is_none() || state.uses(*link), "two are published");
                    prop_assert!(self.open.contains(link), "a link that is gone is published");
                    self.published = Some(*link);
                }
                Action::Unpublish => {
                    prop_assert!(self.published.take().is_some(), "nothing was published");
                }
                Action::Close { link, .. } => {
                    prop_assert_ne!(self.published, Some(*link), "a published link is closed");
                    self.open.remove(link);
                }
                Action::Tell(status) => {
                    let away = *status == NodeStatus::NotConnected;
                    prop_assert_ne!(self.told_away.unwrap_or(true), away, "the same is told twice");
                    self.told_away = Some(away);
                }
                Action::Ping { link, .. } => prop_assert!(self.open.contains(link), "a link that is gone is pinged"),
                Action::Adopt { link, adopt } => {
                    prop_assert!(self.open.contains(link), "a link that is gone is asked");
                    prop_assert_eq!(Some(adopt.worker_incarnation), self.incarnation, "asked for an incarnation that was not told");
                    let beside = state.candidate.as_ref().is_some_and(|candidate| candidate.link == *link);
                    prop_assert!(self.published.is_none() || beside, "it obeys, and is asked");
                }
                Action::Drain { link } => {
                    prop_assert_ne!(self.published, Some(*link), "a published link is drained");
                    self.open.remove(link);
                }
                Action::NewIncarnation(incarnation) => {
                    prop_assert_ne!(self.incarnation, Some(*incarnation));
                    prop_assert_eq!(self.published, None, "the old one is still published");
                    self.incarnation = Some(*incarnation);
                }
                Action::Dial(addresses) => {
                    prop_assert!(!addresses.is_empty());
                    prop_assert!(!self.dialling, "two dials at once");
                    self.dialling = true;
                }
                Action::Alarm { newcomer } => prop_assert!(self.open.contains(newcomer)),
            }
        }
        prop_assert_eq!(self.published.is_some(), state.is_held());
        // Whoever is connected is in use, or a newcomer whose judgement is under way: nobody is forgotten.
        let known = state.link().into_iter().chain(state.newcomer.as_ref().map(|newcomer| newcomer.link));
        let known: BTreeSet<LinkKey> = known.chain(state.candidate.as_ref().map(|candidate| candidate.link)).collect();
        prop_assert_eq!(&self.open, &known, "a link is neither used nor closed");
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_order_of_events_breaks_the_promises(inputs in prop::collection::vec(input(), 1..60)) {
        let (mut proxy, mut world) = (Proxy::new(), World::default());
        let mut used: BTreeSet<LinkKey> = BTreeSet::new();
        for input in inputs {
            let actions = match input {
                Input::Up { link, of, listens } => {
                    // A link comes up once; one that is up may describe itself again.
                    if used.contains(&link) && !world.open.contains(&link) {
                        continue;
                    }
                    used.insert(link);
                    world.open.insert(link);
                    world.dialling = false;
                    proxy.up(link, of, if listens { listening(0) } else { describe(0) })
                }
                Input::Better(link) => {
                    if used.contains(&link) && !world.open.contains(&link) {
                        continue;
                    }
                    used.insert(link);
                    world.open.insert(link);
                    world.dialling = false;
                    let of = incarnation(1 + (link % 3) as u8);
                    proxy.state.link_up(link, of, describe(0), Arrival::Better, proxy.now)
                }
                Input::Claim(claim) => proxy.state.set_claim(claim, setup().rank, proxy.now),
                Input::Move => {
                    let given = proxy.state.begin_move();
                    prop_assert!(given.is_none_or(|given| world.published == Some(given.link)), "a worker that does not obey moves");
                    Vec::new()
                }
                Input::MoveFailed => proxy.state.move_failed(proxy.now),
                Input::Down(link) => {
                    let unpublished = world.published == Some(link);
                    world.open.remove(&link);
                    let actions = proxy.down(link);
                    prop_assert!(!unpublished || actions.contains(&Action::Unpublish));
                    actions
                }
                Input::Granted(link, term) => proxy.adopted(link, granted(term)),
                Input::Refused(link, term) => proxy.adopted(link, refused(term)),
                Input::Fenced(link, term) => proxy.fenced(link, term),
                Input::Pong(link, None) => proxy.ponged(link, PingFor::Pulse),
                Input::Pong(link, Some(newcomer)) => proxy.ponged(link, PingFor::Challenge { newcomer }),
                Input::PingLost(link) => proxy.ping_lost(link),
                Input::DialFailed => {
                    world.dialling = false;
                    proxy.state.dial_failed(0.5, proxy.now);
                    Vec::new()
                }
                Input::Update(link) => {
                    proxy.state.updated(link, update(NodeStatus::Standby));
                    Vec::new()
                }
                Input::Pass(millis) => {
                    proxy.wait(Duration::from_millis(millis));
                    let actions = proxy.timeout();
                    prop_assert!(proxy.left() != Some(Duration::ZERO), "a deadline that is never met");
                    actions
                }
            };
            world.look(&actions, &proxy.state)?;
        }
        // When nothing more comes, the proxy waits for somebody: an answer, its own clock, or the worker.
        let waits = match &proxy.state.phase {
            Phase::Away { .. } if proxy.state.claim != Claim::Owner => true,
            Phase::Away { dialling, dial_at } => {
                let addresses = proxy.state.describe.as_ref().is_some_and(|describe| !describe.listen.is_empty());
                !addresses || *dialling || dial_at.is_some()
            }
            // It belongs to another control node, which will say so.
            Phase::Adopting { step: Step::Waiting { .. }, .. } if proxy.state.claim != Claim::Owner => true,
            Phase::Adopting { .. } => proxy.left().is_some(),
            Phase::Held { .. } => true,
        };
        prop_assert!(waits, "the proxy is stuck: {:?}", proxy.state);
    }
}

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

/// Always the same number, or the highest that there is: keeps the order of what is shuffled.
fn highest(limit: u64) -> u64 {
    limit - 1
}

/// A small generator, so that a property can be replayed (xorshift, Marsaglia 2003).
fn generator(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = (seed ^ 0x9e37_79b9_7f4a_7c15).max(1);
    move |limit| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % limit
    }
}

fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

fn naptr(order: u16, preference: u16, flags: &str, services: &str, replacement: &str) -> Naptr {
    let (flags, services) = (flags.into(), services.into());
    Naptr { order, preference, flags, services, regexp: Vec::new(), replacement: replacement.to_owned() }
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Srv {
    Srv { priority, weight, port, target: target.to_owned() }
}

fn v4(last: u8) -> (IpAddr, Source) {
    (Ipv4Addr::new(192, 0, 2, last).into(), Source::A)
}

fn v6(last: u16) -> (IpAddr, Source) {
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into(), Source::Aaaa)
}

/// DNS as a table; what is not in it does not exist.
#[derive(Default)]
struct World {
    answers: Vec<(&'static str, Answer)>,
    asked: Vec<String>,
}

impl World {
    fn new(answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        Self { answers: answers.into_iter().collect(), asked: Vec::new() }
    }

    /// Runs a search to its end; each round of questions is a line of `asked`.
    fn search(&mut self, text: &str, dice: Dice<'_>) -> Result<Vec<Found>, String> {
        let mut search = Search::new(&uri(text), false);
        loop {
            let questions = search.questions();
            if questions.is_empty() {
                return search.finish();
            }
            assert!(self.asked.len() < 4, "a search has an end");
            self.asked
                .push(questions.iter().map(|question| format!("{:?} {}", question.kind, question.name)).collect::<Vec<_>>().join(", "));
            let answers = questions.into_iter().map(|question| {
                let of_kind = |answer: &Answer| match answer {
                    Answer::Naptr(_) => question.kind == Kind::Naptr,
                    Answer::Srv(_) => question.kind == Kind::Srv,
                    Answer::Addresses(_) => question.kind == Kind::Addresses,
                    Answer::Nothing | Answer::Failed(_) => true,
                };
                let found = self.answers.iter().find(|(name, answer)| *name == question.name && of_kind(answer));
                let answer = found.map_or(Answer::Nothing, |(_, answer)| answer.clone());
                (question, answer)
            });
            let answers = answers.collect();
            search.answered(&answers, dice);
        }
    }
}

fn shown(found: &[Found]) -> Vec<String> {
    found.iter().map(|found| format!("{}:{}", found.transport, found.addr)).collect()
}

#[test]
fn a_name_is_asked_for_what_its_url_leaves_open() {
    let at = |text: &str| {
        let mut world = World::new([("example.org", Answer::Addresses(vec![v4(1)]))]);
        let found = world.search(text, &mut highest).expect("it has an address");
        (world.asked, shown(&found))
    };
    let srv_tcp = "Srv _nk._tcp.example.org, Srv _nkcluster._tcp.example.org".to_owned();
    let addresses = "Addresses example.org".to_owned();
    let (asked, found) = at("nkcluster://example.org");
    assert_eq!(asked, ["Naptr example.org".to_owned(), srv_tcp.clone(), addresses.clone()]);
    assert_eq!(found, ["tcp:192.0.2.1:1972"]);
    let (asked, found) = at("nkcluster://example.org;transport=tcp");
    assert_eq!(asked, [srv_tcp, addresses.clone()]);
    assert_eq!(found, ["tcp:192.0.2.1:1972"]);
    let (asked, found) = at("nkcluster://example.org;transport=wss");
    assert_eq!(asked, ["Srv _nkcluster._wss.example.org, Srv _nks._ws.example.org".to_owned(), addresses.clone()]);
    assert_eq!(found, ["wss:192.0.2.1:1975"]);
    let (asked, found) = at("nkcluster://example.org:7000");
    assert_eq!((asked, found), (vec![addresses.clone()], vec!["tcp:192.0.2.1:7000".to_owned()]));
    let (asked, found) = at("nkcluster://example.org:7000;transport=ws");
    assert_eq!((asked, found), (vec![addresses], vec!["ws:192.0.2.1:7000".to_owned()]));
}

#[test]
fn service_names_are_those_of_both_originals() {
    let names = |transport| service_names(transport, "d").join(" ");
    assert_eq!(names(Transport::Tcp), "_nk._tcp.d _nkcluster._tcp.d");
    assert_eq!(names(Transport::Tls), "_nks._tcp.d _nkcluster._tls.d");
    assert_eq!(names(Transport::Sctp), "_nk._sctp.d _nkcluster._sctp.d");
    assert_eq!(names(Transport::Ws), "_nk._ws.d _nkcluster._ws.d");
    assert_eq!(names(Transport::Wss), "_nks._ws.d _nkcluster._wss.d");
}

#[test]
fn a_name_of_the_hosts_file_is_not_asked_of_dns() {
    let search = Search::new(&uri("nkcluster://example.org;transport=tls"), true);
    assert_eq!(search.questions(), [Question { name: "example.org".to_owned(), kind: Kind::Addresses }]);
}

#[test]
fn naptr_records_are_followed_by_order_then_preference() {
    let mut world = World::new([
        (
            "example.org",
            Answer::Naptr(vec![
                naptr(20, 1, "s", "nk+d2t", "tcp.example.org."),
                naptr(10, 200, "S", "NKS+D2T", "tls.example.org."),
                naptr(10, 100, "S", "nks+D2W", "wss.example.org."),
            ]),
        ),
        ("tcp.example.org.", Answer::Srv(vec![srv(0, 0, 3, "c1.example.org.")])),
        ("tls.example.org.", Answer::Srv(vec![srv(0, 0, 2, "c1.example.org.")])),
        ("wss.example.org.", Answer::Srv(vec![srv(0, 0, 1, "c1.example.org.")])),
        ("c1.example.org.", Answer::Addresses(vec![v4(1)])),
    ]);
    let found = world.search("nkcluster://example.org", &mut highest).expect("found");
    assert_eq!(shown(&found), ["wss:192.0.2.1:1", "tls:192.0.2.1:2", "tcp:192.0.2.1:3"]);
    let steps: Vec<String> = found[0].steps.iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["NAPTR example.org 10 100 NKS+D2W", "SRV wss.example.org 0 0 1 c1.example.org", "A c1.example.org"]);
    // One host is asked for once, whoever names it.
    assert_eq!(world.asked[2], "Addresses c1.example.org.");
}

#[test]
fn naptr_records_that_mean_something_else_are_passed_over() {
    let with_regexp = Naptr { regexp: b"!x!y!".to_vec(), ..naptr(1, 1, "S", "NK+D2T", "regexp.example.org.") };
    let others = vec![
        with_regexp,
        naptr(1, 1, "U", "NK+D2T", "u.example.org."),
        naptr(1, 1, "", "NK+D2T", "none.example.org."),
        naptr(1, 1, "S", "SIP+D2T", "sip.example.org."),
        naptr(1, 1, "S", "NK+D2T", "."),
    ];
    let mut world = World::new([("example.org", Answer::Naptr(others)), ("example.org", Answer::Addresses(vec![v4(1)]))]);
    let found = world.search("nkcluster://example.org", &mut highest).expect("its own address");
    assert_eq!(shown(&found), ["tcp:192.0.2.1:1972"]);
    assert_eq!(world.asked[1], "Srv _nk._tcp.example.org, Srv _nkcluster._tcp.example.org");
}

#[test]
fn naptr_records_that_lead_nowhere_are_as_good_as_none() {
    let lead = vec![naptr(1, 1, "S", "NKS+D2T", "gone.example.org.")];
    let mut world = World::new([("example.org", Answer::Naptr(lead)), ("example.org", Answer::Addresses(vec![v4(1)]))]);
    let found = world.search("nkcluster://example.org", &mut highest).expect("its own address");
    assert_eq!(shown(&found), ["tcp:192.0.2.1:1972"]);
    assert_eq!(world.asked.len(), 4);
}

#[test]
fn both_names_of_a_service_are_merged() {
    let mut world = World::new([
        ("_nk._tcp.example.org", Answer::Srv(vec![srv(20, 0, 1, "c1."), srv(5, 0, 1, "c2.")])),
        ("_nkcluster._tcp.example.org", Answer::Srv(vec![srv(10, 0, 1, "c3."), srv(1, 0, 1, "c2.")])),
        ("c1.", Answer::Addresses(vec![v4(1)])),
        ("c2.", Answer::Addresses(vec![v4(2)])),
        ("c3.", Answer::Addresses(vec![v4(3)])),
    ]);
    let found = world.search("nkcluster://example.org;transport=tcp", &mut highest).expect("found");
    assert_eq!(shown(&found), ["tcp:192.0.2.2:1", "tcp:192.0.2.3:1", "tcp:192.0.2.1:1"]);
}

#[test]
fn a_service_that_is_denied_is_not_looked_for_elsewhere() {
    let mut world =
        World::new([("_nk._tcp.example.org", Answer::Srv(vec![srv(0, 0, 0, ".")])), ("example.org", Answer::Addresses(vec![v4(1)]))]);
    let error = world.search("nkcluster://example.org;transport=tcp", &mut highest).expect_err("denied");
    assert_eq!(error, "cannot resolve example.org: DNS says that the service is not offered there");
}

#[test]
fn what_does_not_exist_is_told_from_what_could_not_be_found_out() {
    let error = World::default().search("nkcluster://example.org", &mut highest).expect_err("nothing");
    assert_eq!(error, "cannot resolve example.org: there is no such name, or it has no address");
    let failed = || Answer::Failed("refused".to_owned());
    let mut world = World::new([("example.org", failed())]);
    let error = world.search("nkcluster://example.org:1", &mut highest).expect_err("failed");
    assert_eq!(error, "cannot resolve example.org: DNS failed, it may come back (addresses of example.org: refused)");
    // A service that cannot be asked for does not hide an address.
    let mut world = World::new([("_nk._tcp.example.org", failed()), ("example.org", Answer::Addresses(vec![v4(1)]))]);
    assert!(world.search("nkcluster://example.org;transport=tcp", &mut highest).is_ok());
}

#[test]
fn addresses_of_both_families_are_shuffled_each() {
    let all: Vec<_> = (1..=6).map(v4).chain((1..=6).map(v6)).rev().collect();
    let orders: std::collections::BTreeSet<Vec<String>> = (0..50)
        .map(|seed| {
            let mut world = World::new([("example.org", Answer::Addresses(all.clone()))]);
            let found = world.search("nkcluster://example.org:1", &mut generator(seed)).expect("found");
            assert!(found.iter().map(|found| found.addr.is_ipv4()).eq([true; 6].into_iter().chain([false; 6])));
            shown(&found)
        })
        .collect();
    assert!(orders.len() > 40, "{} orders in 50 searches", orders.len());
}

#[test]
fn a_lying_server_wastes_a_bounded_number_of_attempts() {
    let leads = (0..3000).map(|i| naptr(i, 0, "S", "NK+D2T", if i % 2 == 0 { "a." } else { "b." })).collect();
    let services = |base: u16| Answer::Srv((0..3000).map(|i| srv(i % 7, i, base + i, if i % 2 == 0 { "c1." } else { "a." })).collect());
    let addresses: Vec<_> = (0..3000_u16).map(|i| (IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, i)), Source::Aaaa)).collect();
    let mut world = World::new([
        ("example.org", Answer::Naptr(leads)),
        ("a.", services(1)),
        ("b.", services(10_000)),
        ("c1.", Answer::Addresses(addresses.clone())),
        ("a.", Answer::Addresses(addresses)),
    ]);
    let found = world.search("nkcluster://example.org", &mut generator(7)).expect("found");
    assert_eq!(found.len(), FOUND_MAX);
    assert_eq!(world.asked.len(), 3);
}

#[test]
fn an_srv_record_of_weight_0_is_rarely_first() {
    let mut first = BTreeMap::new();
    let mut dice = generator(42);
    for _ in 0..4000 {
        let ordered = by_weight(vec![("heavy", 300), ("light", 100), ("none", 0)], |(_, weight)| (1, *weight), &mut dice);
        *first.entry(ordered[0].0).or_insert(0) += 1;
    }
    // Expected 2993, 998 and 10; a tenth of the larger ones is more than five standard deviations.
    assert!((2700..3300).contains(&first["heavy"]), "{first:?}");
    assert!((800..1200).contains(&first["light"]), "{first:?}");
    assert!(first.get("none").is_none_or(|count| *count < 60), "{first:?}");
}

proptest! {
    #[test]
    fn srv_records_are_all_there_by_priority(records in prop::collection::vec((0_u16..4, any::<u16>()), 0..20), seed in any::<u64>()) {
        let mut dice = generator(seed);
        let mut ordered = by_weight(records.clone(), |record| *record, &mut dice);
        prop_assert!(ordered.is_sorted_by_key(|(priority, _)| *priority));
        let mut expected = records;
        expected.sort_unstable();
        ordered.sort_unstable();
        prop_assert_eq!(ordered, expected);
    }

    #[test]
    fn any_answers_lead_to_an_end(
        leads in prop::collection::vec((any::<u16>(), any::<u16>(), prop::sample::select(vec!["NK+D2T", "NKS+D2W", "x"]), 0_usize..4), 0..8),
        services in prop::collection::vec(prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>(), 0_usize..5), 0..8), 4),
        seed in any::<u64>(),
    ) {
        const NAMES: [&str; 5] = ["example.org.", "_nk._tcp.example.org", "a.", "b.", "."];
        let leads = leads.into_iter().map(|(order, preference, service, name)| naptr(order, preference, "S", service, NAMES[name])).collect();
        let mut answers = vec![("example.org", Answer::Naptr(leads)), ("a.", Answer::Addresses(vec![v4(1), v6(1), v4(1)])), ("b.", Answer::Failed("x".into()))];
        for (name, records) in NAMES.into_iter().zip(services) {
            let records = records.into_iter().map(|(priority, weight, port, target)| srv(priority, weight, port, NAMES[target]));
            answers.push((name, Answer::Srv(records.collect())));
        }
        let found = World::new(answers).search("nkcluster://example.org", &mut generator(seed)).unwrap_or_default();
        let mut seen = std::collections::BTreeSet::new();
        prop_assert!(found.iter().all(|found| found.addr.port() != 0 && seen.insert((found.transport, found.addr))));
    }
}

#[tokio::test]
async fn the_hosts_file_comes_before_dns_and_is_read_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.7 c1.example.org c1\n2001:db8::7 c1\n").expect("written");
    // Nobody answers there.
    let server = "127.0.0.1:1".parse().expect("an address");
    let resolver = Resolver::with_hosts(vec![server], std::time::Duration::from_secs(30), hosts.clone());
    let find = async |text: &str| resolver.find(&uri(text), std::time::Duration::from_secs(20)).await;
    let found = find("nkcluster://c1").await.expect("found");
    assert_eq!(shown(&found), ["tcp:192.0.2.7:1972", "tcp:[2001:db8::7]:1972"]);
    assert_eq!(found[0].steps[0].to_string(), "hosts file c1");
    let found = find("nkcluster://C1.Example.Org.;transport=wss").await.expect("found");
    assert_eq!(shown(&found), ["wss:192.0.2.7:1975"]);
    std::fs::write(&hosts, "192.0.2.8 c1\n").expect("written");
    assert_eq!(shown(&find("nkcluster://c1:5").await.expect("found")), ["tcp:192.0.2.8:5"]);
}

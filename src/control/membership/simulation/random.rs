//! Clusters to which anything happens, in any order; then quiet, in which they must agree.

use proptest::prelude::*;

use super::*;

/// What can happen to a cluster of a few nodes.
#[derive(Clone, Debug)]
enum Mischief {
    Kill(Name, bool),
    Start(Name),
    Sleep(Name),
    Wake(Name),
    Block(Name, Name),
    Unblock(Name, Name),
    Cut(Name, Name),
    Lossy(bool),
    Wait(u64),
}

const NODES: Name = 5;
/// Longest time until all agree after everything was healed.
const QUIET: Duration = Duration::from_secs(45);

fn mischief() -> impl Strategy<Value = Mischief> {
    let name = 1..=NODES;
    prop_oneof![
        2 => (name.clone(), any::<bool>()).prop_map(|(name, with)| Mischief::Kill(name, with)),
        3 => name.clone().prop_map(Mischief::Start),
        1 => name.clone().prop_map(Mischief::Sleep),
        2 => name.clone().prop_map(Mischief::Wake),
        3 => (name.clone(), name.clone()).prop_map(|(a, b)| Mischief::Block(a, b)),
        3 => (name.clone(), name.clone()).prop_map(|(a, b)| Mischief::Unblock(a, b)),
        2 => (name.clone(), name).prop_map(|(a, b)| Mischief::Cut(a, b)),
        1 => any::<bool>().prop_map(Mischief::Lossy),
        5 => (1_u64..8_000).prop_map(Mischief::Wait),
    ]
}

fn make(simulation: &mut Simulation, mischief: &Mischief) {
    match *mischief {
        Mischief::Kill(name, with_machine) => simulation.kill(name, with_machine),
        Mischief::Start(name) if !simulation.running().contains(&name) => simulation.start_node(name),
        Mischief::Start(_) => {}
        Mischief::Sleep(name) => simulation.sleep(name, true),
        Mischief::Wake(name) => simulation.sleep(name, false),
        Mischief::Block(a, b) => simulation.block(a, b, a != b),
        Mischief::Unblock(a, b) => simulation.block(a, b, false),
        Mischief::Cut(a, b) => simulation.cut(a, b),
        Mischief::Lossy(on) => simulation.loss = on.then_some(5),
        Mischief::Wait(ms) => simulation.run(Duration::from_millis(ms)),
    }
}

/// Everything is healed; everybody who runs must come to agree, and then stay so.
fn settles(simulation: &mut Simulation) {
    simulation.blocked.clear();
    simulation.loss = None;
    for name in simulation.running() {
        simulation.sleep(name, false);
    }
    // Somebody whom the others know must be there.
    if !simulation.running().contains(&1) {
        simulation.start_node(1);
    }
    let running = simulation.running();
    simulation.until("all agree", QUIET, |simulation| simulation.agree(&running));
    // All may agree by way of a third, before the last pair has dialled, and has heard each other steadily.
    simulation.seconds(30);
    assert!(simulation.agree(&running));
    simulation.changes();
    simulation.seconds(30);
    let changes = simulation.changes();
    assert!(simulation.agree(&running) && changes.values().all(|changes| *changes == 0), "quiet, but: {changes:?}");
    assert_eq!(simulation.never_wrong(), Ok(()));
    for name in running {
        let alarms = &simulation.nodes[&name].alarms;
        assert!(alarms.is_empty(), "no two nodes had one name, but {name}: {alarms:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_all_agree_when_it_is_over(seed: u64, story in proptest::collection::vec(mischief(), 1..40)) {
        let mut simulation = Simulation::with_nodes(NODES, seed);
        simulation.seconds(3);
        for mischief in &story {
            make(&mut simulation, mischief);
        }
        settles(&mut simulation);
    }
}

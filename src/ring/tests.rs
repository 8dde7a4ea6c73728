use std::collections::BTreeMap;

use proptest::collection::btree_set;
use proptest::prelude::*;

use super::*;

fn id(name: impl AsRef<str>) -> NodeId {
    NodeId::new(name).expect("a valid id")
}

fn size(partitions: usize) -> RingSize {
    RingSize::new(partitions).expect("a size")
}

fn ring(partitions: usize, nodes: &[&str]) -> Ring {
    Ring::new(size(partitions), nodes.iter().map(id))
}

/// `count` nodes of one of many clusters.
fn nodes(cluster: usize, count: usize) -> Vec<NodeId> {
    (0..count).map(|node| id(format!("c{cluster}-{node}"))).collect()
}

fn partition(index: u16) -> Partition {
    Partition(index)
}

/// The assignment as the chapter comment says it, without any haste.
fn plain_owners(size: RingSize, nodes: &[NodeId]) -> Vec<NodeId> {
    let (floor, mut extra) = (size.partitions() / nodes.len(), size.partitions() % nodes.len());
    let mut pairs = Vec::new();
    for node in nodes {
        pairs.extend((0..size.0).map(|index| (weight(node, Partition(index)), index, node.clone())));
    }
    pairs.sort();
    let (mut owners, mut taken) = (BTreeMap::new(), BTreeMap::<NodeId, usize>::new());
    for (_, index, node) in pairs.into_iter().rev() {
        let taken = taken.entry(node.clone()).or_default();
        if owners.contains_key(&index) || *taken > floor || (*taken == floor && extra == 0) {
            continue;
        }
        extra -= usize::from(*taken == floor);
        *taken += 1;
        owners.insert(index, node);
    }
    owners.into_values().collect()
}

fn loads(ring: &Ring) -> Vec<usize> {
    ring.nodes().iter().map(|node| ring.partitions_of(node).count()).collect()
}

// ---- frozen values: a change of any of these is a new version of the ring

#[test]
fn hashes_of_keys_are_frozen() {
    // XXH3-64 of the empty text and of "a" are those of the specification's own test vectors.
    let vectors = [
        ("", 0x2d06_8005_38d3_94c2_u64),
        ("a", 0xe6c6_32b6_1e96_4e1f),
        ("dev1", 0x6065_f3c6_390e_a11f),
        ("worker-0123456789abcdef0123456789abcdef", 0xf62c_3c17_deb5_356b),
    ];
    for (key, hash) in vectors {
        assert_eq!(format!("{:016x}", KeyHash::of(key).bits()), format!("{hash:016x}"), "{key:?}");
    }
    assert_eq!(RingSize::MIN.partition_of(KeyHash::of("a")).index(), 0b111);
    assert_eq!(RingSize::default().partition_of(KeyHash::of("a")).index(), 0xe6);
    assert_eq!(RingSize::MAX.partition_of(KeyHash::of("a")).index(), 0xe6c);
    assert_eq!(RingSize::MAX.partition_of(KeyHash::from_bits(u64::MAX)).index(), 4095);
    assert_eq!(RingSize::MAX.partition_of(KeyHash::from_bits(0)).index(), 0);
}

#[test]
fn weights_are_frozen() {
    let vectors = [
        ("dev1", 0, 0xe74c_6dff_6f5a_45aa_u64),
        ("dev1", 1, 0x3689_77cc_9cf8_24f8),
        ("dev1", 4095, 0x763e_0565_c166_06b7),
        ("control-2.example.org", 255, 0xd655_b62a_bb4a_1c55),
    ];
    for (node, index, expected) in vectors {
        assert_eq!(format!("{:016x}", weight(&id(node), partition(index))), format!("{expected:016x}"), "{node} {index}");
    }
}

#[test]
fn assignment_is_frozen() {
    let owners = |ring: &Ring| ring.owners().map(|owner| owner.as_str().trim_start_matches("dev").to_owned()).collect::<String>();
    let three = ring(32, &["dev1", "dev2", "dev3"]);
    assert_eq!(owners(&three), "23131113223111211332212231332232");
    assert_eq!(format!("{:016x}", three.epoch()), "25484798b292b74b");
    assert_eq!(owners(&three.without(&id("dev2"))), "33131113313111311311113131333333");
    assert_eq!(owners(&three.with(id("dev4"))), "23131114243142211334212234332444");
    let large = Ring::new(RingSize::MAX, nodes(0, 100));
    assert_eq!(format!("{:016x}", xxh3_64(owners(&large).as_bytes())), "99c1aa32ff95d904");
    assert_eq!(format!("{:016x}", large.epoch()), "312bef84748b6d15");
}

// ---- examples

#[test]
fn sizes_are_powers_of_two_from_8_to_4096() {
    let good: Vec<usize> = (0..=70_000).filter(|partitions| RingSize::new(*partitions).is_ok()).collect();
    assert_eq!(good, [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]);
    let error = RingSize::new(65_536 + 8).expect_err("too many");
    assert_eq!(error.code(), &ErrorCode::InvalidConfig);
    assert_eq!(error.message(), "ring_size is 65544, expected a power of two from 8 to 4096");
}

#[test]
fn nobody_owns_anything_in_an_empty_ring() {
    let empty = ring(8, &[]);
    assert_eq!((empty.owner("a"), empty.owners().len()), (None, 0));
    assert_eq!(empty.successors(partition(0), 3), Vec::<&NodeId>::new());
    let plan = Plan::join(&empty, id("a"));
    assert_eq!(plan.transfers, [Transfer { from: None, to: Some(id("a")), partitions: 8 }]);
    assert_eq!((plan.moved, plan.least), (8, 8));
    let plan = Plan::leave(&ring(8, &["a"]), &id("a"));
    assert_eq!(plan.transfers[0].to_string(), "a → nobody: 8");
    assert_eq!((plan.moved, plan.least), (8, 8));
}

#[test]
fn with_more_nodes_than_partitions_some_own_nothing() {
    let crowd = Ring::new(RingSize::MIN, nodes(0, 20));
    let loads = loads(&crowd);
    assert_eq!(loads.iter().sum::<usize>(), 8);
    assert!(loads.iter().all(|load| *load <= 1), "{loads:?}");
}

#[test]
fn a_plan_says_who_gives_what_to_whom() {
    let old = ring(16, &["a", "b", "c"]);
    let plan = Plan::join(&old, id("d"));
    assert_eq!(plan, Plan::between(&old, &ring(16, &["d", "c", "b", "a"])).expect("of one size"));
    assert_eq!(plan.gained(&id("d")), 4);
    let given: usize = ["a", "b", "c"].map(|node| plan.given(&id(node)) - plan.gained(&id(node))).iter().sum();
    assert_eq!(given, 4);
    assert_eq!(plan.moved, plan.transfers.iter().map(|transfer| transfer.partitions).sum::<usize>());
    assert_eq!(Plan::join(&old, id("a")).transfers, []);
    assert_eq!(Plan::leave(&old, &id("nobody")).transfers, []);
}

#[test]
fn rings_of_different_sizes_have_no_moves() {
    let error = moves(&ring(8, &["a"]), &ring(16, &["a"])).expect_err("they have nothing in common");
    assert_eq!(error.to_string(), "a ring of 8 partitions cannot become one of 16");
    assert!(Plan::between(&ring(8, &["a"]), &ring(16, &["a"])).is_err());
    let (small, large) = (ring(8, &["a"]), ring(16, &["a"]));
    assert_eq!(small.owner_of(large.partitions().last().expect("it has some")), None);
}

/// Joins of many clusters: the worst, and all together, in moves per least possible move.
fn joins(partitions: usize, count: usize) -> (f64, f64) {
    const CLUSTERS: usize = 6;
    let (mut worst, mut moved, mut least) = (0_f64, 0, 0);
    for cluster in 0..CLUSTERS {
        let mut nodes = nodes(cluster, count + 1);
        let newcomer = nodes.pop().expect("there is one more");
        let plan = Plan::join(&Ring::new(size(partitions), nodes), newcomer);
        worst = worst.max(plan.moved as f64 / plan.least as f64);
        moved += plan.moved;
        least += plan.least;
    }
    (worst, moved as f64 / least as f64)
}

#[test]
fn a_join_moves_little_more_than_it_must() {
    // As many partitions as are advised: 40 for each node, and more.
    for (partitions, count) in [(256, 1), (256, 2), (256, 3), (256, 5), (512, 8), (1024, 9), (4096, 9)] {
        let (worst, all) = joins(partitions, count);
        assert!(all <= 1.3 && worst <= 1.4, "{partitions} partitions, {count} nodes and one more: {all:.2}, at worst {worst:.2}");
    }
    for (partitions, count) in [(1024, 20), (2048, 50), (4096, 99)] {
        let (worst, all) = joins(partitions, count);
        assert!(all <= 3.5 && worst <= 3.5, "{partitions} partitions, {count} nodes and one more: {all:.2}, at worst {worst:.2}");
    }
}

// ---- properties

fn sizes() -> impl Strategy<Value = RingSize> {
    (3_u32..=9).prop_map(|k| size(1 << k))
}

fn names() -> impl Strategy<Value = Vec<NodeId>> {
    btree_set("[a-z0-9.-]{1,12}", 1..40).prop_map(|names| names.into_iter().map(id).collect())
}

proptest! {
    #[test]
    fn every_key_has_an_owner_and_loads_differ_by_one_at_most(size in sizes(), nodes in names(), keys in prop::collection::vec(any::<Vec<u8>>(), 20)) {
        let ring = Ring::new(size, nodes.clone());
        for key in &keys {
            let owner = ring.owner(key).expect("somebody owns it");
            prop_assert!(nodes.contains(owner));
            prop_assert_eq!(ring.owner_of(ring.partition(key)), Some(owner));
            prop_assert!(ring.partitions_of(owner).any(|partition| partition == ring.partition(key)));
        }
        let loads = loads(&ring);
        let (floor, extra) = (size.partitions() / nodes.len(), size.partitions() % nodes.len());
        prop_assert_eq!(loads.iter().filter(|load| **load == floor + 1).count(), extra);
        prop_assert_eq!(loads.iter().filter(|load| **load == floor).count(), nodes.len() - extra);
    }

    #[test]
    fn the_order_of_the_nodes_means_nothing((size, nodes, shuffled) in (sizes(), names()).prop_flat_map(|(size, nodes)| (Just(size), Just(nodes.clone()), Just(nodes).prop_shuffle()))) {
        let ring = Ring::new(size, nodes.clone());
        prop_assert_eq!(&ring, &Ring::new(size, shuffled.clone()));
        // Joined one by one, each of them twice.
        let grown = shuffled.iter().chain(&nodes).fold(Ring::new(size, []), |ring, node| ring.with(node.clone()));
        prop_assert_eq!(&ring, &grown);
    }

    #[test]
    fn the_quick_assignment_is_the_plain_one(size in sizes(), nodes in names()) {
        let ring = Ring::new(size, nodes);
        let owners: Vec<NodeId> = ring.owners().cloned().collect();
        prop_assert_eq!(owners, plain_owners(size, ring.nodes()));
    }

    #[test]
    fn no_partition_and_node_would_rather_have_each_other(size in sizes(), nodes in names()) {
        let ring = Ring::new(size, nodes);
        let room = size.partitions().div_ceil(ring.nodes().len());
        for partition in ring.partitions() {
            let owner = ring.owner_of(partition).expect("somebody");
            for node in ring.nodes().iter().filter(|node| weight(node, partition) > weight(owner, partition)) {
                // A heavier node is full, and full of what is heavier still; only nodes at their ceiling may lack that one.
                let heavier = ring.partitions_of(node).filter(|other| weight(node, *other) > weight(node, partition)).count();
                prop_assert!(heavier + 1 >= room, "{} for {}", node, partition);
            }
        }
    }

    #[test]
    fn what_a_leaving_node_had_moves_and_little_else(size in sizes(), nodes in names(), which in any::<prop::sample::Index>()) {
        let leaving = nodes[which.index(nodes.len())].clone();
        let ring = Ring::new(size, nodes);
        let rest = ring.without(&leaving);
        let plan = Plan::leave(&ring, &leaving);
        prop_assert_eq!(plan.given(&leaving), ring.partitions_of(&leaving).count());
        prop_assert_eq!(plan.gained(&leaving), 0);
        prop_assert!(plan.moved >= plan.least);
        // Who stays never ends with fewer than before, but for one that the division no longer grants.
        for node in rest.nodes() {
            prop_assert!(plan.given(node) <= plan.gained(node) + 1, "{}: {:?}", node, plan);
        }
        // To come back is the same way back.
        let back = Plan::join(&rest, leaving);
        prop_assert_eq!(back.moved, plan.moved);
    }

    #[test]
    fn moves_lead_from_one_ring_to_the_other(size in sizes(), before in names(), after in names()) {
        let (old, new) = (Ring::new(size, before), Ring::new(size, after));
        let mut owners: Vec<NodeId> = old.owners().cloned().collect();
        for Move { partition, from, to } in moves(&old, &new).expect("of one size") {
            prop_assert_ne!(&from, &to);
            prop_assert_eq!(from.as_ref(), Some(&owners[partition.index()]));
            owners[partition.index()] = to.expect("there are nodes");
        }
        prop_assert_eq!(owners, new.owners().cloned().collect::<Vec<_>>());
    }

    #[test]
    fn successors_are_the_others_by_weight(size in sizes(), nodes in names(), count in 0_usize..50) {
        let ring = Ring::new(size, nodes);
        for partition in ring.partitions().take(8) {
            let next = ring.successors(partition, count);
            prop_assert_eq!(next.len(), count.min(ring.nodes().len() - 1));
            prop_assert!(!next.contains(&ring.owner_of(partition).expect("somebody")));
            prop_assert!(next.is_sorted_by(|a, b| weight(a, partition) > weight(b, partition)));
            prop_assert_eq!(&ring.successors(partition, count / 2)[..], &next[..next.len().min(count / 2)]);
        }
    }

    #[test]
    fn epochs_are_equal_for_equal_rings_only(sizes in (sizes(), sizes()), one in names(), other in names()) {
        let (a, b) = (Ring::new(sizes.0, one), Ring::new(sizes.1, other));
        prop_assert_eq!(a.epoch() == b.epoch(), a == b);
        prop_assert_eq!(a.epoch(), Ring::new(a.size(), a.nodes().to_vec()).epoch());
    }
}

#[test]
fn the_epoch_tells_lists_apart_that_read_the_same() {
    assert_ne!(ring(8, &["a", "b"]).epoch(), ring(8, &["ab"]).epoch());
    assert_ne!(ring(8, &["a"]).epoch(), ring(16, &["a"]).epoch());
    assert_ne!(ring(8, &[]).epoch(), ring(8, &["a"]).epoch());
}

//! The ring: how long a lookup and a recomputation take, and how much a change moves against the least that it could.
//!
//! `cargo bench --bench ring`. Rows are described in `src/docs/benches.md`; with `NKCLUSTER_BENCH_JSON=FILE` they are appended there as NDJSON, a relative path
//! counts from the root of the workspace. The ratio is that of the value to the budget or, for moves, to the least; the program fails if a budget is missed.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nkcluster::ring::{Plan, Ring, RingSize};
use nkcluster::types::NodeId;

const LOOKUP_MAX_NS: f64 = 50.0;
const RECOMPUTE_MAX_MS: f64 = 5.0;
/// Clusters over which the moves of a join are summed.
const CLUSTERS: usize = 20;

/// Control nodes of the large cluster.
const PLANE_NODES: usize = 100;

fn nodes(cluster: usize, count: usize) -> Vec<NodeId> {
    (0..count).map(|node| NodeId::new(format!("control-{cluster}-{node}")).expect("a valid id")).collect()
}

fn size(partitions: usize) -> RingSize {
    RingSize::new(partitions).expect("a size")
}

/// The quickest of some rounds: what the code needs when nothing else takes the processor.
fn quickest(rounds: usize, mut round: impl FnMut()) -> Duration {
    let timed = (0..rounds).map(|_| {
        let start = Instant::now();
        round();
        start.elapsed()
    });
    timed.min().unwrap_or_default()
}

fn lookup() -> f64 {
    const KEYS: usize = 4096;
    let ring = Ring::new(size(1024), nodes(0, 128));
    let keys: Vec<String> = (0..KEYS).map(|key| format!("worker-{key:032x}")).collect();
    let time = quickest(50, || {
        for key in &keys {
            black_box(ring.owner(black_box(key)));
        }
    });
    time.as_secs_f64() * 1e9 / KEYS as f64
}

fn recompute() -> f64 {
    let nodes = nodes(0, 128);
    let time = quickest(50, || drop(black_box(Ring::new(size(1024), black_box(nodes.clone())))));
    time.as_secs_f64() * 1e3
}

/// Partitions that move when one node joins `count`, and the least that could, on average.
fn join(partitions: usize, count: usize) -> (f64, f64) {
    let (mut moved, mut least) = (0, 0);
    for cluster in 0..CLUSTERS {
        let mut nodes = nodes(cluster, count + 1);
        let newcomer = nodes.pop().expect("there is one more");
        let plan = Plan::join(&Ring::new(size(partitions), nodes), newcomer);
        moved += plan.moved;
        least += plan.least;
    }
    (moved as f64 / CLUSTERS as f64, least as f64 / CLUSTERS as f64)
}

/// Of a large cluster: how uneven workers are spread, and how many move when a control node comes or goes.
struct Plane {
    /// Workers of the node that has most.
    most: usize,
    joined: usize,
    lost: usize,
}

fn plane(workers: usize) -> Plane {
    let mut nodes = nodes(0, PLANE_NODES + 1);
    let newcomer = nodes.pop().expect("there is one more");
    let ring = Ring::new(size(4096), nodes.clone());
    let (with, without) = (ring.with(newcomer), ring.without(&nodes[PLANE_NODES / 2]));
    let mut held = std::collections::BTreeMap::<&NodeId, usize>::new();
    let (mut joined, mut lost) = (0, 0);
    for worker in 0..workers {
        let key = format!("worker-{worker}");
        let owner = ring.owner(&key).expect("there are nodes");
        *held.entry(owner).or_default() += 1;
        joined += usize::from(with.owner(&key) != Some(owner));
        lost += usize::from(without.owner(&key) != Some(owner));
    }
    Plane { most: held.values().copied().max().unwrap_or(0), joined, lost }
}

/// Prints and keeps a row; says if it is beyond its bound.
fn row(name: &str, value: f64, unit: &str, baseline: f64, ratio_max: f64) -> Option<String> {
    let ratio = value / baseline;
    println!("{name:<18} {value:>10.3} {unit:<7} {baseline:>10.1} {ratio:>7.3}   <= {ratio_max}");
    if let Some(path) = std::env::var_os("NKCLUSTER_BENCH_JSON") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let row = serde_json::json!({ "name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio });
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("NKCLUSTER_BENCH_JSON can be written");
        writeln!(file, "{row}").expect("NKCLUSTER_BENCH_JSON can be written");
    }
    (ratio > ratio_max).then(|| format!("{name} is {ratio:.2} times its baseline, more than {ratio_max}"))
}

fn main() {
    println!("{:<18} {:>10} {:<7} {:>10} {:>7}   budget", "row", "value", "unit", "baseline", "ratio");
    let mut missed = Vec::new();
    missed.extend(row("ring_lookup", lookup(), "ns", LOOKUP_MAX_NS, 1.0));
    missed.extend(row("ring_recompute", recompute(), "ms", RECOMPUTE_MAX_MS, 1.0));
    for (name, partitions, count, bound) in
        [("ring_join_3", 256, 2, 1.3), ("ring_join_6", 256, 5, 1.3), ("ring_join_10", 1024, 9, 1.3), ("ring_join_100", 4096, 99, 3.5)]
    {
        let (moved, least) = join(partitions, count);
        missed.extend(row(name, moved, "moves", least, bound));
    }
    for (workers, names) in [
        (20_000, ["plane_20000_most", "plane_20000_join", "plane_20000_lost"]),
        (100_000, ["plane_100000_most", "plane_100000_join", "plane_100000_lost"]),
    ] {
        let Plane { most, joined, lost } = plane(workers);
        let share = workers as f64 / PLANE_NODES as f64;
        missed.extend(row(names[0], most as f64, "workers", share, 1.4));
        missed.extend(row(names[1], joined as f64, "moves", workers as f64 / (PLANE_NODES + 1) as f64, 4.0));
        missed.extend(row(names[2], lost as f64, "moves", share, 4.0));
    }
    assert!(missed.is_empty(), "{}", missed.join("; "));
}

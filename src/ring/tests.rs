use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid id")
}

fn ids(count: usize) -> Vec<NodeId> {
    (0..count).map(|i| id(&format!("control-{i}"))).collect()
}

fn size(partitions: usize) -> RingSize {
    RingSize::new(partitions).expect("a size")
}

#[test]
#[ignore]
fn simulate() {
    for partitions in [256, 1024, 4096] {
        for n in [1usize, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 20, 30, 50, 70, 99] {
            let (mut sum, mut max, mut lsum, mut ex, mut lv, mut lvl) = (0, 0f64, 0, 0, 0, 0);
            for run in 0..20 {
                let nodes: Vec<_> = (0..=n).map(|i| id(&format!("r{run}-{i}"))).collect();
                let old = Ring::new(size(partitions), nodes[..n].to_vec());
                let plan = Plan::join(&old, nodes[n].clone());
                let new = old.with(nodes[n].clone());
                let back = Plan::leave(&new, &nodes[n]);
                lv += back.moved;
                lvl += back.least;
                sum += plan.moved;
                lsum += plan.least;
                ex += plan.gained(&nodes[n]);
                max = max.max(plan.moved as f64 / plan.least as f64);
            }
            println!(
                "{partitions} {n}: {:.2} max {max:.2} least {:.1} leave {:.2}",
                sum as f64 / lsum as f64,
                lsum as f64 / 20.0,
                lv as f64 / lvl as f64
            );
        }
    }
}

//! Stories drawn from a seed; and the same with a rule taken away, which must be noticed.

use super::*;
use crate::queue::fault::{Fault, build_in};

const FAULTS: [Fault; 9] = [
    Fault::NoNames,
    Fault::CountsTwice,
    Fault::NoRevocation,
    Fault::NoChildren,
    Fault::NoSeal,
    Fault::NoBatchFailure,
    Fault::NoController,
    Fault::NoRecord,
    Fault::NoEnd,
];

const SEEDS: u64 = 60;
/// Within so many stories a fault must be found.
const SEEDS_FOR_A_FAULT: u64 = 300;

/// One story.
async fn story(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed, Honours { creates_once: true, renames: seed.is_multiple_of(2) });
    for name in 0..2 + random() % 3 {
        world.start_worker(name);
    }
    match random() % 8 {
        0 => desert(world).await,
        1 => two_controllers(world).await,
        2 => disturbed(world, true).await,
        3..=5 => late(world).await,
        _ => disturbed(world, false).await,
    }
}

/// Anything happens to anybody for a while; then nothing does, and the run must come to its end.
async fn disturbed(mut world: World, kills_controllers: bool) -> Result<(), String> {
    if random().is_multiple_of(3) {
        world.memory.damage_one_of(4);
    }
    let mut handle = world.start_controller(RunStart::New).await;
    world.plan(&handle).await;
    let end = Instant::now() + Duration::from_secs(random() % 90);
    // Each story has troubles of its own: with all of them at once, one hides the other.
    let troubles = random();
    let (mut wakes, mut was_resumed): (Vec<(Instant, Arc<Client>)>, bool) = (Vec::new(), false);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random() % 3_000)).await;
        wakes.retain(|(at, client)| {
            let sleeps_on = *at > Instant::now();
            if !sleeps_on {
                client.sleep(false);
                client.fail_one_of(0);
            }
            sleeps_on
        });
        let until = Instant::now() + Duration::from_millis(random() % 40_000);
        let name = random() % 5;
        let worker = world.workers.get(&name).map(|node| Arc::clone(&node.client));
        let controller = Arc::clone(world.controllers.last().expect("a controller"));
        match (random() % 8, worker) {
            (trouble, Some(_)) if (troubles >> trouble) & 1 == 0 => {}
            (0, Some(client)) => {
                client.sleep(true);
                wakes.push((until, client));
            }
            (1, Some(_)) => world.workers.remove(&name).expect("it is there").handle.kill(),
            (2, Some(_)) => world.workers[&name].handle.stop(),
            (3, Some(client)) => {
                client.fail_one_of(3 + random() % 10);
                wakes.push((until, client));
            }
            (4, Some(_)) => {
                controller.fail_one_of(3 + random() % 10);
                wakes.push((until, controller));
            }
            (5, Some(_)) => {
                controller.sleep(true);
                wakes.push((until, controller));
            }
            (6, Some(_)) if kills_controllers => {
                handle.kill();
                handle = world.start_controller(RunStart::Resume).await;
                world.plan(&handle).await;
                was_resumed = true;
            }
            (_, None) => world.start_worker(name),
            _ => {}
        }
        world.check_effects()?;
        if handle.is_over() {
            break;
        }
    }
    world.heal();
    let end = end_of(handle, QUIET).await?;
    // Who comes late has its time now.
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.check_end(&end, was_resumed)
}

/// Workers sleep for as long as makes them lose a batch, and wake up while another is at it.
async fn late(mut world: World) -> Result<(), String> {
    (world.files, world.options.batch_files) = (160, 80);
    let handle = world.start_controller(RunStart::New).await;
    world.plan(&handle).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300 + random() % 2_500)).await;
        // Whoever wakes up soon after its batch was offered again has the most time to do harm.
        let sleepers: Vec<_> = world.workers.values().take(1 + (random() % 2) as usize).map(|node| Arc::clone(&node.client)).collect();
        sleepers.iter().for_each(|client| client.sleep(true));
        tokio::time::sleep(Duration::from_millis(10_000 + random() % 5_000)).await;
        sleepers.iter().for_each(|client| client.sleep(false));
        world.check_effects()?;
    }
    let end = end_of(handle, QUIET).await?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.check_end(&end, false)
}

/// All workers die: the run ends all the same, and says so.
async fn desert(mut world: World) -> Result<(), String> {
    let handle = world.start_controller(RunStart::New).await;
    world.plan(&handle).await;
    tokio::time::sleep(Duration::from_millis(random() % 2_000)).await;
    for (_, node) in std::mem::take(&mut world.workers) {
        node.handle.kill();
    }
    let end = end_of(handle, QUIET).await?;
    match end.error {
        Some(RunError::NoWorkers { .. }) => world.check_effects(),
        None => world.check_end(&end, false),
        Some(error) => Err(format!("the workers are gone, and the run ended by {error}")),
    }
}

/// A controller sleeps and is taken for dead; when it wakes up there is another.
async fn two_controllers(mut world: World) -> Result<(), String> {
    let old = world.start_controller(RunStart::New).await;
    world.plan(&old).await;
    tokio::time::sleep(Duration::from_millis(random() % 5_000)).await;
    let sleeper = Arc::clone(&world.controllers[0]);
    sleeper.sleep(true);
    let was_over = old.is_over();
    let new = match was_over {
        true => return Ok(()),
        false => world.start_controller(RunStart::Resume).await,
    };
    world.plan(&new).await;
    tokio::time::sleep(Duration::from_millis(random() % 10_000)).await;
    sleeper.sleep(false);
    let (old, new) = (end_of(old, QUIET).await?, end_of(new, QUIET).await?);
    world.check_end(&new, true)?;
    match old.error {
        Some(RunError::Superseded) => Ok(()),
        // What it was asked for was all done when it looked last; it is the end of the run that it must leave alone.
        error => Err(format!("the old controller went on beside the new one, and ended with {error:?}")),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

#[test]
fn every_run_ends_as_promised() {
    let seeds = match number("NKCLUSTER_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NKCLUSTER_MODEL_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(wrong) = simulate(story(seed)) {
            panic!(
                "{wrong}\nto see it again: NKCLUSTER_MODEL_SEED={seed} cargo test -p nkcluster-file-sync --lib every_run_ends_as_promised"
            );
        }
    }
}

#[test]
fn every_rule_of_the_queue_that_is_taken_away_is_missed() {
    let mut unnoticed = Vec::new();
    for fault in FAULTS {
        build_in(Some(fault));
        let found = (0..SEEDS_FOR_A_FAULT).find_map(|seed| simulate(story(seed)).err().map(|wrong| (seed, wrong)));
        build_in(None);
        match found {
            Some((seed, wrong)) => println!("{fault:?}: found with seed {seed}: {wrong}"),
            None => unnoticed.push(fault),
        }
    }
    assert!(unnoticed.is_empty(), "not noticed within {SEEDS_FOR_A_FAULT} stories: {unnoticed:?}");
}

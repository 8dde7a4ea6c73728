//! A copy by the workers of a cluster, whose control nodes, workers and command are killed, frozen and woken at any moment.

use rustix::process::Signal;

use crate::blows::{Dice, for_each_seed};
use crate::copy::{FILES, Process, stats};
use crate::placed_copy::{Stage, files_below};
use crate::several::{NAMES, WORKERS};
use crate::support::{Daemon, wait_for};

/// Seeds of an ordinary run.
const SEEDS: u64 = 1;
/// Things that happen while a run is under way.
const BLOWS: u64 = 4;
/// So many files are left when the last blow falls: the run is not over yet.
const REST: usize = 60;
/// Bytes per second of each worker.
const RATE: &str = "100k";

struct Chaos {
    stage: Stage,
    dice: Dice,
    command: Option<Process>,
    frozen_control: Option<usize>,
    frozen_worker: Option<usize>,
    are_workers_untouched: bool,
}

impl Chaos {
    fn begin(seed: u64) -> Self {
        let stage = Stage::new();
        let (command, dice) = (Some(stage.start(RATE)), Dice::of(seed));
        Self { stage, dice, command, frozen_control: None, frozen_worker: None, are_workers_untouched: true }
    }

    fn copied(&self) -> usize {
        files_below(&self.stage.room.path("destination"))
    }

    /// Waits for some progress, so that blows fall at moments of every kind; false if there is not enough left.
    fn goes_on(&mut self) -> bool {
        let wanted = self.copied() + 1 + self.dice.below(40);
        if wanted > FILES - REST {
            return false;
        }
        wait_for("the copy to go on", || (self.copied() >= wanted).then_some(()));
        true
    }

    /// Something happens; it is told.
    fn blow(&mut self) -> String {
        match self.dice.below(10) {
            0..3 => {
                let number = self.dice.below(NAMES.len());
                // One that is frozen is killed too.
                self.frozen_control = self.frozen_control.filter(|frozen| *frozen != number);
                self.stage.plane.kill(NAMES[number]);
                self.stage.plane.restart(NAMES[number]);
                format!("{} was killed, and is back", NAMES[number])
            }
            3..5 => {
                let number = self.dice.below(NAMES.len());
                toggle(&mut self.frozen_control, &self.stage.plane.controls, number)
            }
            5..6 => {
                // Dropped, it is killed.
                self.command = None;
                "the command was killed".to_owned()
            }
            6..8 => {
                self.are_workers_untouched = false;
                let number = self.dice.below(WORKERS.len());
                self.frozen_worker = self.frozen_worker.filter(|frozen| *frozen != number);
                self.stage.plane.restart_worker(number);
                format!("{} was killed, and is back", WORKERS[number])
            }
            _ => {
                self.are_workers_untouched = false;
                let number = self.dice.below(WORKERS.len());
                toggle(&mut self.frozen_worker, &self.stage.plane.workers, number)
            }
        }
    }

    /// Nothing more happens, and everybody is awake: the run ends as it must.
    fn end(self) {
        for (frozen, daemons) in [(self.frozen_control, &self.stage.plane.controls), (self.frozen_worker, &self.stage.plane.workers)] {
            if let Some(number) = frozen {
                daemons[number].signal(Signal::CONT);
            }
        }
        wait_for("everything to be there", || (self.copied() == FILES).then_some(()));
        self.stage.plane.agree(&NAMES);
        let ran = self.stage.follow();
        let counted = stats(&ran)["transfers"].as_u64().expect("a number");
        assert!(counted <= FILES as u64, "a file was counted twice: {ran:?}");
        // What a worker has done that dies with its numbers is counted by nobody.
        assert!(counted == FILES as u64 || !self.are_workers_untouched, "not every file was counted: {ran:?}");
        self.stage.room.is_copied();
    }
}

/// Freezes one, unless one is frozen already, which is woken.
fn toggle(frozen: &mut Option<usize>, daemons: &[Daemon], number: usize) -> String {
    match frozen.take() {
        Some(number) => {
            daemons[number].signal(Signal::CONT);
            format!("{} was woken", daemons[number].id())
        }
        None => {
            daemons[number].signal(Signal::STOP);
            *frozen = Some(number);
            format!("{} was frozen", daemons[number].id())
        }
    }
}

#[test]
fn whoever_is_killed_or_frozen_at_any_moment_a_run_of_a_cluster_ends_with_the_same_tree_and_says_so() {
    for_each_seed(SEEDS, "placed_chaos", |seed, story| {
        let mut chaos = Chaos::begin(seed);
        for _ in 0..BLOWS {
            if !chaos.goes_on() {
                break;
            }
            story.push(chaos.blow());
        }
        chaos.end();
    });
}

//! A copy through a queue for which workers of a cluster work, while they, the command and the control node are killed, frozen and woken at any moment.

use std::fs::{self, File};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::blows::{Dice, for_each_seed};
use crate::copy::{FILES, Process, tree};
use crate::placed_copy::files_below;
use crate::queue_copy::{Stage, copy};
use crate::support::wait_for;

/// Seeds of an ordinary run.
const SEEDS: u64 = 1;
/// Things that happen while a run is under way.
const BLOWS: u64 = 5;
/// So many files are left when the last blow falls: the run is not over yet.
const REST: usize = 60;
/// Until a worker has noticed by itself that the run is over, on a busy machine: it looks each half minute, and first misses its controller for some time.
const NOTICED: Duration = Duration::from_secs(180);

struct Chaos {
    stage: Stage,
    dice: Dice,
    command: Process,
    /// By the order in which the stage has its workers: those that are there, and whether they sleep.
    workers: Vec<Option<bool>>,
}

/// Slow enough for every blow to fall while somebody is at work.
fn command(stage: &Stage, more: &[&str]) -> Process {
    let mut command = copy(&stage.room, &stage.cli(), "storage", "100k", more);
    let [said, complained] = ["said", "complained"].map(|name| File::create(stage.room.path(name)).expect("made"));
    Process(command.stdin(Stdio::null()).stdout(said).stderr(complained).spawn().expect("it starts"))
}

impl Chaos {
    fn begin(seed: u64) -> Self {
        let stage = Stage::with_workers(["w1", "w2"]);
        Self { command: command(&stage, &[]), stage, dice: Dice::of(seed), workers: vec![Some(false), Some(false)] }
    }

    /// Waits for some progress, so that blows fall at moments of every kind; false if there is not enough left.
    fn goes_on(&mut self) -> bool {
        let copied = || files_below(&self.stage.room.path("destination"));
        let wanted = copied() + 1 + self.dice.below(30);
        if wanted > FILES - REST {
            return false;
        }
        wait_for("the copy to go on", || (copied() >= wanted).then_some(()));
        true
    }

    /// Something happens; it is told.
    fn blow(&mut self) -> String {
        let there: Vec<usize> = (0..self.workers.len()).filter(|at| self.workers[*at].is_some()).collect();
        let at = there[self.dice.below(there.len())];
        let told = match self.dice.below(10) {
            0..3 => {
                self.kill_command();
                "the command was killed".to_owned()
            }
            3..5 => {
                self.stage.workers[at].signal(Signal::KILL);
                self.stage.workers[at].wait();
                self.workers[at] = None;
                format!("{} was killed", self.stage.workers[at].id())
            }
            5 => {
                self.stage.restart_control();
                "the control node was killed and started again".to_owned()
            }
            _ => {
                let is_frozen = !self.workers[at].expect("it is there");
                self.workers[at] = Some(is_frozen);
                self.stage.workers[at].signal(if is_frozen { Signal::STOP } else { Signal::CONT });
                format!("{} was {}", self.stage.workers[at].id(), if is_frozen { "frozen" } else { "woken" })
            }
        };
        if !self.workers.contains(&Some(false)) {
            let id = format!("w{}", self.workers.len() + 1);
            self.stage.worker(&id, &self.stage.room.path(""));
            self.workers.push(Some(false));
        }
        told
    }

    fn kill_command(&mut self) {
        self.command.signal(Signal::KILL);
        let killed = &mut self.command;
        wait_for("the command to end", || killed.has_ended());
        self.command = command(&self.stage, &["--resume"]);
    }

    /// Waits until a worker has no task any more. Whoever was not told the end notices it after some time, and may have slept.
    fn has_ended(&self, at: usize) {
        let (id, cli, deadline) = (self.stage.workers[at].id(), self.stage.cli(), Instant::now() + NOTICED);
        loop {
            let ran = cli.script(&["task", "list", id, "file_sync"]);
            // One that was frozen may still be on its way back.
            if ran.code == Some(0) && ran.json().as_array().is_some_and(Vec::is_empty) {
                return;
            }
            assert!(Instant::now() < deadline, "{id} works on: {ran:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Nothing more happens: the run ends as it must, and whoever wakes up late changes nothing.
    fn end(mut self) {
        let code = wait_for("the run to end", || self.command.has_ended());
        let [said, complained] = ["said", "complained"].map(|name| fs::read_to_string(self.stage.room.path(name)).expect("text"));
        assert_eq!(code, 0, "{said}{complained}");
        let summary: serde_json::Value = serde_json::from_str(&said).expect("a summary");
        assert!(summary["stats"]["transfers"].as_u64().is_some_and(|count| count <= FILES as u64), "a file was counted twice: {summary}");
        self.stage.room.is_copied();
        let before = tree(&self.stage.room.path("destination"));
        for (at, is_frozen) in self.workers.iter().enumerate().filter_map(|(at, frozen)| Some((at, (*frozen)?))) {
            if is_frozen {
                self.stage.workers[at].signal(Signal::CONT);
            }
            self.has_ended(at);
        }
        assert!(tree(&self.stage.room.path("destination")) == before, "who woke up late has changed something");
    }
}

/// A story that goes wrong is told with what the command has said, and what the queue was like.
impl Drop for Chaos {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let complained = fs::read_to_string(self.stage.room.path("complained")).unwrap_or_default();
            let queue: Vec<_> = tree(&self.stage.room.path("work")).into_keys().collect();
            eprintln!("{complained}{queue:#?}");
        }
    }
}

#[test]
fn whoever_is_killed_or_frozen_at_any_moment_a_copy_by_a_cluster_with_a_queue_ends_with_the_same_tree_and_says_so() {
    for_each_seed(SEEDS, "queue_chaos", |seed, story| {
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

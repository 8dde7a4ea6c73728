//! A copy through a queue whose workers and controllers are killed, frozen and woken at any moment.

use std::fs::{self, File};
use std::process::Stdio;

use rustix::process::Signal;

use crate::blows::{Dice, for_each_seed};
use crate::copy::{FILES, Process, Room, names, tree};
use crate::support::wait_for;

/// Seeds of an ordinary run.
const SEEDS: u64 = 2;
/// Things that happen while a run is under way.
const BLOWS: u64 = 4;
/// So many files are left when the last blow falls: the run is not over yet.
const REST: usize = 60;
const RUN: &str = "abcdefghijklmnopqrst";

struct Worker {
    id: String,
    process: Process,
    is_frozen: bool,
}

struct Chaos<'a> {
    room: &'a Room,
    dice: Dice,
    controller: Process,
    workers: Vec<Worker>,
    started: usize,
}

fn controller(room: &Room, more: &[&str]) -> Process {
    let mut command = room.controller(&[&["--run-id", RUN], more].concat());
    let [said, complained] = ["said", "complained"].map(|name| File::create(room.path(name)).expect("made"));
    Process(command.stdin(Stdio::null()).stdout(said).stderr(complained).spawn().expect("it starts"))
}

fn copied(room: &Room) -> usize {
    (0..7).map(|directory| names(&room.path(&format!("destination/{directory}"))).len()).sum()
}

impl<'a> Chaos<'a> {
    fn begin(room: &'a Room, seed: u64) -> Self {
        let dice = Dice::of(seed);
        let mut chaos = Self { room, dice, controller: controller(room, &[]), workers: Vec::new(), started: 0 };
        chaos.worker();
        chaos.worker();
        chaos
    }

    fn worker(&mut self) {
        self.started += 1;
        let id = format!("w{}", self.started);
        // So slow that every blow falls while somebody is at work.
        let process = self.room.worker(&id, &["--bwlimit", "200k", "--transfers", "2"]);
        self.workers.push(Worker { id, process, is_frozen: false });
    }

    /// Waits for some progress, so that blows fall at moments of every kind; false if there is not enough left.
    fn goes_on(&mut self) -> bool {
        let wanted = copied(self.room) + 1 + self.dice.below(40);
        if wanted > FILES - REST {
            return false;
        }
        wait_for("the copy to go on", || (copied(self.room) >= wanted).then_some(()));
        true
    }

    /// Something happens; it is told.
    fn blow(&mut self) -> String {
        let number = self.dice.below(self.workers.len());
        match self.dice.below(10) {
            0..3 => {
                self.kill_controller();
                "the controller was killed".to_owned()
            }
            3..5 => {
                let killed = self.workers.remove(number).id;
                self.kill_controller();
                self.worker();
                format!("the controller and {killed} were killed")
            }
            5..7 => {
                // Dropped, it is killed.
                let killed = self.workers.remove(number).id;
                self.worker();
                format!("{killed} was killed")
            }
            _ => {
                let worker = &mut self.workers[number];
                worker.is_frozen = !worker.is_frozen;
                worker.process.signal(if worker.is_frozen { Signal::STOP } else { Signal::CONT });
                let told = format!("{} was {}", worker.id, if worker.is_frozen { "frozen" } else { "woken" });
                if self.workers.iter().all(|worker| worker.is_frozen) {
                    self.worker();
                }
                told
            }
        }
    }

    fn kill_controller(&mut self) {
        self.controller.signal(Signal::KILL);
        let killed = &mut self.controller;
        wait_for("the controller to end", || killed.has_ended());
        self.controller = controller(self.room, &["--resume"]);
    }

    /// Nothing more happens: the run ends as it must, and whoever wakes up late changes nothing.
    fn end(mut self) {
        let code = wait_for("the run to end", || self.controller.has_ended());
        let [said, complained] = ["said", "complained"].map(|name| fs::read_to_string(self.room.path(name)).expect("text"));
        assert_eq!(code, 0, "{said}{complained}");
        let summary: serde_json::Value = serde_json::from_str(&said).expect("a summary");
        assert!(summary["stats"]["transfers"].as_u64().is_some_and(|count| count <= FILES as u64), "a file was counted twice: {summary}");
        self.room.is_copied();
        let before = tree(&self.room.path("destination"));
        for worker in &self.workers {
            if worker.is_frozen {
                worker.process.signal(Signal::CONT);
            }
            let status = self.room.path(&format!("work/queue/status/{}.json", worker.id));
            // It tells so as soon as it is awake, and has given up by then what it had.
            wait_for(&format!("{} to be idle", worker.id), || {
                let status: serde_json::Value = serde_json::from_slice(&fs::read(&status).ok()?).ok()?;
                status["running"].as_object().filter(|running| running.is_empty()).map(|_| ())
            });
        }
        assert!(tree(&self.room.path("destination")) == before, "who woke up late has changed something");
    }
}

#[test]
fn whoever_is_killed_or_frozen_at_any_moment_a_copy_ends_with_the_same_tree_and_says_so() {
    for_each_seed(SEEDS, "copy_chaos", |seed, story| {
        let room = Room::new();
        let mut chaos = Chaos::begin(&room, seed);
        for _ in 0..BLOWS {
            if !chaos.goes_on() {
                break;
            }
            story.push(chaos.blow());
        }
        chaos.end();
    });
}

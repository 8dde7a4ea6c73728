//! The distributed copy beside `cp -a`, `rsync -a` and rclone, in one run.
//!
//! `cargo bench --bench sync`. Rows are described in `src/docs/benches.md`. Every program is timed as a whole process, in turns, and the median counts. Trees are made anew
//! in memory (`/dev/shm`) and on disk (the target folder); programs that are missing have no rows, except that of a budget, which then fails the bench.

#[expect(dead_code, reason = "it has the budgets of other benches too")]
#[path = "../link/report.rs"]
mod report;

mod nodes;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use report::{Budget, Report, Row};
use tempfile::TempDir;

/// Rounds of each measurement, of which the median counts.
const ROUNDS: usize = 3;
const SMALL_FILES: usize = 20_000;
const SMALL_BYTES: usize = 4 * 1024;
const LARGE_FILES: usize = 200;
const LARGE_BYTES: usize = 8 * 1024 * 1024;
const HUGE_BYTES: usize = 1 << 30;
const NOOP_FILES: usize = 200_000;

const ROWS: &[(&str, Budget)] = &[
    ("copy_small", Budget::RatioAtMost(1.5)),
    ("copy_small_disk", Budget::RatioAtMost(1.5)),
    ("copy_small_rclone", Budget::RatioAtMost(1.0 / 3.0)),
    ("copy_large", Budget::RatioAtMost(1.0 / 0.9)),
    ("copy_large_disk", Budget::RatioAtMost(1.0 / 0.9)),
    ("copy_huge", Budget::RatioAtMost(1.0 / 0.9)),
    ("copy_noop", Budget::RatioAtMost(1.0)),
    ("copy_noop_rclone", Budget::RatioAtMost(1.0 / 3.0)),
    ("copy_workers_1", Budget::None),
    ("copy_workers_2", Budget::None),
    ("copy_workers_4", Budget::None),
    ("copy_peak_mib", Budget::AtMost(200.0)),
    ("copy_one_cluster", Budget::AtMost(50.0)),
    ("copy_one_queue", Budget::AtMost(100.0)),
    ("idle_calls_cluster", Budget::AtMost(0.0)),
    ("idle_calls_queue", Budget::AtMost(4.0)),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let only = arguments.iter().position(|argument| argument == "--row").and_then(|at| arguments.get(at + 1)).cloned();
    let strict = arguments.iter().any(|argument| argument == "--strict");
    let mut report = Report::new(ROWS, only);
    let memory = Room::new(Path::new("/dev/shm"));
    let disk = Room::new(Path::new(env!("CARGO_TARGET_TMPDIR")));
    for (room, small, large) in [(&memory, "copy_small", "copy_large"), (&disk, "copy_small_disk", "copy_large_disk")] {
        if report.wants(small) {
            let source = room.tree("small", SMALL_FILES, SMALL_BYTES);
            let [ours, cp] = room.in_turns(&source, [&ours, &cp]);
            report.row(Row { name: small, value: ours, unit: "ms", baseline: cp });
        }
        if report.wants(large) {
            let source = room.tree("large", LARGE_FILES, LARGE_BYTES);
            let [ours, cp] = room.in_turns(&source, [&ours, &cp]);
            report.row(Row { name: large, value: ours, unit: "ms", baseline: cp });
        }
        room.forget("large");
    }
    if report.wants("copy_huge") {
        let source = memory.tree("huge", 1, HUGE_BYTES);
        let [ours, cp] = memory.in_turns(&source, [&ours, &cp]);
        report.row(Row { name: "copy_huge", value: ours, unit: "ms", baseline: cp });
        memory.forget("huge");
    }
    let source = memory.tree("small", SMALL_FILES, SMALL_BYTES);
    if report.wants("copy_small_rclone") && has("rclone") {
        let [ours, rclone] = memory.in_turns(&source, [&ours, &rclone]);
        report.row(Row { name: "copy_small_rclone", value: ours, unit: "ms", baseline: rclone });
    }
    for (name, workers) in [("copy_workers_1", 1), ("copy_workers_2", 2), ("copy_workers_4", 4)] {
        if report.wants(name) {
            let by_workers = memory.by_workers(&source, workers);
            let [cp] = memory.in_turns(&source, [&cp]);
            report.row(Row { name, value: by_workers, unit: "ms", baseline: cp });
        }
    }
    if report.wants("copy_peak_mib") {
        let (ours, cp) = (memory.peak(ours, &source), memory.peak(cp, &source));
        report.row(Row { name: "copy_peak_mib", value: ours, unit: "MiB", baseline: cp });
    }
    nodes::rows(&mut report, memory.0.path());
    if report.wants_any(&["copy_noop", "copy_noop_rclone"]) {
        let source = disk.tree("many", NOOP_FILES, 0);
        let copy = disk.copy_of(&source);
        if report.wants("copy_noop") && has("rsync") {
            let [ours, rsync] = disk.again(&source, &copy, [&ours, &rsync]);
            report.row(Row { name: "copy_noop", value: ours, unit: "ms", baseline: rsync });
        }
        if report.wants("copy_noop_rclone") && has("rclone") {
            let [ours, rclone] = disk.again(&source, &copy, [&ours, &rclone]);
            report.row(Row { name: "copy_noop_rclone", value: ours, unit: "ms", baseline: rclone });
        }
    }
    if !report.finish(strict) {
        std::process::exit(1);
    }
}

/// A program that copies a tree.
type Program = dyn Fn(&Path, &Path) -> Command;

fn ours(source: &Path, destination: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nkcluster"));
    command.arg("copy").args([source, destination]).args(["--stats", "0"]);
    command
}

fn cp(source: &Path, destination: &Path) -> Command {
    let mut command = Command::new("cp");
    command.args(["-a", "-T"]).args([source, destination]);
    command
}

fn rsync(source: &Path, destination: &Path) -> Command {
    let mut command = Command::new("rsync");
    command.arg("-a").arg(format!("{}/", source.display())).arg(format!("{}/", destination.display()));
    command
}

fn rclone(source: &Path, destination: &Path) -> Command {
    let mut command = Command::new("rclone");
    command.args(["copy", "--config", "/dev/null"]).args([source, destination]);
    command
}

fn has(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !found {
        eprintln!("{program} is not installed; its rows are missing");
    }
    found
}

/// Runs a command to its successful end; milliseconds.
fn timed(mut command: Command) -> f64 {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let time = start.elapsed();
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    time.as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A place for trees.
struct Room(TempDir);

impl Room {
    fn new(at: &Path) -> Self {
        Self(TempDir::new_in(at).expect("a place for trees"))
    }

    /// A tree of so many files, a hundred in each directory.
    fn tree(&self, name: &str, files: usize, bytes: usize) -> PathBuf {
        let root = self.0.path().join(name);
        if root.exists() {
            return root;
        }
        let mut content = vec![0_u8; bytes];
        for number in 0..files {
            let directory = root.join(format!("{:04}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&directory).expect("made");
            }
            // No two are alike, and none is a hole.
            for (at, byte) in content.iter_mut().enumerate().step_by(61) {
                *byte = (at ^ number) as u8;
            }
            fs::write(directory.join(number.to_string()), &content).expect("written");
        }
        root
    }

    fn forget(&self, name: &str) {
        // It may not have been made.
        let _ = fs::remove_dir_all(self.0.path().join(name));
    }

    fn destination(&self) -> PathBuf {
        let destination = self.0.path().join("destination");
        // It may not be there yet.
        let _ = fs::remove_dir_all(&destination);
        destination
    }

    /// The medians of copies by each program, one after the other.
    fn in_turns<const N: usize>(&self, source: &Path, programs: [&Program; N]) -> [f64; N] {
        let mut times = [const { Vec::new() }; N];
        for _ in 0..ROUNDS {
            for (program, times) in programs.iter().zip(&mut times) {
                let destination = self.destination();
                times.push(timed(program(source, &destination)));
            }
        }
        self.destination();
        times.map(median)
    }

    fn copy_of(&self, source: &Path) -> PathBuf {
        let destination = self.destination();
        timed(cp(source, &destination));
        destination
    }

    /// The medians of runs that find nothing to do.
    fn again<const N: usize>(&self, source: &Path, copy: &Path, programs: [&Program; N]) -> [f64; N] {
        let mut times = [const { Vec::new() }; N];
        for _ in 0..ROUNDS {
            for (program, times) in programs.iter().zip(&mut times) {
                times.push(timed(program(source, copy)));
            }
        }
        times.map(median)
    }

    /// The median of copies by workers that share a queue in memory, which wait already.
    fn by_workers(&self, source: &Path, count: usize) -> f64 {
        let work = self.0.path().join("work");
        let workers: Vec<Worker> = (0..count).map(|number| Worker::start(work.to_str().expect("text"), &format!("w{number}"))).collect();
        let times = (0..ROUNDS).map(|_| {
            let mut command = ours(source, &self.destination());
            command.arg("--cluster").arg(&work);
            timed(command)
        });
        let time = median(times.collect());
        drop(workers);
        let _ = fs::remove_dir_all(&work);
        self.destination();
        time
    }

    /// Peak resident memory of a copy, in MiB.
    fn peak(&self, program: impl Fn(&Path, &Path) -> Command, source: &Path) -> f64 {
        let mut child = program(source, &self.destination()).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0.0_f64;
        while child.try_wait().expect("it is ours").is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
            peak = peak.max(line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0));
            std::thread::sleep(Duration::from_millis(5));
        }
        self.destination();
        peak / 1024.0
    }
}

struct Worker(Child);

impl Worker {
    /// One that waits for batches of a queue.
    fn start(work: &str, id: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nkcluster"));
        command.args(["rcd", "--cluster-id", id, "--cluster"]).arg(work);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("text");
        Self(child)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

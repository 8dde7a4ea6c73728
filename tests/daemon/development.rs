//! `nkcluster dev`: a cluster of real processes, and the tour through it.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Cli, Ran, command, pid, wait_for};

/// The rounds of a development cluster, which takes nothing from its environment.
const ROUNDS_DEFAULT: &str = "600000";

/// `nkcluster dev` with its temporary files in a directory of the test.
fn dev(tmp: &Path, arguments: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_nkcluster"));
    command.env("TMPDIR", tmp).arg("dev").args(arguments);
    command
}

/// A development cluster that runs.
struct Dev {
    child: Child,
    ready: Value,
    errors: BufReader<std::process::ChildStderr>,
}

impl Dev {
    fn start(tmp: &Path, arguments: &[&str]) -> Self {
        let mut command = dev(tmp, &[&["--json", "--base-port", "0"], arguments].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("text");
        let mut errors = BufReader::new(child.stderr.take().expect("piped"));
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| {
            let _ = child.kill();
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            panic!("it printed {line:?} and {text:?}")
        });
        Self { child, ready, errors }
    }

    fn cli(&self) -> Cli {
        let connect = self.ready["connect"].as_str().expect("an address").to_owned();
        Cli { connect, rounds: ROUNDS_DEFAULT }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What members say of themselves, without what changes from one look to the next.
fn members(members: &Value) -> Vec<Value> {
    let parts = |member: &Value| json!({ "id": member["id"], "state": member["state"], "partitions": member["partitions"] });
    members.as_array().expect("an array").iter().map(parts).collect()
}

/// The processes whose command line names a directory.
fn processes_of(dir: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("Linux").flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if let Some(pid) = id.and_then(Pid::from_raw)
            && line.starts_with("nkcluster-node ")
            && line.contains(dir)
        {
            found.push(pid);
        }
    }
    found
}

#[test]
fn the_tour_goes_to_its_end() {
    let tmp = tempfile::tempdir().expect("a directory");
    let mut command = dev(tmp.path(), &["--once", "--base-port", "0", "--json"]);
    // The tour is long; it has deadlines of its own.
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().expect("runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(report["ok"], true);
    let steps = report["steps"].as_array().expect("steps");
    assert!(steps.len() >= 17 && steps.iter().all(|step| step["ok"] == true), "{report}");
    assert_eq!(std::fs::read_dir(tmp.path()).expect("reads").count(), 0, "nothing is left behind");
}

#[test]
fn a_development_cluster_is_ready_stops_and_leaves_nothing() {
    let tmp = tempfile::tempdir().expect("a directory");
    let mut dev = Dev::start(tmp.path(), &[]);
    let nodes = dev.cli().json(&["nodes"]);
    let seen: Vec<_> = nodes.as_array().expect("an array").iter().map(|node| json!([node["id"], node["status"]])).collect();
    assert_eq!(seen, ["dev1", "dev2", "dev3", "dev4", "dev5"].map(|id| json!([id, "ready"])));
    let dir = dev.ready["dir"].as_str().expect("a directory").to_owned();
    assert_eq!(processes_of(&dir).len(), 5);
    // Three control nodes, and every one of them says the same of all.
    let addresses = dev.ready["connect"].as_str().expect("addresses").split(", ");
    let each = addresses.map(|address| Cli { connect: address.to_owned(), rounds: ROUNDS_DEFAULT });
    let views: Vec<_> = each.map(|cli| (cli.json(&["ring"]), members(&cli.json(&["members"])))).collect();
    assert_eq!(views.len(), 3);
    assert!(views.iter().all(|view| *view == views[0]), "{views:?}");
    let joined: Vec<_> = views[0].1.iter().map(|member| json!([member["id"], member["state"]])).collect();
    assert_eq!(joined, ["dev1", "dev2", "dev3"].map(|id| json!([id, "joined"])));
    assert!(views[0].1.iter().all(|member| member["partitions"].as_u64() > Some(0)), "{views:?}");
    assert_eq!(members(&dev.ready["members"]), views[0].1);
    assert!(Path::new(&dir).join("dev2/log").is_file());
    kill_process(pid(&dev.child), Signal::TERM).expect("it runs");
    let status = wait_for("the end of the cluster", || dev.child.try_wait().expect("ours"));
    assert_eq!(status.code(), Some(0));
    assert_eq!(processes_of(&dir), []);
    assert_eq!(std::fs::read_dir(tmp.path()).expect("reads").count(), 0, "nothing is left behind");
}

#[test]
fn its_children_end_when_it_is_killed() {
    let tmp = tempfile::tempdir().expect("a directory");
    let mut dev = Dev::start(tmp.path(), &["--controls", "1", "--workers", "1"]);
    let dir = dev.ready["dir"].as_str().expect("a directory").to_owned();
    assert_eq!(processes_of(&dir).len(), 2);
    dev.child.kill().expect("it runs");
    dev.child.wait().expect("ours");
    wait_for("the end of its children", || processes_of(&dir).is_empty().then_some(()));
}

#[test]
fn a_child_that_dies_is_told_and_not_started_again() {
    let tmp = tempfile::tempdir().expect("a directory");
    let mut dev = Dev::start(tmp.path(), &["--controls", "1", "--workers", "1"]);
    let worker = Path::new(dev.ready["dir"].as_str().expect("a directory")).join("dev2");
    let [process] = processes_of(&worker.display().to_string())[..] else { panic!("one process of dev2") };
    kill_process(process, Signal::KILL).expect("it runs");
    let mut line = String::new();
    dev.errors.read_line(&mut line).expect("text");
    let warning: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(warning["warning"]["node"], "dev2", "{line}");
    dev.cli().wait_status("dev2", "not_connected");
}

#[test]
fn a_tour_that_is_interrupted_has_failed() {
    let tmp = tempfile::tempdir().expect("a directory");
    let mut command = dev(tmp.path(), &["--once", "--base-port", "0"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("text");
    assert!(line.starts_with("step  1 "), "{line}");
    kill_process(pid(&child), Signal::INT).expect("it runs");
    assert_eq!(wait_for("its end", || child.try_wait().expect("ours")).code(), Some(1));
    assert_eq!(std::fs::read_dir(tmp.path()).expect("reads").count(), 0, "nothing is left behind");
}

#[test]
fn a_directory_of_the_user_stays() {
    let tmp = tempfile::tempdir().expect("a directory");
    let kept = tmp.path().join("kept");
    let mut dev = Dev::start(tmp.path(), &["--controls", "1", "--workers", "0", "--dir", &kept.display().to_string()]);
    kill_process(pid(&dev.child), Signal::INT).expect("it runs");
    assert_eq!(wait_for("its end", || dev.child.try_wait().expect("ours")).code(), Some(0));
    assert!(kept.join("dev1/log").is_file());
}

#[test]
fn a_taken_port_is_named_and_nothing_is_left_behind() {
    let tmp = tempfile::tempdir().expect("a directory");
    // Two ports in a row, the second taken.
    let (base, _taken) = (20_000..32_000)
        .find_map(|base| {
            Some((TcpListener::bind(("127.0.0.1", base)).map(|_| base).ok()?, TcpListener::bind(("127.0.0.1", base + 1)).ok()?))
        })
        .expect("two free ports");
    let ran = Ran::of(dev(tmp.path(), &["--controls", "1", "--workers", "1", "--base-port", &base.to_string()]), "");
    ran.fails(1, "port_in_use").naming(&[&format!("port {} of dev2", base + 1), "--base-port"]);
    assert_eq!(processes_of(&tmp.path().display().to_string()), []);
    assert_eq!(std::fs::read_dir(tmp.path()).expect("reads").count(), 0, "nothing is left behind");
}

#[test]
fn a_tour_that_could_lose_no_control_node_is_refused() {
    let tmp = tempfile::tempdir().expect("a directory");
    Ran::of(dev(tmp.path(), &["--once", "--controls", "2"]), "").fails(2, "invalid_usage").naming(&["--controls", "3"]);
    assert_eq!(std::fs::read_dir(tmp.path()).expect("reads").count(), 0, "nothing is left behind");
}

#[test]
fn people_get_a_table_and_what_to_try() {
    let tmp = tempfile::tempdir().expect("a directory");
    let mut child = dev(tmp.path(), &["--controls", "1", "--workers", "1", "--base-port", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (send, lines) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(send.send(line))));
    let text: Vec<String> = lines.iter().take_while(|line| !line.starts_with("Ctrl-C")).collect();
    kill_process(pid(&child), Signal::TERM).expect("it runs");
    assert_eq!(wait_for("its end", || child.try_wait().expect("ours")).code(), Some(0));
    reader.join().expect("the reader does not panic");
    let text = text.join("\n");
    assert!(text.starts_with("ID"), "{text}");
    for part in ["dev1", "dev2", "ready", "joined", "nkcluster --connect", "events"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

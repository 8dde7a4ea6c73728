//! Networks for tests: machines are network namespaces, cables are pairs of virtual interfaces.
//!
//! ```text
//!   let (office, gate) = (Namespace::new("office"), Namespace::new("gate"));
//!   office.link("10.77.1.2/24", &gate, "10.77.1.1/24");
//!   office.inside(|| TcpStream::connect("10.77.1.1:443"));       // what is called there runs there
//! ```
//!
//! A closure given to [`Namespace::inside`] runs in a thread that has entered the namespace, and so do the processes which it starts. Addresses are free to choose, as
//! nothing of it can be seen from outside. Everything is taken away with its value; what a killed test left behind is taken away by the next one.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{panic, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::Ran;

/// Where `ip netns` keeps its namespaces.
const PLACE: &str = "/run/netns";
/// Begins the names of ours; then come the process, a number and what the namespace plays.
const PREFIX: &str = "nkcluster-";

/// Whether tests may make networks here. Where everything must be tested, they may not be left out.
pub(crate) fn is_possible() -> bool {
    static OBSTACLE: LazyLock<Option<String>> = LazyLock::new(|| {
        let missing = |tool: &&str| Command::new(tool).arg("-v").output().is_err();
        if let Some(tool) = ["ip", "ss", "nft", "tinyproxy"].iter().find(|tool| missing(tool)) {
            return Some(format!("`{tool}` is not installed"));
        }
        let probe = format!("{PREFIX}{}-probe", std::process::id());
        let obstacle = ip(&["netns", "add", &probe]).err();
        // It is not there if it could not be added.
        let _ = ip(&["netns", "del", &probe]);
        obstacle
    });
    let Some(obstacle) = &*OBSTACLE else { return true };
    assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "no networks for tests: {obstacle}");
    eprintln!("skipped: no networks for tests: {obstacle}");
    false
}

/// A machine, as far as its network goes.
pub(crate) struct Namespace {
    name: String,
    entrance: File,
}

impl Namespace {
    /// A machine without any cable; `plays` is a word for whoever looks at `ip netns`.
    pub(crate) fn new(plays: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{plays}", std::process::id());
        ip(&["netns", "add", &name]).unwrap_or_else(|error| panic!("{error}"));
        let entrance = File::open(Path::new(PLACE).join(&name)).expect("it was just made");
        let made = Self { name, entrance };
        made.ip("link set lo up");
        made
    }

    /// A cable between two machines with the address, and the length of its prefix, of each end; returns its name, which is the same at both.
    pub(crate) fn link(&self, address: &str, other: &Self, address_there: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cable = format!("nk{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.ip(&format!("link add {cable} type veth peer name {cable} netns {}", other.name));
        for (end, address) in [(self, address), (other, address_there)] {
            end.ip(&format!("address add {address} dev {cable}"));
            end.ip(&format!("link set {cable} up"));
        }
        cable
    }

    /// `ip …` on this machine.
    pub(crate) fn ip(&self, arguments: &str) {
        let arguments: Vec<&str> = ["-n", &self.name].into_iter().chain(arguments.split_whitespace()).collect();
        ip(&arguments).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Lets the machine pass on what is for others.
    pub(crate) fn forward(&self) {
        self.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("it may be set");
    }

    /// Gives rules to the packet filter of this machine, in the language of nft.
    pub(crate) fn filter(&self, rules: &str) {
        let mut command = Command::new("nft");
        command.args(["-f", "-"]);
        let ran = self.inside(|| Ran::of(command, rules));
        assert_eq!(ran.code, Some(0), "{rules}\n{ran:?}");
    }

    /// Runs something on this machine, with whatever processes it starts.
    pub(crate) fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            // Of this thread alone, which ends with what it runs.
            move_into_link_name_space(self.entrance.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            run()
        };
        thread::scope(|scope| match scope.spawn(entered).join() {
            Ok(result) => result,
            Err(cause) => panic::resume_unwind(cause),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Cables end with the first of their ends.
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("it stays behind: {error}");
        }
    }
}

/// Removes the namespaces of tests that were killed.
fn sweep() {
    let Ok(entries) = fs::read_dir(PLACE) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            // Another test may do the same at the same time.
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

//! A real HTTP proxy: tinyproxy.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::namespace::Namespace;
use crate::support::wait_for;

/// One that runs. It ends with this value, and with the test process at the latest.
pub(crate) struct HttpProxy {
    child: Child,
    log: PathBuf,
}

impl HttpProxy {
    /// Starts it at an address of its machine. It serves HTTPS alone: CONNECT to port 443; and only who knows `user` and `password`, if there are any.
    pub(crate) fn start(machine: &Namespace, dir: &Path, address: SocketAddr, credentials: Option<(&str, &str)>) -> Self {
        let (settings, log) = (dir.join("tinyproxy.conf"), dir.join("tinyproxy.log"));
        let mut text = format!("Listen {}\nPort {}\nConnectPort 443\nLogLevel Connect\nLogFile {:?}\n", address.ip(), address.port(), log);
        if let Some((user, password)) = credentials {
            text += &format!("BasicAuth {user} {password}\n");
        }
        fs::write(&settings, text).expect("written");
        // Killed, not ended, when the pipe is closed: connections are cut, nobody is told.
        let mut command = Command::new("sh");
        command.args(["-c", "tinyproxy -d -c \"$0\" </dev/null & read -r _; kill -KILL $!"]).arg(&settings);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = machine.inside(|| command.spawn()).expect("starts");
        let started = Self { child, log };
        machine.inside(|| wait_for("the proxy to listen", || TcpStream::connect(address).ok()));
        started
    }

    /// Its log, of all runs in the same directory.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("it writes its log")
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

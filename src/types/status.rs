//! The seven states of a node and the legal moves between them (checklist A6).
//!
//! ```text
//!      ready ◄────► standby           asked for: `ready` and `standby` can be had in each of these four states
//!        │             │
//!        └► stopping ◄─┘              asked for `stopped`
//!              │
//!              ▼
//!           stopped                   by itself, when no task is left
//! ```
//!
//! `launching`, `connecting` and `not_connected` say what a control node sees of a node; they are not asked for, and not left by asking.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text;
use crate::error::{Error, ErrorCode, Result};

/// State of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// The machine or process is being started; there is no link yet.
    Launching,
    /// A control node is connecting to it for the first time.
    Connecting,
    /// Up, takes requests and tasks.
    Ready,
    /// Up, takes requests but no new tasks.
    Standby,
    /// Takes no new tasks and waits for the end of those that run.
    Stopping,
    /// Alive, without tasks.
    Stopped,
    /// Known, but no link leads to it.
    NotConnected,
}

impl NodeStatus {
    /// Every status.
    pub const ALL: [NodeStatus; 7] = [
        NodeStatus::Launching,
        NodeStatus::Connecting,
        NodeStatus::Ready,
        NodeStatus::Standby,
        NodeStatus::Stopping,
        NodeStatus::Stopped,
        NodeStatus::NotConnected,
    ];

    /// Name on the wire, in logs and in selectors.
    pub fn name(self) -> &'static str {
        match self {
            NodeStatus::Launching => "launching",
            NodeStatus::Connecting => "connecting",
            NodeStatus::Ready => "ready",
            NodeStatus::Standby => "standby",
            NodeStatus::Stopping => "stopping",
            NodeStatus::Stopped => "stopped",
            NodeStatus::NotConnected => "not_connected",
        }
    }

    /// Whether requests, and commands to tasks that run, are carried out.
    pub fn accepts_requests(self) -> bool {
        use NodeStatus::*;
        matches!(self, Ready | Standby | Stopping | Stopped)
    }

    /// Whether new tasks may start.
    pub fn accepts_tasks(self) -> bool {
        self == NodeStatus::Ready
    }

    /// What asking for `wanted` does to a node that runs so many tasks.
    ///
    /// `stopped` leads to `stopping` first, even without tasks, so that everybody sees the same two events; the caller then calls [`drained`](Self::drained) as soon
    /// as no task is left, which may be at once. `not_allowed` if the node is in a state that only its control node sets.
    pub fn transition(self, wanted: WantedStatus, running_tasks: usize) -> Result<Transition> {
        use NodeStatus::*;
        if !matches!(self, Ready | Standby | Stopping | Stopped) {
            return Err(Error::new(ErrorCode::NotAllowed, format!("a node that is {self} cannot become {wanted}")));
        }
        let next = match (wanted, self) {
            (WantedStatus::Ready, _) => Ready,
            (WantedStatus::Standby, _) => Standby,
            (WantedStatus::Stopped, Stopped) => Stopped,
            (WantedStatus::Stopped, Stopping) if running_tasks == 0 => Stopped,
            (WantedStatus::Stopped, _) => Stopping,
        };
        Ok(if next == self { Transition::Unchanged } else { Transition::To(next) })
    }

    /// What it does to a node that its last task has ended: `stopping` becomes `stopped`.
    pub fn drained(self) -> Transition {
        match self {
            NodeStatus::Stopping => Transition::To(NodeStatus::Stopped),
            _ => Transition::Unchanged,
        }
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for NodeStatus {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|status| status.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            unknown(name, &names)
        })
    }
}

/// Status that an operator may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedStatus {
    /// Take everything.
    Ready,
    /// Take no new tasks.
    Standby,
    /// Take no new tasks and tell the running ones to end.
    Stopped,
}

impl WantedStatus {
    /// Name on the wire and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            WantedStatus::Ready => "ready",
            WantedStatus::Standby => "standby",
            WantedStatus::Stopped => "stopped",
        }
    }
}

impl fmt::Display for WantedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WantedStatus {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ready" => Ok(WantedStatus::Ready),
            "standby" => Ok(WantedStatus::Standby),
            "stopped" => Ok(WantedStatus::Stopped),
            _ => Err(unknown(name, "ready, standby, stopped")),
        }
    }
}

/// Outcome of a legal change of status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Transition {
    /// The node is there already; nobody is told.
    Unchanged,
    /// The node goes there; tasks and control nodes are told.
    To(NodeStatus),
}

fn unknown(name: &str, expected: &str) -> Error {
    let name = text::excerpt(name, 64);
    Error::new(ErrorCode::SyntaxError, format!("unknown status {name:?}, expected one of {expected}"))
}

#[cfg(test)]
mod tests {
    use super::NodeStatus::*;
    use super::*;

    #[test]
    fn transitions_are_those_of_the_original() {
        let to = Transition::To;
        let rows = [
            (Ready, WantedStatus::Ready, Transition::Unchanged),
            (Standby, WantedStatus::Ready, to(Ready)),
            (Stopping, WantedStatus::Ready, to(Ready)),
            (Stopped, WantedStatus::Ready, to(Ready)),
            (Ready, WantedStatus::Standby, to(Standby)),
            (Standby, WantedStatus::Standby, Transition::Unchanged),
            (Stopping, WantedStatus::Standby, to(Standby)),
            (Stopped, WantedStatus::Standby, to(Standby)),
            (Ready, WantedStatus::Stopped, to(Stopping)),
            (Standby, WantedStatus::Stopped, to(Stopping)),
            (Stopping, WantedStatus::Stopped, Transition::Unchanged),
            (Stopped, WantedStatus::Stopped, Transition::Unchanged),
        ];
        for (from, wanted, expected) in rows {
            assert_eq!(from.transition(wanted, 1), Ok(expected), "{from} to {wanted}");
        }
    }

    #[test]
    fn states_of_the_control_side_cannot_be_left_by_request() {
        for from in [Launching, Connecting, NotConnected] {
            for wanted in [WantedStatus::Ready, WantedStatus::Standby, WantedStatus::Stopped] {
                let error = from.transition(wanted, 0).expect_err("is refused");
                assert_eq!(error.code(), &ErrorCode::NotAllowed);
            }
        }
    }

    #[test]
    fn stopping_becomes_stopped_when_the_last_task_has_ended() {
        assert_eq!(Ready.transition(WantedStatus::Stopped, 0), Ok(Transition::To(Stopping)));
        assert_eq!(Stopping.drained(), Transition::To(Stopped));
        assert_eq!(Stopping.transition(WantedStatus::Stopped, 0), Ok(Transition::To(Stopped)));
        for other in NodeStatus::ALL.into_iter().filter(|status| *status != Stopping) {
            assert_eq!(other.drained(), Transition::Unchanged);
        }
    }

    #[test]
    fn only_ready_takes_tasks_and_only_connected_nodes_take_requests() {
        let takes = NodeStatus::ALL.map(|status| (status.accepts_requests(), status.accepts_tasks()));
        let (no, requests, both) = ((false, false), (true, false), (true, true));
        assert_eq!(takes, [no, no, both, requests, requests, requests, no]);
    }

    #[test]
    fn status_returns_from_its_name() {
        for status in NodeStatus::ALL {
            assert_eq!(status.name().parse(), Ok(status));
            assert_eq!(serde_json::to_string(&status).expect("encodes"), format!("\"{status}\""));
        }
        for wanted in [WantedStatus::Ready, WantedStatus::Standby, WantedStatus::Stopped] {
            assert_eq!(wanted.name().parse(), Ok(wanted));
        }
        assert!("stopping".parse::<WantedStatus>().is_err());
        assert!("Ready".parse::<NodeStatus>().is_err());
    }
}

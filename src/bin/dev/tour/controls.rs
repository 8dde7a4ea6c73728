//! Steps about several control nodes: their ring, one that is lost, one that is stopped.

use std::fs::{self, File};
use std::time::Duration;

use nkcluster::types::NodeId;
use serde_json::{Value, json};

use super::load::Load;
use super::{Tour, WAIT, expect, unexpected};
use crate::dev::field;
use crate::dev::plane::{agreed, member, shares, until};
use crate::dev::public::{Following, Public};
use crate::failure::{Failure, Outcome};

/// Longest time until the others have taken over: several times what a silent control node is given.
const HEALED: Duration = Duration::from_secs(20);
/// Id of the task that outlives the control node of its worker.
const TASK: &str = "tour-survivor";
/// Where it works, below the file root.
const PLACE: &str = "survivor";
/// It never gets to the end of this before it rests: sparse, and more than a minute of work.
const LONG_BYTES: u64 = 1 << 40;
/// The load must have been one.
const REQUESTS_MIN: usize = 50;

/// A control node that was killed, and what it had.
pub(super) struct Lost {
    pub(super) node: NodeId,
    /// The worker whose proxy it hosted.
    worker: NodeId,
    incarnation: Value,
    ring: Value,
}

/// A control node with its address.
type Control = (NodeId, String);

impl Tour<'_> {
    pub(super) async fn ring(&mut self) -> Outcome {
        let controls = self.cluster.controls();
        let ring = until(WAIT, async || agreed(self.public, &controls).await).await?;
        let members = self.public.json(&["members"]).await?;
        expect("the number of members", &json!(members.as_array().map(Vec::len)), &json!(controls.len()))?;
        let shares = shares(&ring);
        let fair = ring["owners"].as_array().map_or(0, Vec::len) / controls.len();
        for (id, _) in &controls {
            let share = shares.get(id.as_str()).copied().unwrap_or_default();
            expect(&format!("the partitions of {id} in `members`"), &member(&members, id)["partitions"], &json!(share))?;
            if !(fair / 2..=fair * 2).contains(&share) {
                return Err(unexpected(format!("{id} should own about {fair} partitions, but owns {share}")));
            }
        }
        Ok(())
    }

    pub(super) async fn any_control(&mut self) -> Outcome {
        self.all_answer(&self.cluster.controls(), &self.cluster.ids()).await?;
        for (id, uri) in self.cluster.controls() {
            let nodes = self.public.through(&uri).nodes().await?;
            if !self.cluster.are_ready(&nodes) {
                return Err(unexpected(format!("{id} should show all nodes as ready, but shows {nodes:?}")));
            }
        }
        Ok(())
    }

    /// A request to each of the nodes through each of the control nodes.
    async fn all_answer(&self, controls: &[Control], nodes: &[NodeId]) -> Outcome {
        for (control, uri) in controls {
            let public = self.public.through(uri);
            for node in nodes {
                let reply = public.json(&["request", node.as_str(), "core", "\"status\""]).await?;
                expect(&format!("the reply of {node} through {control}"), &reply, &json!({ "reply": { "status": "ready" } }))?;
            }
        }
        Ok(())
    }

    /// The control node that hosts the proxy of a worker.
    async fn host(&self, worker: &NodeId) -> Outcome<NodeId> {
        let seen = self.wait_status(worker, "ready").await?;
        Ok(NodeId::new(field(&seen, "owner"))?)
    }

    /// The control nodes without one of them.
    fn without(&self, node: &NodeId) -> Vec<Control> {
        self.cluster.controls().into_iter().filter(|(id, _)| id != node).collect()
    }

    /// Waits until these control nodes share the ring alone and one of them hosts the worker; returns which.
    async fn healed(&self, controls: &[Control], worker: &NodeId) -> Outcome<NodeId> {
        let public = self.public.through(&controls[0].1);
        until(HEALED, async || {
            agreed(self.public, controls).await?;
            let seen = public.json(&["info", worker.as_str()]).await?;
            let owner = field(&seen, "owner");
            match controls.iter().find(|(id, _)| id.as_str() == owner) {
                Some((id, _)) if field(&seen, "status") == "ready" => Ok(id.clone()),
                _ => Err(unexpected(format!(
                    "{worker} should be ready at one of {controls:?}, but is {} at {owner}",
                    field(&seen, "status")
                ))),
            }
        })
        .await
    }

    pub(super) async fn lose(&mut self) -> Outcome<Lost> {
        let worker = self.worker.clone();
        let node = self.host(&worker).await?;
        let rest = self.without(&node);
        let ring = agreed(self.public, &self.cluster.controls()).await?;
        let incarnation = member(&self.public.json(&["members"]).await?, &node)["incarnation"].clone();
        let place = self.cluster.dir().join(worker.as_str()).join("files").join(PLACE);
        let made = fs::create_dir_all(&place).and_then(|()| File::create(place.join("file"))?.set_len(LONG_BYTES));
        made.map_err(|error| Failure::io("cannot make a large file", &error))?;
        // Followed elsewhere: the events must find a new way.
        let survivor = self.public.through(&rest[0].1);
        let mut events = survivor.events(&["--node", worker.as_str(), "--class", "files"]).await?;
        let spec = json!({ "hash": { "path": PLACE } }).to_string();
        self.public.json(&["task", "start", worker.as_str(), "files", &spec, "--id", TASK]).await?;
        // It rests, so that it does not take the machine from those who must agree meanwhile; only the same one knows that it does.
        self.public.json(&["task", "command", worker.as_str(), "files", TASK, "\"pause\""]).await?;
        let begun = self.task_event(&mut events, &json!({ "task_started": TASK }), None).await?;
        let task = self.task(self.public).await?;

        self.cluster.kill_node(&node).await?;
        let host = self.healed(&rest, &worker).await?;
        expect(
            "the state of the one that was killed",
            &member(&survivor.json(&["members"]).await?, &node)["state"],
            &json!("unreachable"),
        )?;
        for (id, uri) in &rest {
            expect(&format!("the task as {id} sees it, now hosted by {host}"), &self.task(&self.public.through(uri)).await?, &task)?;
        }
        let told = survivor.json(&["task", "command", worker.as_str(), "files", TASK, "\"progress\""]).await?;
        expect("whether the task rests, as before", &told["reply"]["paused"], &json!(true))?;
        self.all_answer(&rest, &self.cluster.workers()).await?;
        survivor.json(&["task", "stop", worker.as_str(), "files", TASK]).await?;
        let ended = json!({ "task_stopped": { "id": TASK } });
        self.task_event(&mut events, &ended, Some(&begun)).await?;
        fs::remove_dir_all(&place).map_err(|error| Failure::io("cannot remove the large file", &error))?;
        Ok(Lost { node, worker, incarnation, ring })
    }

    /// The only task of the class, as it is listed: a new one would have another time.
    async fn task(&self, public: &Public) -> Outcome<Value> {
        let tasks = public.json(&["task", "list", self.worker.as_str(), "files"]).await?;
        match tasks.as_array().map(Vec::as_slice) {
            Some([task]) if task["id"] == TASK => Ok(json!({ "id": TASK, "started": task["started"] })),
            _ => Err(unexpected(format!("{TASK} should be the only task, but the tasks are {tasks}"))),
        }
    }

    /// Follows until an event that has at least these parts; returns its number. A start of the task is told again only under the number that it had.
    async fn task_event(&self, events: &mut Following, wanted: &Value, begun: Option<&Value>) -> Outcome<Value> {
        loop {
            let record = events.next(wanted, HEALED).await?;
            let event = &record["event"]["nkcluster"];
            let is_start = event["task_started"] == TASK;
            if let Some(begun) = begun.filter(|begun| is_start && **begun != record["seq"]) {
                return Err(unexpected(format!("{TASK} was started twice: events {begun} and {}", record["seq"])));
            }
            let is_wanted = match wanted["task_stopped"].is_object() {
                true => event["task_stopped"]["id"] == TASK,
                false => is_start,
            };
            if is_wanted {
                return Ok(record["seq"].clone());
            }
        }
    }

    pub(super) async fn regain(&mut self, lost: &Lost) -> Outcome {
        self.cluster.start_again(&lost.node).await?;
        let controls = self.cluster.controls();
        let ring = until(HEALED, async || agreed(self.public, &controls).await).await?;
        expect("the owners in the ring", &ring["owners"], &lost.ring["owners"])?;
        let members = self.public.json(&["members"]).await?;
        if member(&members, &lost.node)["incarnation"] == lost.incarnation {
            return Err(unexpected(format!("{} should have a new incarnation, but has still {}", lost.node, lost.incarnation)));
        }
        // Its worker comes home, without being asked.
        until(HEALED, async || {
            let host = self.host(&lost.worker).await?;
            expect(&format!("the host of {}", lost.worker), &json!(host), &json!(lost.node))
        })
        .await?;
        self.all_answer(&controls, &self.cluster.ids()).await
    }

    pub(super) async fn leave(&mut self, lost: &NodeId) -> Outcome {
        // Rather one that hosts a worker than one that does not, and not the same one again.
        let mut leaver = None;
        for worker in self.cluster.workers() {
            let host = self.host(&worker).await?;
            leaver = leaver.or_else(|| (host != *lost).then_some(host));
        }
        let other = || self.cluster.controls().into_iter().map(|(id, _)| id).find(|id| id != lost);
        let leaver = leaver.or_else(other).ok_or_else(|| unexpected("there is only one control node"))?;
        let rest = self.without(&leaver);
        let load = Load::start(&self.cluster.connect_uri(), self.cluster.workers()).await?;
        let left = self.go_and_return(&leaver, &rest).await;
        let answered = load.finish().await;
        left?;
        match answered? {
            answered if answered < REQUESTS_MIN => {
                Err(unexpected(format!("only {answered} requests were answered, expected {REQUESTS_MIN}")))
            }
            _ => Ok(()),
        }
    }

    async fn go_and_return(&mut self, leaver: &NodeId, rest: &[Control]) -> Outcome {
        let status = self.cluster.end_node(leaver).await?;
        expect("whether it ended as asked", &json!(status.success()), &json!(true))?;
        for worker in self.cluster.workers() {
            self.healed(rest, &worker).await?;
        }
        let members = self.public.through(&rest[0].1).json(&["members"]).await?;
        expect("the state of the one that was stopped", &member(&members, leaver)["state"], &json!("stopped"))?;
        self.cluster.start_again(leaver).await?;
        let controls = self.cluster.controls();
        until(HEALED, async || agreed(self.public, &controls).await).await.map(|_| ())
    }
}

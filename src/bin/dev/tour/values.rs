//! Steps about nodes, labels, data, functions and requests.

use serde_json::json;

use super::{Tour, expect, unexpected};
use crate::dev::field;
use crate::exit;
use crate::failure::Outcome;

impl Tour<'_> {
    pub(super) async fn nodes(&mut self) -> Outcome {
        let nodes = self.public.nodes().await?;
        if !self.cluster.are_ready(&nodes) {
            let seen: Vec<_> = nodes.iter().map(|node| (field(node, "id"), field(node, "status"))).collect();
            return Err(unexpected(format!("{:?} should all be ready, but the cluster shows {seen:?}", self.cluster.ids())));
        }
        let controls = self.cluster.controls();
        let odd: Vec<&str> = controls.iter().step_by(2).map(|(id, _)| id.as_str()).collect();
        self.wait_selected("control && order && odd=true && status=ready", &odd).await?;
        self.wait_selected(&format!("{} && !control", self.worker.as_str().replace("dev", "node")), &[self.worker.as_str()]).await?;
        let info = self.public.json(&["info", self.worker.as_str()]).await?;
        expect("the id that `info` shows", &info["id"], &json!(self.worker))?;
        let active = info["proxies"].as_array().map_or(0, |proxies| proxies.iter().filter(|proxy| proxy["active"] == true).count());
        expect("the number of proxies that the worker obeys", &json!(active), &json!(1))?;
        self.public.refused(&["info", "nobody"], exit::MISSING, "not_found").await
    }

    pub(super) async fn labels(&mut self) -> Outcome {
        let worker = self.worker.as_str();
        let before = self.public.json(&["meta", worker]).await?;
        let after = self.public.json(&["meta", worker, "set", "tour;kind=test;fast"]).await?;
        let label = json!({ "name": "tour", "values": { "kind": "test", "fast": null } });
        let has_label = after.as_array().is_some_and(|labels| labels.contains(&label));
        expect("whether the new label is there", &json!(has_label), &json!(true))?;
        self.wait_selected("tour && kind=test && fast", &[worker]).await?;
        let rest = self.public.json(&["meta", worker, "unset", "tour"]).await?;
        expect("the labels without the new one", &rest, &before)?;
        self.wait_selected("tour", &[]).await
    }

    pub(super) async fn data(&mut self) -> Outcome {
        let worker = self.worker.as_str();
        let get = ["data", worker, "get", "tour"];
        expect("a value that nobody put", &self.public.json(&get).await?, &json!({ "value": null }))?;
        self.public.json(&["data", worker, "put", "tour", "{\"steps\": [1, 2.5, \"three\"]}"]).await?;
        expect("the value", &self.public.json(&get).await?, &json!({ "value": { "steps": [1, 2.5, "three"] } }))?;
        self.public.json(&["data", worker, "put", "tour", "a text"]).await?;
        expect("the text", &self.public.json(&get).await?, &json!({ "value": "a text" }))?;
        self.public.json(&["data", worker, "del", "tour"]).await?;
        expect("the deleted value", &self.public.json(&get).await?, &json!({ "value": null }))
    }

    pub(super) async fn function(&mut self) -> Outcome {
        let worker = self.worker.as_str();
        let reply = self.public.json(&["call", worker, "echo", "1", "\"two\"", "{\"three\": [3]}"]).await?;
        expect("the reply of echo", &reply, &json!({ "reply": [1, "two", { "three": [3] }] }))?;
        self.public.refused(&["call", worker, "no-such-function"], exit::FAILED, "unknown_function").await
    }

    pub(super) async fn request(&mut self) -> Outcome {
        let worker = self.worker.as_str();
        let reply = self.public.json(&["request", worker, "core", "\"status\""]).await?;
        expect("the reply of core", &reply, &json!({ "reply": { "status": "ready" } }))?;
        self.public.refused(&["request", worker, "no-such-class", "{}"], exit::MISSING, "unknown_class").await?;
        self.public.refused(&["request", "nobody", "core", "\"status\""], exit::MISSING, "not_found").await
    }

    pub(super) async fn ping(&mut self) -> Outcome {
        let pinged = self.public.json(&["ping", self.worker.as_str(), "-c", "5", "--interval", "10ms"]).await?;
        expect("what was sent and lost", &json!([pinged["count"], pinged["lost"]]), &json!([5, 0]))?;
        let times = ["min_us", "p50_us", "p99_us", "max_us"].map(|name| pinged[name].as_u64());
        match times.iter().all(Option::is_some) && times.is_sorted() {
            true => Ok(()),
            false => Err(unexpected(format!("min, p50, p99 and max should be numbers that grow, but are {times:?}"))),
        }
    }
}

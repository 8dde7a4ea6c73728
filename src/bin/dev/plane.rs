//! What the control nodes say of each other, asked one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use nkcluster::types::NodeId;
use serde_json::Value;
use tokio::time::Instant;

use super::cluster::POLL;
use super::field;
use super::public::Public;
use crate::failure::{Failure, Outcome};

/// Looks again until it is as it should be; after that time, what was wrong last is the failure.
pub(super) async fn until<T>(within: Duration, mut look: impl AsyncFnMut() -> Outcome<T>) -> Outcome<T> {
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Err(failure) if Instant::now() >= deadline => {
                return Err(failure.context(format_args!("after {} s", within.as_secs())));
            }
            Err(_) => tokio::time::sleep(POLL).await,
            done => return done,
        }
    }
}

/// The ring on which all these control nodes agree and which they own alone, each of them joined in the eyes of each.
pub(super) async fn agreed(public: &Public, controls: &[(NodeId, String)]) -> Outcome<Value> {
    let mut agreed: Option<Value> = None;
    for (id, uri) in controls {
        let public = public.through(uri);
        let ring = public.json(&["ring"]).await?;
        let shares = shares(&ring);
        if !controls.iter().map(|(id, _)| id.as_str()).eq(shares.keys().copied()) {
            return Err(disagreement(format!("{id} sees a ring of {:?}", shares.keys())));
        }
        if agreed.as_ref().is_some_and(|agreed| agreed["owners"] != ring["owners"]) {
            return Err(disagreement(format!("{id} sees other owners than {}", controls[0].0)));
        }
        let members = public.json(&["members"]).await?;
        if let Some((other, _)) = controls.iter().find(|(other, _)| field(member(&members, other), "state") != "joined") {
            return Err(disagreement(format!("{id} sees {other} as {:?}", field(member(&members, other), "state"))));
        }
        agreed.get_or_insert(ring);
    }
    agreed.ok_or_else(|| disagreement("there is no control node".to_owned()))
}

fn disagreement(message: String) -> Failure {
    Failure::new("timeout", format!("the control nodes do not agree on one ring: {message}"))
}

/// How many partitions of a ring each member owns.
pub(super) fn shares(ring: &Value) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for owner in ring["owners"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        *shares.entry(owner).or_default() += 1;
    }
    shares
}

/// One of the members that `nkcluster members` prints; null if it is not there.
pub(super) fn member<'a>(members: &'a Value, id: &NodeId) -> &'a Value {
    members.as_array().and_then(|members| members.iter().find(|member| field(member, "id") == id.as_str())).unwrap_or(&Value::Null)
}

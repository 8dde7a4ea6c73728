//! Control nodes: who they are, what they own, and how that changes.

use std::collections::BTreeMap;

use nkcluster::cluster::{MemberInfo, PlanInfo, RingInfo};
use nkcluster::types::{NodeId, NodeUri};
use serde_json::json;

use super::Session;
use crate::failure::Outcome;
use crate::output::{self, or_dash};

pub(super) async fn list(session: &Session) -> Outcome {
    let members = session.cluster.members(session.timeout).await?;
    session.form.print(&members, || table(&members))
}

fn table(members: &[MemberInfo]) -> String {
    let mut table = output::table(["id", "state", "partitions", "proxies", "listen", "incarnation", "version"]);
    for member in members {
        let listen: Vec<_> = member.listen.iter().map(ToString::to_string).collect();
        let state = if member.frozen { format!("{} (frozen)", member.state) } else { member.state.clone() };
        table.add_row([
            member.id.to_string(),
            state,
            member.partitions.to_string(),
            or_dash(member.proxies),
            listen.join(" "),
            or_dash(member.incarnation),
            member.version.clone(),
        ]);
    }
    let problems = members.iter().filter_map(|member| Some((member, member.problem.as_ref()?)));
    let problems = problems.map(|(member, problem)| format!("{}: {} ({problem})", member.id, problem.code()));
    std::iter::once(output::text_of(&table)).chain(problems).collect::<Vec<_>>().join("\n")
}

pub(super) async fn ring(session: &Session) -> Outcome {
    let ring = session.cluster.ring(session.timeout).await?;
    session.form.print(&ring, || ring_text(&ring))
}

fn ring_text(ring: &RingInfo) -> String {
    let mut counts: BTreeMap<&NodeId, usize> = BTreeMap::new();
    for owner in &ring.owners {
        *counts.entry(owner).or_default() += 1;
    }
    let mut table = output::table(["id", "partitions", "share"]);
    for (id, count) in counts {
        let share = 100.0 * count as f64 / f64::from(ring.size.max(1));
        table.add_row([id.to_string(), count.to_string(), format!("{share:.1} %")]);
    }
    format!("{} partitions, epoch {}\n{}", ring.size, ring.epoch, output::text_of(&table))
}

pub(super) async fn join(session: &Session, uri: &NodeUri) -> Outcome {
    let (node, state) = session.cluster.join(uri, session.timeout).await?;
    session.form.print(&json!({ "node": node, "state": state }), || match state.as_str() {
        "staged" => format!("{node} is staged; `plan` shows what a commit would move, `commit` lets it in"),
        state => format!("{node} is {state}"),
    })
}

pub(super) async fn leave(session: &Session, node: &NodeId) -> Outcome {
    session.cluster.leave(node, session.timeout).await?;
    session.form.print(&json!({ "node": node }), || format!("{node} is leaving; `members` shows it until its proxies have gone"))
}

pub(super) async fn plan(session: &Session) -> Outcome {
    let plan = session.cluster.plan(session.timeout).await?;
    session.form.print(&plan, || plan_text(&plan))
}

fn plan_text(plan: &PlanInfo) -> String {
    if plan.staged.is_empty() {
        return "nothing is staged".to_owned();
    }
    let staged: Vec<_> = plan.staged.iter().map(ToString::to_string).collect();
    let mut table = output::table(["from", "to", "partitions"]);
    for transfer in &plan.transfers {
        table.add_row([or_dash(transfer.from.as_ref()), or_dash(transfer.to.as_ref()), transfer.partitions.to_string()]);
    }
    let head = format!("a commit lets {} in and moves {} of {} partitions", staged.join(", "), plan.moved, plan.size);
    format!("{head}\n{}", output::text_of(&table))
}

pub(super) async fn commit(session: &Session) -> Outcome {
    let nodes = session.cluster.commit(session.timeout).await?;
    session.form.print(&json!({ "nodes": nodes }), || match &nodes[..] {
        [] => "nothing was staged".to_owned(),
        nodes => format!("joined: {}", nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    })
}

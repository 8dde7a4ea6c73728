//! What operators ask of membership: who is there, who owns what, and how that shall change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::RowState;
use crate::cluster::{MemberInfo, Operation, OperationReply, PlanInfo, RingInfo, TransferInfo};
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::connection::{Channel, IncomingCall, Link, LinkHandler, LinkOptions, LinkParts};
use crate::control::messages::{JoinFacts, PeerReply, PeerRequest};
use crate::control::peers;
use crate::control::shared::Shared;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::Role;
use crate::proto::head::{EventHead, Rank};
use crate::proto::message::Message;
use crate::proto::session::Side;
use crate::ring::{Plan, Ring};
use crate::types::{NodeId, NodeUri};

/// How long another control node may take to count its proxies.
const COUNT: Duration = Duration::from_secs(1);
/// How long a control node may take to tell what it knows of the ring.
const JOIN_RING: Duration = Duration::from_secs(5);
/// How long a change may take until every row shows it.
const CHANGE: Duration = Duration::from_secs(10);
/// Pause between two looks at the rows.
const PAUSE: Duration = Duration::from_millis(10);

/// Carries out one of the operations of membership.
pub(in crate::control) async fn operate(shared: &Arc<Shared>, operation: Operation) -> Result<OperationReply> {
    match operation {
        Operation::Members => Ok(OperationReply::Members(members(shared).await?)),
        Operation::Ring => {
            let view = shared.view();
            let owners = view.ring.owners().cloned().collect();
            let size = u32::try_from(view.ring.size().partitions()).unwrap_or(u32::MAX);
            Ok(OperationReply::Ring(RingInfo { size, epoch: format!("{:016x}", view.epoch()), owners }))
        }
        Operation::Join { uri } => join(shared, uri.parse()?).await,
        Operation::Leave { node } => leave(shared, node).await,
        Operation::Plan => plan(shared).await,
        Operation::Commit => commit(shared).await,
        _ => Err(Error::new(ErrorCode::Internal, "this is no operation of membership")),
    }
}

/// Drops a control node that is dead; false if there is none of this name.
///
/// # Errors
/// `not_allowed` for one that is alive.
pub(in crate::control) async fn forget(shared: &Arc<Shared>, node: &NodeId) -> Result<bool> {
    let node = node.clone();
    let forgotten = shared.membership.ask(move |machine, now| match machine.is_member(&node) {
        false => (Ok(false), Vec::new()),
        true => match machine.forget(&node, now) {
            Ok(actions) => (Ok(true), actions),
            Err(error) => (Err(error), Vec::new()),
        },
    });
    forgotten.await.ok_or_else(stopped)?
}

fn stopped() -> Error {
    Error::new(ErrorCode::ShuttingDown, "the control node is stopping; ask another one")
}

async fn members(shared: &Arc<Shared>) -> Result<Vec<MemberInfo>> {
    let states = shared.membership.ask(|machine, now| (machine.members(now), Vec::new())).await.ok_or_else(stopped)?;
    let view = shared.view();
    let mut counts = tokio::task::JoinSet::new();
    for id in view.live.keys().filter(|id| **id != shared.id).cloned() {
        let (shared, view) = (Arc::clone(shared), Arc::clone(&view));
        counts.spawn(async move {
            let counted = shared.peers.ask(&view, &id, &PeerRequest::Proxies, COUNT).await;
            (id, counted)
        });
    }
    let mut proxies = BTreeMap::from([(shared.id.clone(), u32::try_from(shared.directory.all().len()).unwrap_or(u32::MAX))]);
    while let Some(counted) = counts.join_next().await {
        if let Ok((id, Ok(PeerReply::Proxies(count)))) = counted {
            proxies.insert(id, count);
        }
    }
    let member = |state: super::machine::MemberState| MemberInfo {
        state: state.state.to_owned(),
        incarnation: state.incarnation,
        listen: state.listen,
        partitions: u32::try_from(view.ring.partitions_of(&state.id).count()).unwrap_or(u32::MAX),
        proxies: proxies.get(&state.id).copied(),
        version: state.program,
        problem: state.problem,
        frozen: state.id == shared.id && view.frozen,
        id: state.id,
    };
    Ok(states.into_iter().map(member).collect())
}

/// Waits until the members, as this node sees them, are as they should be.
async fn until<R>(shared: &Arc<Shared>, late: Error, look: impl Fn(&[super::machine::MemberState]) -> Option<R>) -> Result<R> {
    let deadline = Instant::now() + CHANGE;
    loop {
        let states = shared.membership.ask(|machine, now| (machine.members(now), Vec::new())).await.ok_or_else(stopped)?;
        if let Some(found) = look(&states) {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(late);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn join(shared: &Arc<Shared>, uri: NodeUri) -> Result<OperationReply> {
    let (peer, facts) = probe(shared, &uri).await?;
    let view = shared.view();
    if usize::try_from(facts.ring_size).ok() != Some(shared.config.ring_size) {
        let what = format!(
            "{peer} has a ring of {} partitions, {} one of {}; `ring_size` must be the same on all control nodes",
            facts.ring_size, shared.id, shared.config.ring_size
        );
        return Err(Error::new(ErrorCode::DifferentRingSizes, what));
    }
    let is_apart = !facts.live.iter().any(|id| view.live.contains_key(id));
    if is_apart && facts.live.len() > 1 && view.live.len() > 1 {
        let what = format!("{peer} is a member of another cluster of {} control nodes; only one that is alone can join", facts.live.len());
        return Err(Error::new(ErrorCode::NotSingleNode, what));
    }
    if is_apart && shared.config.staged_joins && view.live.len() <= 1 {
        shared.membership.become_state(RowState::Staged).await;
    }
    let seed = uri.clone();
    shared.membership.ask(move |machine, now| ((), machine.add_seed(seed, None, now))).await;
    let late = Error::new(ErrorCode::UnableToGetJoinRing, format!("{peer} answered at {uri}, but did not tell its row within {CHANGE:?}"));
    let state = until(shared, late, |states| {
        let found = states.iter().find(|state| state.id == peer && !matches!(state.state, "unreachable" | "refused" | "stopped"));
        found.map(|state| state.state.to_owned())
    });
    let state = state.await?;
    Ok(OperationReply::Joined { node: peer, state })
}

/// Asks whoever is at an address what decides about a join.
async fn probe(shared: &Arc<Shared>, uri: &NodeUri) -> Result<(NodeId, JoinFacts)> {
    // Its link to us, if there is one, would give way to that of the question.
    let (declines, linked) = peers::decline_linked(shared);
    let expect = Expect { declines: Some(declines), ..Expect::any(Role::Control) };
    let dialled = dial_and_establish(std::slice::from_ref(uri), &shared.party, &expect, Order::AsGiven, &shared.dial).await;
    if let Some(link) = linked.get() {
        return facts_of(link).await;
    }
    let established = dialled.map_err(|error| match error.code() {
        ErrorCode::NoConnections => Error::new(ErrorCode::NotReachable, format!("no control node lets us in: {error}")),
        _ => error.into(),
    })?;
    let peer = established.peer.clone();
    if peer.id == shared.id {
        let (code, what) = match peer.incarnation == shared.incarnation {
            true => (ErrorCode::SelfJoin, format!("{uri} is control node {} itself", peer.id)),
            false => (ErrorCode::NodeIdInUse, format!("the control node at {uri} has the node_id of this one, {}", peer.id)),
        };
        return Err(Error::new(code, what));
    }
    let options = LinkOptions { keepalive: None };
    let link = Link::start(LinkParts { established, side: Side::Dialler }, options, |_| Arc::new(Probe));
    let facts = facts_of(&link).await;
    link.close(Error::new(ErrorCode::ConnectionFailed, "the question was answered"));
    facts
}

/// Asks over a link.
async fn facts_of(link: &Link) -> Result<(NodeId, JoinFacts)> {
    let peer = link.peer().id.clone();
    match peers::ask_over(link, &PeerRequest::Membership, JOIN_RING).await {
        Ok(PeerReply::Membership(facts)) => Ok((peer, facts)),
        Ok(_) => Err(Error::new(ErrorCode::UnableToGetJoinRing, format!("{peer} answered something else than was asked"))),
        Err(error) => Err(Error::new(ErrorCode::UnableToGetJoinRing, format!("{peer} did not tell its ring: {error}"))),
    }
}

/// A link on which one question is asked.
struct Probe;

impl LinkHandler for Probe {
    fn call(&self, call: IncomingCall) {
        call.reply(&Err(Error::new(ErrorCode::NotAllowed, "this link only asks")));
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, _: &Channel, _: Message) {}

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {}
}

async fn leave(shared: &Arc<Shared>, node: NodeId) -> Result<OperationReply> {
    let whom = node.clone();
    let asked = shared.membership.ask(move |machine, now| match machine.leave(&whom, now) {
        Ok(actions) => (Ok(()), actions),
        Err(error) => (Err(error), Vec::new()),
    });
    asked.await.ok_or_else(stopped)??;
    let late = Error::new(ErrorCode::Timeout, format!("{node} was asked to leave, but has not begun within {CHANGE:?}")).after_sending();
    let gone = |states: &[super::machine::MemberState]| {
        let stays = states.iter().any(|state| state.id == node && !matches!(state.state, "leaving" | "left"));
        (!stays).then_some(())
    };
    until(shared, late, gone).await?;
    Ok(OperationReply::Done)
}

async fn plan(shared: &Arc<Shared>) -> Result<OperationReply> {
    let staged = shared.membership.ask(|machine, _| (machine.staged(), Vec::new())).await.ok_or_else(stopped)?;
    let staged: Vec<NodeId> = staged.into_iter().map(|(id, _)| id).collect();
    let joined = shared.membership.ask(|machine, _| (machine.would_live(), Vec::new())).await.ok_or_else(stopped)?;
    let size = shared.view().ring.size();
    let now = Ring::new(size, joined.iter().filter(|id| !staged.contains(id)).cloned());
    let then = Ring::new(size, joined);
    let plan = Plan::between(&now, &then).map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))?;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let transfers = plan.transfers.into_iter();
    let transfers = transfers.map(|transfer| TransferInfo { from: transfer.from, to: transfer.to, partitions: count(transfer.partitions) });
    Ok(OperationReply::Plan(PlanInfo { staged, size: count(size.partitions()), moved: count(plan.moved), transfers: transfers.collect() }))
}

async fn commit(shared: &Arc<Shared>) -> Result<OperationReply> {
    let joined = shared.membership.ask(|machine, now| machine.commit(now)).await.ok_or_else(stopped)?;
    let late = Error::new(ErrorCode::Timeout, format!("not all staged nodes have joined within {CHANGE:?}; see `members`")).after_sending();
    let whom = joined.clone();
    until(shared, late, |states| {
        let waits = states.iter().any(|state| whom.contains(&state.id) && state.state == "staged");
        (!waits).then_some(())
    })
    .await?;
    Ok(OperationReply::Committed { nodes: joined })
}

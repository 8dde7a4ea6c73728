//! Links of workers that one control node has and another one uses.
//!
//! A worker may reach a control node that does not own it: through a balancer, or because it knew no better. That node **lends** its link to the owner. The
//! stream of one call between the two carries the frames, so that the owner has a link like any other, with a session of its own: its peer is the worker.
//!
//! ```text
//!   owner                         lender                          worker
//!   Link ══ frames in a stream ══► pump ══ channels of its link ══► Link
//!     channel 0  ◄─────────────────────────► channel 2
//!     channel 2  ◄─────────────────────────► channel 4
//! ```
//!
//! The lender changes the number of the channel in each frame and nothing else; calls, streams and their credit are between owner and worker. It puts each
//! frame into the lane where it belongs ([`crate::proto::session::Session::relay`]), takes from the stream only what the link to the worker has room for, and
//! keeps at most [`WAITING_BYTES_MAX`] of what the worker says. Either side that ends takes the other with it. A link that was lent is not lent on: if its
//! worker moves, the one that has the socket is asked to lend it to the next owner.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::messages::{Lent, Package, PeerRequest};
use super::proxy::state::LinkKey;
use super::shared::Shared;
use super::workers::{self, Handler};
use crate::cluster::FullUri;
use crate::connection::establish::Established;
use crate::connection::{ByteStream, Link, LinkParts};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::{Peer, Role};
use crate::proto::frame::{self, Frame, Kind, LINK_CHANNEL};
use crate::proto::message::{self, Closed, Describe};
use crate::proto::session::Side;
use crate::transport::{CertificateCheck, Wire, WireFacts};
use crate::types::NodeId;

/// Channels of one lent link: an owner needs one for the link and one for each adoption, of which the old one ends after a drain.
const CHANNELS_MAX: usize = 8;
/// Bytes of a worker that may wait for the owner. They are bounded by credit and windows already; this bounds a worker that breaks the rules.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that are written to the owner at once.
const BATCH_BYTES: usize = 64 * 1024;
/// How long another control node may take to take over a link, and in a hand-over also the worker to accept its new owner.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Where the socket of a lent link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Via {
    pub(super) node: NodeId,
    pub(super) lease: LinkKey,
}

/// Lends the link of a worker to `to`, until either end is over. Returns when that one has it; of a hand-over, when the worker obeys it.
pub(super) async fn lend(worker: &Arc<Handler>, to: &NodeId, describe: Describe, package: Option<Box<Package>>) -> Result<()> {
    let (shared, link) = (&worker.shared, &worker.link);
    if worker.via.is_some() {
        return Err(Error::new(ErrorCode::LoopedRequest, "a link that was lent is not lent on"));
    }
    let peer = link.peer();
    let lent = Lent {
        via: shared.id.clone(),
        lease: worker.key,
        worker: peer.id.clone(),
        incarnation: peer.incarnation,
        version: peer.version,
        describe: describe.clone(),
        dialled: link.side() == Side::Dialler,
        found_at: worker.dialled.as_ref().map(FullUri::new),
        transport: link.transport(),
        remote: link.remote().to_owned(),
        package,
    };
    let request = PeerRequest::Lend(Box::new(lent));
    let (answer, stream) = shared.peers.ask_with_stream(&shared.view(), to, &request, PATIENCE)?;
    let pump = Pump::new(worker, to.clone(), describe)?;
    let cancel = tokio::spawn(pump.run(stream));
    let taken = answer.wait(PATIENCE).await;
    if taken.is_err() {
        cancel.abort();
    }
    taken.map(|_| ())
}

/// Takes a link that another control node lends.
pub(super) async fn borrow(shared: &Arc<Shared>, lent: Lent, stream: ByteStream) -> Result<()> {
    let view = shared.view();
    if shared.is_stopping() || view.frozen || !view.owns(&lent.worker) {
        return Err(Error::new(ErrorCode::Moved, format!("{} does not own {}", shared.id, lent.worker)));
    }
    let facts = WireFacts {
        transport: lent.transport,
        remote: format!("{} via {}", lent.remote, lent.via),
        local: String::new(),
        peer_addr: None,
        binding: None,
        certificate: CertificateCheck::Unchecked,
    };
    let peer =
        Peer { role: Role::Worker, id: lent.worker.clone(), incarnation: lent.incarnation, version: lent.version, features: Vec::new() };
    let side = if lent.dialled { Side::Dialler } else { Side::Listener };
    let found_at = lent.found_at.as_ref().map(FullUri::parse).transpose()?;
    let parts = LinkParts { established: Established { wire: Wire::new(stream, facts), peer, uri: found_at.clone() }, side };
    let via = Via { node: lent.via, lease: lent.lease };
    let is_move = lent.package.is_some();
    let worker = workers::start_lent(shared, parts, via, found_at, lent.package);
    if is_move { obeyed(&worker).await } else { Ok(()) }
}

/// The worker of a link that this node lends moves to another owner, which may be this node itself.
pub(super) async fn pass(shared: &Arc<Shared>, lease: LinkKey, to: &NodeId, package: Package) -> Result<()> {
    let gone = || Error::new(ErrorCode::NotConnected, "the link has ended");
    let worker = shared.worker_link(lease).ok_or_else(gone)?;
    hand_over(&worker, to, package).await
}

/// Gives the worker of a link that is here to another owner. Returns when the worker obeys that one.
pub(super) async fn hand_over(worker: &Arc<Handler>, to: &NodeId, package: Package) -> Result<()> {
    let describe = package.describe.clone();
    if *to != worker.shared.id {
        return lend(worker, to, describe, Some(Box::new(package))).await;
    }
    worker.adopt_here(describe, Some(Box::new(package)));
    obeyed(worker).await
}

/// Waits until the worker obeys this node over this link.
async fn obeyed(worker: &Handler) -> Result<()> {
    let late = |_| Error::new(ErrorCode::Timeout, "the worker did not accept its new owner in time");
    let obeys = async {
        let proxy = worker.introduced_to().await;
        loop {
            let changed = proxy.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if proxy.current().is_some_and(|current| current.key == worker.key) {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                reason = worker.link.ended() => return Err(reason),
            }
        }
    };
    tokio::time::timeout_at(Instant::now() + PATIENCE, obeys).await.map_err(late)?
}

/// What a worker says on the channels of one lease.
#[derive(Clone)]
pub(super) struct Inlet {
    sender: mpsc::UnboundedSender<FromWorker>,
    waiting: Arc<AtomicUsize>,
}

enum FromWorker {
    Frame(Frame),
    Closed(u16, Error),
}

impl Inlet {
    /// Queues a frame; false if too much waits.
    pub(super) fn frame(&self, frame: Frame) -> bool {
        let bytes = cost(&frame);
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > WAITING_BYTES_MAX {
            return false;
        }
        // A pump that has ended has closed its channels.
        let _ = self.sender.send(FromWorker::Frame(frame));
        true
    }

    pub(super) fn closed(&self, channel: u16, reason: Error) {
        let _ = self.sender.send(FromWorker::Closed(channel, reason));
    }
}

/// What a waiting frame costs.
fn cost(frame: &Frame) -> usize {
    frame.body.len() + 128
}

/// The channels of a lease: those of the owner's session, and those of the link to the worker.
#[derive(Debug, Default)]
struct Channels {
    to_worker: BTreeMap<u16, u16>,
    to_owner: BTreeMap<u16, u16>,
}

impl Channels {
    fn join(&mut self, owner: u16, worker: u16) {
        self.to_worker.insert(owner, worker);
        self.to_owner.insert(worker, owner);
    }

    fn part_at_owner(&mut self, owner: u16) -> Option<u16> {
        let worker = self.to_worker.remove(&owner)?;
        self.to_owner.remove(&worker);
        Some(worker)
    }

    fn part_at_worker(&mut self, worker: u16) -> Option<u16> {
        let owner = self.to_owner.remove(&worker)?;
        self.to_worker.remove(&owner);
        Some(owner)
    }
}

/// Moves the frames of one lease.
struct Pump {
    worker: Arc<Handler>,
    owner: NodeId,
    channels: Mutex<Channels>,
    inlet: Inlet,
    queue: Option<mpsc::UnboundedReceiver<FromWorker>>,
    describe: Describe,
}

impl Pump {
    /// Opens the channel that is channel 0 of the owner's session.
    fn new(worker: &Arc<Handler>, owner: NodeId, describe: Describe) -> Result<Self> {
        let (sender, queue) = mpsc::unbounded_channel();
        let inlet = Inlet { sender, waiting: Arc::default() };
        let pump = Self { worker: Arc::clone(worker), owner, channels: Mutex::default(), inlet, queue: Some(queue), describe };
        pump.open(LINK_CHANNEL)?;
        Ok(pump)
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> &Link {
        &self.worker.link
    }

    fn open(&self, owner: u16) -> Result<()> {
        let mut channels = self.channels();
        if channels.to_worker.len() >= CHANNELS_MAX || channels.to_worker.contains_key(&owner) {
            return Err(Error::new(ErrorCode::Busy, format!("a lent link has at most {CHANNELS_MAX} channels")));
        }
        let opened = self.link().open_relayed_channel()?;
        self.worker.relay_to(opened, self.inlet.clone());
        channels.join(owner, opened);
        Ok(())
    }

    async fn run(mut self, stream: ByteStream) {
        let Some(queue) = self.queue.take() else { return };
        let (reader, writer) = tokio::io::split(stream);
        let reason = tokio::select! {
            reason = self.give_to_owner(queue, writer) => reason,
            reason = self.take_from_owner(reader) => reason,
            reason = self.link().ended() => reason,
        };
        tracing::debug!(worker = %self.link().peer().id, owner = %self.owner, %reason, "a lent link was given back");
    }

    async fn give_to_owner(&self, mut queue: mpsc::UnboundedReceiver<FromWorker>, mut writer: tokio::io::WriteHalf<ByteStream>) -> Error {
        let mut bytes = BytesMut::new();
        frame::put_frame(&mut bytes, Kind::Describe, LINK_CHANNEL, &message::encode(&self.describe));
        loop {
            if let Err(error) = writer.write_all(&bytes).await {
                return lost(&error);
            }
            bytes.clear();
            let Some(first) = queue.recv().await else { return Error::new(ErrorCode::Internal, "nobody speaks for the worker") };
            self.put(&mut bytes, first);
            while bytes.len() < BATCH_BYTES
                && let Ok(next) = queue.try_recv()
            {
                self.put(&mut bytes, next);
            }
        }
    }

    fn put(&self, bytes: &mut BytesMut, said: FromWorker) {
        match said {
            FromWorker::Frame(frame) => {
                self.inlet.waiting.fetch_sub(cost(&frame), Ordering::Relaxed);
                let channel = self.channels().to_owner.get(&frame.channel).copied();
                if let Some(channel) = channel {
                    frame::put_frame(bytes, frame.kind, channel, &frame.body);
                }
            }
            FromWorker::Closed(channel, reason) => {
                let channel = self.channels().part_at_worker(channel);
                if let Some(channel) = channel {
                    frame::put_frame(bytes, Kind::ChannelClose, channel, &message::encode(&Closed { reason: reason.bounded() }));
                }
            }
        }
    }

    async fn take_from_owner(&self, mut reader: tokio::io::ReadHalf<ByteStream>) -> Error {
        let mut bytes = BytesMut::new();
        loop {
            match frame::take_frame(&mut bytes, frame::BYTES_MAX) {
                Ok(Some(frame)) => {
                    if let Err(error) = self.pass(frame).await {
                        return error;
                    }
                    continue;
                }
                Ok(None) => {}
                Err(fault) => return Error::new(ErrorCode::ProtocolError, format!("the owner broke the protocol: {fault}")),
            }
            match reader.read_buf(&mut bytes).await {
                Ok(0) => return Error::new(ErrorCode::ConnectionFailed, "the owner gave the link up"),
                Ok(_) => {}
                Err(error) => return lost(&error),
            }
        }
    }

    async fn pass(&self, frame: Frame) -> Result<()> {
        match frame.kind {
            Kind::ChannelOpen => self.open(frame.channel)?,
            Kind::ChannelClose => {
                let channel = self.channels().part_at_owner(frame.channel);
                if let Some(channel) = channel
                    && let Ok(Closed { reason }) = message::decode(frame.kind, &frame.body)
                {
                    self.worker.relay_no_more(channel);
                    self.link().close_channel(channel, &reason);
                }
            }
            Kind::Fault => return Err(Error::new(ErrorCode::ProtocolError, "the worker broke the protocol towards its owner")),
            kind => {
                let channel = self.channels().to_worker.get(&frame.channel).copied();
                if let Some(channel) = channel {
                    self.link().relay(channel, kind, frame.body).await;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Pump {
    /// However it ends: the worker sees its channels closed, and the link itself if nobody else uses it.
    fn drop(&mut self) {
        let what = format!("control node {}, which used the link of {}, gave it up", self.owner, self.worker.shared.id);
        let reason = Error::new(ErrorCode::ConnectionFailed, what);
        let channels: Vec<u16> = self.channels().to_owner.keys().copied().collect();
        for channel in channels {
            self.worker.relay_no_more(channel);
            self.link().close_channel(channel, &reason);
        }
        self.worker.close_if_unused(&reason);
    }
}

fn lost(error: &std::io::Error) -> Error {
    Error::new(ErrorCode::ConnectionFailed, format!("the way to the owner was cut: {error}"))
}

//! Links over wires of every kind of mood: whole, slow, cut at any byte, silent.

mod calls;
mod ends;
mod output;
mod quic;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::establish::Established;
use super::*;
use crate::error::{Error, ErrorCode};
use crate::proto::auth::{Peer, Role};
use crate::proto::head::{CallHead, EventHead, Rank, Verb};
use crate::proto::identity::CallIdentity;
use crate::proto::message::Message;
use crate::proto::session::Side;
use crate::transport::{CertificateCheck, MemoryNet, Wire, WireFacts};
use crate::types::{ClassName, Incarnation, NodeId, Transport};

/// Far longer than anything here takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(30);
const NO_KEEPALIVE: LinkOptions = LinkOptions { keepalive: None };

/// One end of a link, with what its handler saw.
struct End {
    link: Link,
    calls: mpsc::UnboundedReceiver<IncomingCall>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    closed: AtomicUsize,
    after_closed: AtomicUsize,
}

struct Handler {
    calls: mpsc::UnboundedSender<IncomingCall>,
    seen: Arc<Seen>,
}

impl Handler {
    fn note(&self) {
        if self.seen.closed.load(Ordering::SeqCst) > 0 {
            self.seen.after_closed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        self.note();
        // A test that has dropped its end leaves the call unanswered, and so answered.
        let _ = self.calls.send(call);
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {
        self.note();
    }

    fn message(&self, _: &Channel, _: Message) {
        self.note();
    }

    fn channel_opened(&self, _: &Channel) {
        self.note();
    }

    fn channel_closed(&self, _: u16, _: &Error) {
        self.note();
    }

    fn pinged(&self, _: u16, _: Rank) {
        self.note();
    }

    fn closed(&self, _: &Error) {
        self.note();
        self.seen.closed.fetch_add(1, Ordering::SeqCst);
    }
}

impl End {
    fn start(wire: Wire, side: Side, options: LinkOptions) -> Self {
        let peer = Peer {
            role: Role::Control,
            id: NodeId::new("peer").expect("a valid name"),
            incarnation: Incarnation::from_bytes([9; 16]),
            version: 1,
            features: Vec::new(),
        };
        let parts = LinkParts { established: Established { wire, peer, uri: None }, side };
        let (calls, receiver) = mpsc::unbounded_channel();
        let seen = Arc::new(Seen::default());
        let handler = Handler { calls, seen: Arc::clone(&seen) };
        let link = Link::start(parts, options, |_| Arc::new(handler));
        Self { link, calls: receiver, seen }
    }

    /// The next call of the other end.
    async fn next(&mut self) -> IncomingCall {
        tokio::time::timeout(DEADLINE, self.calls.recv()).await.expect("a call comes").expect("the handler lives")
    }

    /// Answers every call with its own payload, in a task of its own.
    fn echo(mut self) -> (Link, Arc<Seen>) {
        let (link, seen) = (self.link.clone(), Arc::clone(&self.seen));
        tokio::spawn(async move {
            while let Some(call) = self.calls.recv().await {
                let payload = call.payload.clone();
                call.reply(&Ok(payload));
            }
        });
        (link, seen)
    }

    async fn call(&self, payload: &'static [u8], timeout: Duration) -> CallAnswer {
        self.link.channel_zero().call(&head(), &Bytes::from_static(payload), timeout).await
    }
}

fn wire(stream: impl crate::transport::Stream) -> Wire {
    let facts = WireFacts {
        transport: Transport::Memory,
        remote: "memory:there".into(),
        local: "memory:here".into(),
        peer_addr: None,
        binding: None,
        certificate: CertificateCheck::Unchecked,
    };
    Wire::new(stream, facts)
}

fn both(dialler: Wire, listener: Wire, options: LinkOptions) -> (End, End) {
    (End::start(dialler, Side::Dialler, options), End::start(listener, Side::Listener, options))
}

/// Two ends over a wire with a small buffer.
fn linked() -> (End, End) {
    let (one, other) = duplex(64 * 1024);
    both(wire(one), wire(other), NO_KEEPALIVE)
}

/// Two ends over the simulated network.
async fn linked_in(net: &MemoryNet) -> (End, End) {
    let listener = net.listen("b").expect("nobody else listens");
    let dialled = net.node("a").dial("b").expect("somebody listens");
    both(dialled, listener.accept().await, NO_KEEPALIVE)
}

fn head() -> CallHead {
    CallHead {
        verb: Verb::Request,
        timeout_ms: 30_000,
        identity: CallIdentity { edge: Incarnation::from_bytes([1; 16]), number: 7 },
        retry: false,
        hops: 0,
        exclusive: false,
        incarnation: Incarnation::default(),
        node: None,
        class: Some(ClassName::new("core").expect("a valid name")),
        task: None,
    }
}

fn gone() -> Error {
    Error::new(ErrorCode::ShuttingDown, "over")
}

/// Waits for a condition, with a deadline.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, patience).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Copies between two ends of wires until `bytes` have passed, then cuts both.
async fn cut_after(mut left: DuplexStream, mut right: DuplexStream, bytes: usize) {
    let (mut forth, mut back) = ([0; 64], [0; 64]);
    let mut rest = bytes;
    while rest > 0 {
        // Only what may pass is read, so that the cut is at the exact byte.
        let most = rest.min(64);
        let passed = tokio::select! {
            count = left.read(&mut forth[..most]) => pass(count, &forth, &mut right).await,
            count = right.read(&mut back[..most]) => pass(count, &back, &mut left).await,
        };
        match passed {
            Some(count) => rest -= count,
            None => return,
        }
    }
}

async fn pass(count: std::io::Result<usize>, bytes: &[u8], to: &mut DuplexStream) -> Option<usize> {
    let count = count.ok().filter(|count| *count > 0)?;
    to.write_all(&bytes[..count]).await.ok()?;
    Some(count)
}

//! Live events: a bounded queue between whoever produces them and whoever reads.
//!
//! A producer never waits. When the queue is full, by number or by bytes, what comes is counted per worker and class and told as a gap as soon as the reader has caught up, whether
//! anything else happens or not. Between processes the records travel on the stream of a call, each as `u32` length and named MessagePack;
//! the stream's credit is their back-pressure.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::operation::{EventBody, EventFilter, EventRecord};
use crate::connection::ByteStream;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::message::BuiltinEvent;
use crate::types::{ClassName, Incarnation, NodeId};

/// Events that wait for one subscriber.
pub const EVENTS_QUEUED_MAX: usize = 4096;
/// Bytes of the events that wait for one subscriber.
pub const EVENT_BYTES_QUEUED_MAX: usize = 4 * 1024 * 1024;
/// What an event takes beside its payload and texts.
const RECORD_BYTES: usize = 256;
/// Workers and classes whose losses are counted for one subscriber; beyond it a loss is told without its numbers.
const GAPS_MAX: usize = 4096;
/// One record on a stream.
const RECORD_BYTES_MAX: usize = 128 * 1024;

/// The reading end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct EventStream {
    receiver: mpsc::Receiver<Result<EventRecord>>,
    gaps: Option<Arc<Mutex<Gaps>>>,
}

impl EventStream {
    /// The next event; none when the subscription has ended.
    ///
    /// # Errors
    /// The reason why no more events come, as the last item.
    pub async fn next(&mut self) -> Option<Result<EventRecord>> {
        if let Some(gaps) = &self.gaps {
            // Under the lock nothing is queued: a gap is told when all that came before it has been read.
            let mut gaps = lock(gaps);
            if let Ok(record) = self.receiver.try_recv() {
                gaps.taken(&record);
                return Some(record);
            }
            if let Some(gap) = gaps.first() {
                return Some(Ok(gap));
            }
        }
        let record = self.receiver.recv().await?;
        if let Some(gaps) = &self.gaps {
            lock(gaps).taken(&record);
        }
        Some(record)
    }
}

/// The producing end.
#[derive(Debug)]
pub struct EventSink {
    filter: EventFilter,
    sender: mpsc::Sender<Result<EventRecord>>,
    gaps: Arc<Mutex<Gaps>>,
}

/// What waits for one subscriber, and what it has missed.
#[derive(Debug, Default)]
struct Gaps {
    queued_bytes: usize,
    lost: BTreeMap<(NodeId, Incarnation, ClassName), Lost>,
}

#[derive(Clone, Copy, Debug)]
struct Lost {
    /// First and last number; zeros if only words of the control node itself were lost, which have none.
    from: u64,
    to: u64,
    time_ms: u64,
}

impl Gaps {
    fn count(&mut self, record: &EventRecord) {
        let key = (record.node.clone(), record.incarnation, record.class.clone());
        if self.lost.len() >= GAPS_MAX && !self.lost.contains_key(&key) {
            return;
        }
        let lost = self.lost.entry(key).or_insert(Lost { from: record.seq, to: record.seq, time_ms: record.time_ms });
        if record.seq > 0 {
            lost.from = if lost.from == 0 { record.seq } else { lost.from.min(record.seq) };
            lost.to = lost.to.max(record.seq);
        }
    }

    /// Whether there is room for these bytes. One event always finds room in an empty queue.
    fn has_room(&self, bytes: usize) -> bool {
        self.queued_bytes == 0 || self.queued_bytes + bytes <= EVENT_BYTES_QUEUED_MAX
    }

    /// A record has left the queue.
    fn taken(&mut self, record: &Result<EventRecord>) {
        self.queued_bytes -= record.as_ref().map_or(0, record_bytes);
    }

    /// Takes one of them out.
    fn first(&mut self) -> Option<EventRecord> {
        let ((node, incarnation, class), Lost { from, to, time_ms }) = self.lost.pop_first()?;
        let event = EventBody::Nkcluster(BuiltinEvent::Gap { from, to });
        Some(EventRecord { node, incarnation, class, seq: to, time_ms, task: None, event })
    }
}

fn lock(gaps: &Mutex<Gaps>) -> MutexGuard<'_, Gaps> {
    gaps.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue for the events that a filter wants.
pub fn event_queue(filter: EventFilter) -> (EventSink, EventStream) {
    let (sender, receiver) = mpsc::channel(EVENTS_QUEUED_MAX);
    let gaps = Arc::default();
    (EventSink { filter, sender, gaps: Arc::clone(&gaps) }, EventStream { receiver, gaps: Some(gaps) })
}

impl EventSink {
    /// Whether anybody reads.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Another end of the same queue, for a second producer.
    pub fn another(&self) -> Self {
        Self { filter: self.filter.clone(), sender: self.sender.clone(), gaps: Arc::clone(&self.gaps) }
    }

    /// Ends when nobody reads any more.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Offers an event whatever the filter wants: it says something of the subscription itself.
    pub fn tell(&mut self, record: EventRecord) {
        // Held until it is counted: its reader takes the bytes off again.
        let mut gaps = lock(&self.gaps);
        let bytes = record_bytes(&record);
        if self.sender.try_send(Ok(record)).is_ok() {
            gaps.queued_bytes += bytes;
        } else {
            tracing::debug!("a subscriber is too slow to be told what it misses");
        }
    }

    /// Offers an event without waiting; false if nobody reads any more.
    pub fn offer(&mut self, record: &EventRecord) -> bool {
        if !self.is_open() {
            return false;
        }
        if !self.filter.wants(record) {
            return true;
        }
        // Held until the record is queued or counted, see `EventStream::next`.
        let mut gaps = lock(&self.gaps);
        let bytes = record_bytes(record);
        // Only if the event fits behind them: otherwise one loss would be told in pieces.
        while !gaps.lost.is_empty()
            && gaps.has_room(RECORD_BYTES + bytes)
            && let Ok(room) = self.sender.try_reserve()
            && let Some(gap) = gaps.first()
        {
            gaps.queued_bytes += record_bytes(&gap);
            room.send(Ok(gap));
        }
        if gaps.lost.is_empty() && gaps.has_room(bytes) && self.sender.try_send(Ok(record.clone())).is_ok() {
            gaps.queued_bytes += bytes;
        } else {
            gaps.count(record);
        }
        true
    }

    /// Ends the subscription with a reason.
    pub fn fail(self, error: Error) {
        // A full queue is read to its end first; its reader then finds it closed.
        let _ = self.sender.try_send(Err(error));
    }
}

/// Bytes that a record counts for.
fn record_bytes(record: &EventRecord) -> usize {
    RECORD_BYTES
        + match &record.event {
            EventBody::Class(payload) => payload.len(),
            EventBody::Nkcluster(BuiltinEvent::TaskStopped { reason, .. }) => reason.len(),
            EventBody::Nkcluster(_) => 0,
        }
}

/// Writes the events of a queue to a stream until either ends.
pub async fn write_events(mut events: EventStream, mut stream: ByteStream) -> io::Result<()> {
    let mut probe = [0; 1];
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            // The subscriber sends nothing: an answer here is its end.
            _ = reader.read(&mut probe) => return Ok(()),
        };
        match next {
            Some(Ok(record)) => {
                let body = rmp_serde::to_vec_named(&record).map_err(io::Error::other)?;
                let length = u32::try_from(body.len()).map_err(io::Error::other)?;
                writer.write_u32(length).await?;
                writer.write_all(&body).await?;
            }
            Some(Err(_)) | None => return writer.shutdown().await,
        }
    }
}

/// Reads events from a stream into a queue, in a task of its own that ends with either. The end of the stream is an error: whoever follows did not ask for it.
pub fn read_events(stream: ByteStream) -> EventStream {
    let ended = || Error::new(ErrorCode::ConnectionFailed, "no more events come: the control node has ended the subscription");
    read(stream, Some(ended))
}

/// The same, for a stream that may end in peace.
pub(crate) fn read_events_to_end(stream: ByteStream) -> EventStream {
    read(stream, None)
}

fn read(mut stream: ByteStream, at_end: Option<fn() -> Error>) -> EventStream {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let record = tokio::select! {
                record = read_record(&mut stream) => record.transpose(),
                () = sender.closed() => return,
            };
            let Some(record) = record.or_else(|| at_end.map(|ended| Err(ended()))) else { return };
            let ended = record.is_err();
            if sender.send(record).await.is_err() || ended {
                return;
            }
        }
    });
    EventStream { receiver, gaps: None }
}

/// None where the stream ends between two events.
async fn read_record(stream: &mut ByteStream) -> Result<Option<EventRecord>> {
    let failed = |error: io::Error| Error::new(ErrorCode::ConnectionFailed, format!("no more events come: {error}"));
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await.map_err(failed)? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await.map_err(failed)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > RECORD_BYTES_MAX {
        return Err(Error::new(ErrorCode::ProtocolError, format!("an event of {length} bytes is larger than {RECORD_BYTES_MAX}")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(failed)?;
    let record = rmp_serde::from_slice(&body);
    record.map(Some).map_err(|error| Error::new(ErrorCode::ProtocolError, format!("an event cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Payload;

    fn record(seq: u64) -> EventRecord {
        EventRecord {
            node: NodeId::new("w1").expect("valid"),
            incarnation: Incarnation::default(),
            class: ClassName::new("core").expect("valid"),
            seq,
            time_ms: 0,
            task: None,
            event: EventBody::Class(Payload::nil()),
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_told_what_it_missed() {
        let (mut sink, mut stream) = event_queue(EventFilter::default());
        let full = EVENTS_QUEUED_MAX as u64;
        for seq in 1..=full + 10 {
            assert!(sink.offer(&record(seq)));
        }
        for seq in 1..=full {
            assert_eq!(stream.next().await, Some(Ok(record(seq))));
        }
        sink.offer(&record(full + 11));
        let gap = stream.next().await.expect("open").expect("no error");
        assert_eq!(gap.event, EventBody::Nkcluster(BuiltinEvent::Gap { from: full + 1, to: full + 10 }));
        assert_eq!(stream.next().await, Some(Ok(record(full + 11))));
    }

    #[tokio::test]
    async fn what_has_no_number_does_not_spoil_a_gap() {
        let (mut sink, mut stream) = event_queue(EventFilter::default());
        let full = EVENTS_QUEUED_MAX as u64;
        for seq in (1..=full).chain([0, full + 1, full + 2, 0]) {
            assert!(sink.offer(&record(seq)));
        }
        for seq in 1..=full {
            assert_eq!(stream.next().await, Some(Ok(record(seq))));
        }
        let gap = stream.next().await.expect("open").expect("no error");
        assert_eq!(gap.event, EventBody::Nkcluster(BuiltinEvent::Gap { from: full + 1, to: full + 2 }));
    }

    #[tokio::test]
    async fn large_events_fill_the_queue_by_their_bytes() {
        let (mut sink, mut stream) = event_queue(EventFilter::default());
        let large = |seq| EventRecord { event: EventBody::Class(Payload::from_bytes(vec![0; 60_000])), ..record(seq) };
        let room = (EVENT_BYTES_QUEUED_MAX / (60_000 + RECORD_BYTES)) as u64;
        for round in 0..3 {
            let first = round * 1000 + 1;
            for seq in first..first + room + 5 {
                assert!(sink.offer(&large(seq)));
            }
            for seq in first..first + room {
                assert_eq!(stream.next().await, Some(Ok(large(seq))));
            }
            let gap = stream.next().await.expect("open").expect("no error");
            assert_eq!(gap.event, EventBody::Nkcluster(BuiltinEvent::Gap { from: first + room, to: first + room + 4 }));
            assert_eq!(lock(stream.gaps.as_ref().expect("in process")).queued_bytes, 0);
        }
    }

    #[tokio::test]
    async fn what_is_told_of_the_subscription_counts_like_an_event() {
        let (mut sink, mut stream) = event_queue(EventFilter::default());
        sink.tell(record(0));
        assert_eq!(stream.next().await, Some(Ok(record(0))));
        assert_eq!(lock(stream.gaps.as_ref().expect("in process")).queued_bytes, 0);
        assert!(sink.offer(&record(1)));
        assert_eq!(stream.next().await, Some(Ok(record(1))), "no gap: the queue was empty");
    }

    #[tokio::test]
    async fn dropping_the_stream_ends_the_subscription() {
        let (mut sink, stream) = event_queue(EventFilter::default());
        drop(stream);
        assert!(!sink.offer(&record(1)));
    }
}

use std::future::pending;

use proptest::prelude::*;
use ractor::{ActorStatus, Message as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::cluster::random_incarnation;
use crate::proto::auth::KeyringInput;
use crate::types::Secret;

/// Far longer than anything here takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn golden_bytes_of_version_1() {
    let routed = Routed { token: 0x0102_0304_0506_0708, envelope: Bytes::from_static(b"who") };
    let Ok(SerializedMessage::Cast { args, .. }) = routed.serialize() else { panic!("it is a cast") };
    assert_eq!(args, [1, 1, 2, 3, 4, 5, 6, 7, 8, b'w', b'h', b'o']);
}

proptest! {
    #[test]
    fn whatever_another_node_sends_is_an_envelope_or_refused(args in proptest::collection::vec(any::<u8>(), 0..40)) {
        let message = SerializedMessage::Cast { variant: String::new(), args: args.clone(), metadata: None };
        match Routed::deserialize(message) {
            Ok(routed) => prop_assert_eq!(&routed.envelope[..], &args[HEAD_BYTES..]),
            Err(_) => prop_assert!(args.len() < HEAD_BYTES || args[0] != VERSION),
        }
    }
}

/// An actor that ractor would announce to every peer: its messages are numbers.
struct Stranger;

impl Actor for Stranger {
    type Msg = u64;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<u64>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

async fn start(membership: &Membership) -> Result<Option<Actors>> {
    let input = KeyringInput { cluster: "test".into(), iterations: 1, password: Some(Secret::new("a secret")), ..KeyringInput::default() };
    let keyring = Keyring::derive(Role::Control, &input).expect("a good keyring");
    Actors::start(&NodeId::new("c1").expect("valid"), random_incarnation(), &keyring, membership.clone()).await
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn ended(events: &mut UnboundedReceiver<Event>, key: SessionKey) {
    let ended = async {
        loop {
            match events.recv().await {
                Some(Event::CarrierEnded(other)) if other == key => return,
                Some(_) => {}
                None => pending().await,
            }
        }
    };
    within(&format!("session {key} ends"), ended).await;
}

/// Opens a session whose other end is the test.
fn session(actors: &Actors, number: u64) -> DuplexStream {
    let (ours, theirs) = duplex(64 * 1024);
    actors.open(number, number, ours, true);
    theirs
}

/// One test: the registries of ractor belong to the process, so only one carrier may run in it at a time.
#[tokio::test]
async fn a_carrier_announces_its_router_alone_and_outlives_whatever_its_sessions_bring() {
    let (membership, mut events) = Membership::channel();
    let (stranger, _) = Actor::spawn(None, Stranger, ()).await.expect("starts");
    let refused = start(&membership).await.err().expect("an actor of somebody else can be addressed from other nodes");
    assert_eq!(refused.code(), &ErrorCode::NotAllowed);
    stranger.stop_and_wait(None, Some(DEADLINE)).await.expect("stopped");
    let actors = start(&membership).await.expect("starts").expect("no other node of this process has it");
    assert!(start(&membership).await.expect("no fault").is_none(), "one for each process");
    let remotable: Vec<ActorId> =
        pid_registry::get_all_pids().into_iter().filter(ActorCell::supports_remoting).map(|cell| cell.get_id()).collect();
    assert_eq!(remotable, [actors.router.get_id()]);
    assert_eq!(actors.router.get_name(), None, "a name would be lost with the first session that ends");

    // A frame that claims to be endless, one that is no message, and an end in the middle of one.
    let mut endless = session(&actors, 1);
    endless.write_all(&[0xff; 64]).await.expect("written");
    ended(&mut events, 1).await;
    for (number, garbage) in [(2, &[0, 0, 0, 0, 0, 0, 0, 16, 0xff, 0xff, 0xff, 0xff][..]), (3, b"GET / HTTP/1.1\r\n\r\n"), (4, &[0, 0])] {
        let mut theirs = session(&actors, number);
        // It may be refused while it is written.
        let _ = theirs.write_all(garbage).await;
        drop(theirs);
        ended(&mut events, number).await;
    }

    // What cannot be read reaches nobody, and the router goes on.
    let mut silent = session(&actors, 5);
    let cell = actors.router.get_cell();
    for args in [Vec::new(), vec![VERSION], vec![VERSION + 1; 64], vec![0xff; 64]] {
        let _ = cell.send_serialized(SerializedMessage::Cast { variant: String::new(), args, metadata: None });
    }
    let good = Routed { token: 5, envelope: Bytes::from_static(b"good") }.serialize().expect("encodes");
    assert!(cell.send_serialized(good).is_ok());
    let first = async {
        loop {
            if let Some(Event::Envelope { key, bytes, by_link, .. }) = events.recv().await {
                return (key, bytes, by_link);
            }
        }
    };
    assert_eq!(within("the good one arrives", first).await, (5, Bytes::from_static(b"good"), false));

    // Ending a session cuts the peer off at once, silent as it is, and leaves the rest alone.
    within("ractor takes the stream", async {
        while lock(&actors.sessions).get(&5).is_some_and(|open| open.session.is_none()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    end(&actors.sessions, 5);
    let cut = async { while silent.read(&mut [0; 256]).await.is_ok_and(|read| read > 0) {} };
    within("the peer of an ended session is cut off", cut).await;
    assert_eq!(actors.router.get_status(), ActorStatus::Running);
    assert_eq!(actors.server.get_status(), ActorStatus::Running);
    session(&actors, 6).write_all(&[0xff; 64]).await.expect("written");
    ended(&mut events, 6).await;
}

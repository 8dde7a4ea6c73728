//! Bytes of a stranger at the door.

use std::sync::{Arc, LazyLock};

use bytes::BytesMut;
use nkcluster::ErrorCode;
use nkcluster::connection::admission::{Gate, Limits};
use nkcluster::connection::establish::{Party, accept};
use nkcluster::proto::auth::{
    ClientFirst, FRAME_BYTES_MAX, Identity, KIND_REFUSAL, KIND_SERVER_FIRST, Keyring, KeyringInput, Refusal, Role, VERSIONS,
};
use nkcluster::proto::frame::{self, BYTES_MAX_UNTRUSTED, Fault, Frame, HEADER_BYTES};
use nkcluster::transport::{ListenOptions, Listener, MemoryNet};
use nkcluster::types::{Incarnation, NodeId, NodeUri, Secret};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};

use crate::seeded::seeded_crash;

/// What the stranger does not know.
const SECRET: &str = "what-the-stranger-does-not-know";
/// Turns after which a listener that still waits is left alone: it delays the answer to a wrong proof.
const TURNS_MAX: usize = 64;

/// Whatever a stranger sends, it is not let in, hears at most one message and one refusal, and nothing of the secret. Cut into pieces anywhere, the same bytes are
/// the same frames and the same fault.
pub fn before_trust(data: &[u8]) {
    frames_do_not_depend_on_the_cuts(data);
    let heard = knock(data);
    let mut rest = BytesMut::from(&heard[..]);
    let mut kinds = Vec::new();
    let mut refused_as = None;
    while let Some(frame) = frame::take_frame(&mut rest, FRAME_BYTES_MAX).unwrap_or_else(|fault| panic!("the answer is no frame: {fault}"))
    {
        if frame.kind as u8 == KIND_REFUSAL {
            refused_as = Refusal::from_body(&frame.body).ok();
            assert!(refused_as.is_some(), "a refusal that cannot be read");
        }
        kinds.push(frame.kind as u8);
    }
    assert!(rest.is_empty(), "a part of a frame");
    assert!(matches!(kinds[..], [] | [KIND_SERVER_FIRST] | [KIND_REFUSAL] | [KIND_SERVER_FIRST, KIND_REFUSAL]), "{kinds:?}");
    assert!(!heard.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "the secret");

    let frames = frames_of(data, data.len().max(1)).0;
    let hello: Option<ClientFirst> = frames.first().and_then(|frame| rmp_serde::from_slice(&frame.body).ok());
    seeded_crash!(
        "before_trust",
        kinds.first() == Some(&KIND_SERVER_FIRST),
        frames.len() > 1,
        refused_as.is_some_and(|refusal| refusal.code == ErrorCode::NotAuthenticated),
        hello.as_ref().is_some_and(|hello| hello.nonce != [1; 32]),
    );
}

fn frames_do_not_depend_on_the_cuts(data: &[u8]) {
    let whole = frames_of(data, data.len().max(1));
    let piece = 1 + usize::from(data.first().copied().unwrap_or(0) % 13);
    let cut = frames_of(data, piece);
    assert_eq!(cut.0, whole.0);
    // Which fault it is may depend on what has come: an unknown kind is refused before its body is there.
    assert_eq!(cut.1.as_ref().map(Fault::number), whole.1.as_ref().map(Fault::number));
}

fn frames_of(data: &[u8], piece: usize) -> (Vec<Frame>, Option<Fault>) {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for bytes in data.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            match frame::take_frame(&mut buffer, BYTES_MAX_UNTRUSTED) {
                Ok(Some(frame)) => {
                    assert!(frame.body.len() + HEADER_BYTES <= BYTES_MAX_UNTRUSTED + 4);
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(fault) => return (frames, Some(fault)),
            }
        }
    }
    (frames, None)
}

struct Door {
    runtime: Runtime,
    listener: Listener,
    net: MemoryNet,
    party: Party,
    gate: Gate,
}

thread_local! {
    static DOOR: Door = Door::open();
}

/// Derived once: the door of each thread has the same keys.
static KEYRING: LazyLock<Arc<Keyring>> = LazyLock::new(|| {
    let input = KeyringInput { cluster: "c".to_owned(), iterations: 1, password: Some(Secret::from(SECRET)), ..KeyringInput::default() };
    Arc::new(Keyring::derive(Role::Control, &input).expect("one password serves every role"))
});

impl Door {
    fn open() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime without sockets needs nothing of the system");
        let net = MemoryNet::new();
        let uri: NodeUri = "nkcluster://c1;transport=memory".parse().expect("a URL of the simulated network");
        let options = ListenOptions { memory: Some(net.clone()), ..ListenOptions::default() };
        let listener = runtime.block_on(Listener::bind(&uri, &options)).expect("nobody else is in this network");
        let identity = Identity {
            cluster: "c".to_owned(),
            role: Role::Control,
            id: NodeId::new("c1").expect("a letter and a digit are a name"),
            incarnation: Incarnation::from_bytes([1; 16]),
            versions: VERSIONS.to_vec(),
            features: vec!["a".to_owned(), "b".to_owned()],
        };
        let party = Party::new(identity, Arc::clone(&KEYRING));
        let gate = runtime.block_on(async { Gate::new(Limits { untrusted: 16, rate: u32::MAX }) });
        Self { runtime, listener, net, party, gate }
    }
}

/// Sends these bytes to a listener and returns what comes back.
fn knock(data: &[u8]) -> Vec<u8> {
    DOOR.with(|Door { runtime, listener, net, party, gate }| {
        runtime.block_on(async {
            let mut wire = net.dial("stranger", "c1").expect("it listens");
            let permit = gate.admit(None).await.expect("nobody else is at the door");
            let incoming = listener.accept().await;
            let mut heard = Vec::new();
            let stranger = async {
                // The listener may have closed already.
                let _ = wire.write_all(data).await;
                let _ = wire.shutdown().await;
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = wire.read(&mut buffer).await {
                    heard.extend_from_slice(&buffer[..count]);
                }
            };
            let listening = async {
                assert!(accept(incoming, party, permit).await.is_err(), "a stranger was let in");
            };
            let both = async { tokio::join!(listening, stranger) };
            let patience = async {
                for _ in 0..TURNS_MAX {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                _ = both => {}
                () = patience => {}
            }
            heard
        })
    })
}

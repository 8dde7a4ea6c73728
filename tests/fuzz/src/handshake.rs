//! The two machines of the handshake, and somebody in the middle.

use std::sync::{Arc, LazyLock};

use nkcluster::proto::auth::{
    AuthFrame, Dialler, DiallerChannel, DiallerSetup, DiallerStep, Identity, Keyring, KeyringInput, Listener, ListenerChannel,
    ListenerSetup, ListenerStep, Role, VERSIONS,
};
use nkcluster::types::{Incarnation, NodeId, Secret};

use crate::input::Input;
use crate::seeded::seeded_crash;

/// Dialler and listener of every link that there is.
const ROLES: [(Role, Role); 4] =
    [(Role::Worker, Role::Control), (Role::Admin, Role::Control), (Role::Control, Role::Control), (Role::Control, Role::Worker)];

/// What stands between the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Plain,
    /// One TLS connection.
    Tls,
    /// Two TLS connections that meet in the middle.
    TwoTls,
    /// TLS that ends at a balancer, by configuration of both.
    Balancer,
    /// The same, by configuration of the dialler alone.
    BalancerUnknown,
}

impl Channel {
    const ALL: [Channel; 5] = [Channel::Plain, Channel::Tls, Channel::TwoTls, Channel::Balancer, Channel::BalancerUnknown];

    fn ends(self) -> (DiallerChannel, ListenerChannel) {
        let plain = ListenerChannel { exporter: None, accept_unbound: false };
        match self {
            Channel::Plain => (DiallerChannel::Plain, plain),
            Channel::Tls => (DiallerChannel::Tls([7; 32]), ListenerChannel { exporter: Some([7; 32]), ..plain }),
            Channel::TwoTls => (DiallerChannel::Tls([7; 32]), ListenerChannel { exporter: Some([8; 32]), ..plain }),
            Channel::Balancer => (DiallerChannel::VerifiedWithoutBinding, ListenerChannel { accept_unbound: true, ..plain }),
            Channel::BalancerUnknown => (DiallerChannel::VerifiedWithoutBinding, plain),
        }
    }
}

/// The middle changes what it likes. The ends trust each other if it changed nothing and they belong together; otherwise nobody is trusted whose words are not those
/// that the other side said. At most the last proof may be written in another way, as nothing is proved by its form.
pub fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let (dialling, listening) = ROLES[input.below(ROLES.len())];
    let channel = Channel::ALL[input.below(Channel::ALL.len())];
    let secrets = input.below(4);
    let (dialler_channel, listener_channel) = channel.ends();
    let dialler_keys = if secrets == 1 { &STRANGERS } else { &OURS };
    let (mut dialler, first) = Dialler::start(DiallerSetup {
        identity: identity(dialling, "d"),
        keyring: Arc::clone(&dialler_keys[dialling as usize]),
        expect_role: listening,
        expect_id: (secrets == 2).then(|| id("l")),
        nonce: [1; 32],
        channel: dialler_channel,
    });
    let mut listener = Listener::new(ListenerSetup {
        identity: identity(listening, "l"),
        keyring: Arc::clone(&OURS[listening as usize]),
        nonce: [2; 32],
        channel: listener_channel,
    });
    let belong_together = secrets != 1 && !matches!(channel, Channel::TwoTls | Channel::BalancerUnknown);

    let mut sent = vec![first];
    let mut delivered = Vec::new();
    let (mut dialler_trusts, mut listener_trusts) = (None, None);
    // Four messages; more turns than that show what machines do that are over.
    for turn in 0..6 {
        let Some(frame) = sent.last().cloned() else { break };
        let frame = meddle(frame, &sent, &mut input);
        delivered.push(frame.clone());
        let to_listener = turn % 2 == 0;
        let answer = if to_listener {
            match listener.handle(frame.kind, &frame.body) {
                Ok(ListenerStep::Send(answer)) => Some(answer),
                Ok(ListenerStep::Trusted(answer, peer)) => {
                    listener_trusts = Some(peer);
                    Some(answer)
                }
                Err(error) => {
                    let _ = error.code();
                    Some(error.refusal().to_frame())
                }
            }
        } else {
            match dialler.handle(frame.kind, &frame.body) {
                Ok(DiallerStep::Send(answer)) => Some(answer),
                Ok(DiallerStep::Trusted(peer)) => {
                    dialler_trusts = Some(peer);
                    None
                }
                Err(error) => {
                    let _ = (error.code(), error.to_string());
                    None
                }
            }
        };
        match answer {
            Some(answer) => sent.push(answer),
            None => break,
        }
    }

    let unchanged = |messages: usize| delivered.len() >= messages && sent.len() >= messages && delivered[..messages] == sent[..messages];
    if let Some(peer) = &listener_trusts {
        assert!(belong_together && unchanged(2), "the listener trusts what was not said");
        assert_eq!((peer.role, peer.id.as_str(), peer.incarnation), (dialling, "d", incarnation(dialling)));
    }
    if let Some(peer) = &dialler_trusts {
        assert!(belong_together && unchanged(3), "the dialler trusts what was not said");
        assert!(listener_trusts.is_some(), "the dialler trusts a listener that does not");
        assert_eq!((peer.role, peer.id.as_str(), peer.incarnation), (listening, "l", incarnation(listening)));
    }
    if unchanged(4) {
        assert_eq!(dialler_trusts.is_some() && listener_trusts.is_some(), belong_together);
    }
    seeded_crash!(
        "handshake",
        channel == Channel::Balancer,
        dialling == Role::Admin,
        secrets == 2,
        listener_trusts.is_some(),
        dialler_trusts.is_some(),
        !unchanged(4),
    );
}

/// What the middle makes of a message.
fn meddle(mut frame: AuthFrame, sent: &[AuthFrame], input: &mut Input<'_>) -> AuthFrame {
    match input.below(10) {
        1 => {
            let at = usize::from(input.u16());
            let bits = input.byte();
            if let Some(byte) = frame.body.get_mut(at) {
                *byte ^= bits;
            }
        }
        2 => frame.body.truncate(usize::from(input.u16())),
        3 => frame.body.extend_from_slice(input.bytes()),
        4 => frame.kind = input.byte(),
        5 => frame = sent[input.below(sent.len())].clone(),
        6 => frame = AuthFrame { kind: input.byte(), body: input.bytes().to_vec() },
        7 => {
            let at = usize::from(input.u16()).min(frame.body.len());
            frame.body.splice(at..at, input.bytes().iter().copied());
        }
        8 => {
            // One more field in the map of the message: legal, and yet not what was said.
            if let Some(count @ 0x80..=0x8e) = frame.body.first_mut() {
                *count += 1;
                frame.body.extend_from_slice(&[0xa1, b'~']);
                frame.body.extend_from_slice(input.bytes());
            }
        }
        _ => {}
    }
    frame
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a letter is a name")
}

fn incarnation(role: Role) -> Incarnation {
    Incarnation::from_bytes([role as u8 + 1; 16])
}

fn identity(role: Role, name: &str) -> Arc<Identity> {
    Arc::new(Identity {
        cluster: "c".to_owned(),
        role,
        id: id(name),
        incarnation: incarnation(role),
        versions: VERSIONS.to_vec(),
        features: vec!["a".to_owned(), name.to_owned()],
    })
}

/// Keys of every role, of one password.
fn keyrings(password: &str) -> [Arc<Keyring>; 3] {
    let input = KeyringInput { cluster: "c".to_owned(), iterations: 1, password: Some(Secret::from(password)), ..KeyringInput::default() };
    Role::ALL.map(|role| Arc::new(Keyring::derive(role, &input).expect("one password serves every role")))
}

static OURS: LazyLock<[Arc<Keyring>; 3]> = LazyLock::new(|| keyrings("ours"));
static STRANGERS: LazyLock<[Arc<Keyring>; 3]> = LazyLock::new(|| keyrings("a guess"));

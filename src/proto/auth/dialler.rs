//! The dialling side of the handshake.
//!
//! ```text
//!   start ──► sends 1 ──► WaitFirst ──2──► sends 3 ──► WaitProof ──4──► Peer
//! ```
//! Everything that can be checked without a secret is checked before the proof leaves.

use std::sync::Arc;

use serde_bytes::ByteArray;

use crate::proto::auth::messages::Message;
use crate::proto::auth::{
    AuthError, AuthFrame, Binding, ClientFirst, ClientProof, Direction, Identity, KIND_CLIENT_FIRST, KIND_CLIENT_PROOF, KIND_REFUSAL,
    KIND_SERVER_FIRST, KIND_SERVER_PROOF, Kdf, Keyring, LinkKeys, NONCE_BYTES, Peer, Refusal, Role, ServerFirst, ServerProof, Transcript,
};
use crate::types::NodeId;

/// The channel as the dialler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiallerChannel {
    /// No encryption under the link.
    Plain,
    /// TLS, with its exporter.
    Tls([u8; 32]),
    /// TLS that ends at a balancer: own configuration says `binding=off`, and the certificate was verified. The caller answers for both.
    VerifiedWithoutBinding,
}

impl DiallerChannel {
    fn binding(&self) -> Binding {
        match self {
            DiallerChannel::Plain => Binding::None,
            DiallerChannel::Tls(_) => Binding::TlsExporter,
            DiallerChannel::VerifiedWithoutBinding => Binding::Off,
        }
    }

    fn exporter(&self) -> &[u8] {
        match self {
            DiallerChannel::Tls(exporter) => exporter,
            DiallerChannel::Plain | DiallerChannel::VerifiedWithoutBinding => &[],
        }
    }
}

/// What a dialler starts with.
#[derive(Clone, Debug)]
pub struct DiallerSetup {
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Our keys, of this address if it has its own password.
    pub keyring: Arc<Keyring>,
    /// The role that must answer.
    pub expect_role: Role,
    /// The node that must answer; any, if `None`.
    pub expect_id: Option<NodeId>,
    /// Fresh random bytes, never used before.
    pub nonce: [u8; NONCE_BYTES],
    /// The channel.
    pub channel: DiallerChannel,
}

/// What to do after a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum DiallerStep {
    /// Send this and wait for the answer.
    Send(AuthFrame),
    /// The listener has proved itself.
    Trusted(Peer),
}

/// The machine of one attempt.
#[derive(Debug)]
pub struct Dialler {
    setup: DiallerSetup,
    state: State,
}

enum State {
    WaitFirst { sent: Vec<u8>, transcript: Transcript },
    WaitProof { keys: LinkKeys, transcript: Transcript, peer: Peer },
    Over,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::WaitFirst { .. } => "WaitFirst",
            State::WaitProof { .. } => "WaitProof",
            State::Over => "Over",
        })
    }
}

impl Dialler {
    /// The machine, and the frame to send first.
    pub fn start(setup: DiallerSetup) -> (Self, AuthFrame) {
        let identity = &setup.identity;
        let frame = ClientFirst {
            versions: identity.versions.clone(),
            features: identity.features.clone(),
            cluster: identity.cluster.clone(),
            role: identity.role,
            id: identity.id.clone(),
            incarnation: identity.incarnation,
            expect_role: setup.expect_role,
            expect_id: setup.expect_id.clone(),
            nonce: ByteArray::new(setup.nonce),
            binding: setup.channel.binding(),
            kdf: Kdf { iterations: setup.keyring.iterations() },
        }
        .encode();
        let mut transcript = Transcript::new();
        transcript.add(KIND_CLIENT_FIRST, &frame.body);
        let state = State::WaitFirst { sent: frame.body.clone(), transcript };
        (Self { setup, state }, frame)
    }

    /// Takes a frame of the listener.
    ///
    /// # Errors
    /// The reason for which the attempt is over; nothing is to be sent then.
    pub fn handle(&mut self, kind: u8, body: &[u8]) -> Result<DiallerStep, AuthError> {
        match (std::mem::replace(&mut self.state, State::Over), kind) {
            (State::Over, _) => Err(AuthError::Over),
            (State::WaitFirst { sent, .. }, KIND_CLIENT_FIRST) if sent == body => Err(AuthError::Reflected),
            (State::WaitFirst { .. } | State::WaitProof { .. }, KIND_REFUSAL) => Err(AuthError::Refused(Refusal::from_body(body)?)),
            (State::WaitFirst { transcript, .. }, KIND_SERVER_FIRST) => self.answer(transcript, body),
            (State::WaitProof { keys, transcript, peer }, KIND_SERVER_PROOF) => self.verify(&keys, &transcript, peer, body),
            (State::WaitFirst { .. } | State::WaitProof { .. }, kind) => Err(AuthError::UnexpectedFrame { kind }),
        }
    }

    /// Who the listener says that it is, from its first frame on; it proves it with its second one.
    pub fn found(&self) -> Option<&Peer> {
        match &self.state {
            State::WaitProof { peer, .. } => Some(peer),
            State::WaitFirst { .. } | State::Over => None,
        }
    }

    fn answer(&mut self, mut transcript: Transcript, body: &[u8]) -> Result<DiallerStep, AuthError> {
        let first = ServerFirst::decode(body)?;
        let setup = &self.setup;
        let identity = &setup.identity;
        if *first.nonce == setup.nonce {
            return Err(AuthError::Reflected);
        }
        if !identity.versions.contains(&first.version) {
            return Err(AuthError::UnsupportedVersion { ours: identity.versions.clone(), theirs: vec![first.version] });
        }
        if first.role != setup.expect_role {
            return Err(AuthError::UnexpectedRole { expected: setup.expect_role, found: first.role });
        }
        if let Some(expected) = &setup.expect_id
            && *expected != first.id
        {
            return Err(AuthError::UnexpectedId { expected: expected.clone(), found: first.id });
        }
        let binding = setup.channel.binding();
        if first.binding != binding {
            return Err(AuthError::Binding { offered: first.binding, expected: binding });
        }
        if first.kdf.iterations != setup.keyring.iterations() {
            return Err(AuthError::Iterations { ours: setup.keyring.iterations(), theirs: first.kdf.iterations });
        }
        if first.features.iter().any(|feature| !identity.features.contains(feature)) {
            return Err(AuthError::Malformed("a feature that was not offered"));
        }
        let link_role = Role::weaker(identity.role, first.role);
        let worker = if first.role == Role::Worker { &first.id } else { &identity.id };
        let keys = setup.keyring.keys_for(link_role, worker).ok_or(AuthError::NoSecret { role: link_role })?;

        transcript.add(KIND_SERVER_FIRST, body);
        let digest = transcript.digest(Direction::ToListener, binding, setup.channel.exporter());
        let signature = setup.keyring.sign(identity.role, Direction::ToListener, &digest).map(ByteArray::new);
        let frame = ClientProof { proof: ByteArray::new(keys.client_proof(&digest)), signature }.encode();
        transcript.add(KIND_CLIENT_PROOF, &frame.body);
        let mut features = first.features;
        features.sort_unstable();
        features.dedup();
        let peer = Peer { role: first.role, id: first.id, incarnation: first.incarnation, version: first.version, features };
        self.state = State::WaitProof { keys, transcript, peer };
        Ok(DiallerStep::Send(frame))
    }

    fn verify(&self, keys: &LinkKeys, transcript: &Transcript, peer: Peer, body: &[u8]) -> Result<DiallerStep, AuthError> {
        let message = ServerProof::decode(body)?;
        let channel = &self.setup.channel;
        let digest = transcript.digest(Direction::ToDialler, channel.binding(), channel.exporter());
        if !keys.verify_server(&digest, &message.proof) {
            return Err(AuthError::ImpostorListener);
        }
        let signature = message.signature.as_deref();
        if !self.setup.keyring.accepts_signature(peer.role, Direction::ToDialler, &digest, signature) {
            return Err(AuthError::WrongSignature);
        }
        Ok(DiallerStep::Trusted(peer))
    }
}

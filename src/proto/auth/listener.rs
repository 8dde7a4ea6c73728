//! The listening side of the handshake.
//!
//! ```text
//!   WaitFirst ──1──► sends 2 ──► WaitProof ──3──► sends 4, Peer
//! ```
//! Message 2 is made of public values only. Whether the cluster is ours and whether we have a secret at all is remembered and judged together with the
//! proof, after the same steps.

use std::sync::Arc;

use serde_bytes::ByteArray;

use crate::proto::auth::messages::Message;
use crate::proto::auth::{
    AuthError, AuthFrame, Binding, ClientFirst, ClientProof, Direction, Identity, KIND_CLIENT_FIRST, KIND_CLIENT_PROOF, KIND_REFUSAL,
    KIND_SERVER_FIRST, Kdf, Keyring, LinkKeys, NONCE_BYTES, Peer, Refusal, Role, ServerFirst, ServerProof, Transcript,
};

/// The channel as the listener sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerChannel {
    /// The exporter, if TLS ends here.
    pub exporter: Option<[u8; 32]>,
    /// Own configuration: diallers may leave the binding off, because TLS ends at a balancer in front of us.
    pub accept_unbound: bool,
}

impl ListenerChannel {
    fn expected(&self) -> Binding {
        if self.exporter.is_some() { Binding::TlsExporter } else { Binding::None }
    }

    fn check(&self, offered: Binding) -> Result<(), AuthError> {
        let expected = self.expected();
        if offered == expected || (offered == Binding::Off && self.accept_unbound) {
            return Ok(());
        }
        Err(AuthError::Binding { offered, expected })
    }

    fn exporter(&self, binding: Binding) -> &[u8] {
        match (binding, &self.exporter) {
            (Binding::TlsExporter, Some(exporter)) => exporter,
            (Binding::TlsExporter, None) | (Binding::None | Binding::Off, _) => &[],
        }
    }
}

/// What a listener starts with.
#[derive(Clone, Debug)]
pub struct ListenerSetup {
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Our keys.
    pub keyring: Arc<Keyring>,
    /// Fresh random bytes, never used before.
    pub nonce: [u8; NONCE_BYTES],
    /// The channel.
    pub channel: ListenerChannel,
}

/// What to do after a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum ListenerStep {
    /// Send this and wait for the proof.
    Send(AuthFrame),
    /// The dialler has proved itself: send this, and the link is trusted.
    Trusted(AuthFrame, Peer),
}

/// The machine of one incoming connection.
#[derive(Debug)]
pub struct Listener {
    setup: ListenerSetup,
    state: State,
}

enum State {
    WaitFirst,
    WaitProof(Box<Claim>),
    Over,
}

/// What a dialler says of itself until it has proved it.
struct Claim {
    peer: Peer,
    binding: Binding,
    transcript: Transcript,
    keys: LinkKeys,
    /// Why no proof will do, known before it is seen and told as a wrong one.
    doomed: Option<&'static str>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::WaitFirst => "WaitFirst",
            State::WaitProof(_) => "WaitProof",
            State::Over => "Over",
        })
    }
}

impl Listener {
    /// The machine; it waits for message 1.
    pub fn new(setup: ListenerSetup) -> Self {
        Self { setup, state: State::WaitFirst }
    }

    /// Takes a frame of the dialler.
    ///
    /// # Errors
    /// The reason for which the connection is over. What the dialler may know of it is [`AuthError::refusal`].
    pub fn handle(&mut self, kind: u8, body: &[u8]) -> Result<ListenerStep, AuthError> {
        match (std::mem::replace(&mut self.state, State::Over), kind) {
            (State::Over, _) => Err(AuthError::Over),
            (State::WaitFirst | State::WaitProof(_), KIND_REFUSAL) => Err(AuthError::Refused(Refusal::from_body(body)?)),
            (State::WaitFirst, KIND_CLIENT_FIRST) => self.answer(body),
            (State::WaitProof(claim), KIND_CLIENT_PROOF) => self.verify(*claim, body),
            (State::WaitFirst | State::WaitProof(_), kind) => Err(AuthError::UnexpectedFrame { kind }),
        }
    }

    fn answer(&mut self, body: &[u8]) -> Result<ListenerStep, AuthError> {
        let first = ClientFirst::decode(body)?;
        let Identity { cluster, role, id, incarnation, versions, features } = &*self.setup.identity;
        let keyring = &self.setup.keyring;
        if *first.nonce == self.setup.nonce {
            return Err(AuthError::Reflected);
        }
        let common = versions.iter().filter(|version| first.versions.contains(version)).max();
        let Some(&version) = common else {
            return Err(AuthError::UnsupportedVersion { ours: versions.clone(), theirs: first.versions });
        };
        if first.expect_role != *role {
            return Err(AuthError::UnexpectedRole { expected: first.expect_role, found: *role });
        }
        if !role.accepts().contains(&first.role) {
            return Err(AuthError::RoleNotAccepted { ours: *role, theirs: first.role });
        }
        if let Some(expected) = first.expect_id
            && expected != *id
        {
            return Err(AuthError::UnexpectedId { expected, found: id.clone() });
        }
        self.setup.channel.check(first.binding)?;
        if first.kdf.iterations != keyring.iterations() {
            return Err(AuthError::Iterations { ours: keyring.iterations(), theirs: first.kdf.iterations });
        }

        let link_role = Role::weaker(*role, first.role);
        let worker = if first.role == Role::Worker { &first.id } else { id };
        let keys = keyring.keys_for(link_role, worker);
        let doomed = if first.cluster != *cluster {
            Some("the peer belongs to another cluster")
        } else if keys.is_none() {
            Some("there is no secret here for links of this role")
        } else {
            None
        };
        let mut agreed: Vec<String> = first.features.into_iter().filter(|feature| features.contains(feature)).collect();
        agreed.sort_unstable();
        agreed.dedup();
        let frame = ServerFirst {
            version,
            features: agreed.clone(),
            role: *role,
            id: id.clone(),
            incarnation: *incarnation,
            nonce: ByteArray::new(self.setup.nonce),
            binding: first.binding,
            kdf: Kdf { iterations: keyring.iterations() },
        }
        .encode();
        let mut transcript = Transcript::new();
        transcript.add(KIND_CLIENT_FIRST, body);
        transcript.add(KIND_SERVER_FIRST, &frame.body);
        let peer = Peer { role: first.role, id: first.id, incarnation: first.incarnation, version, features: agreed };
        let keys = keys.unwrap_or_else(LinkKeys::unmatched);
        self.state = State::WaitProof(Box::new(Claim { peer, binding: first.binding, transcript, keys, doomed }));
        Ok(ListenerStep::Send(frame))
    }

    fn verify(&self, claim: Claim, body: &[u8]) -> Result<ListenerStep, AuthError> {
        let Claim { peer, binding, mut transcript, keys, doomed } = claim;
        let message = ClientProof::decode(body)?;
        let keyring = &self.setup.keyring;
        let exporter = self.setup.channel.exporter(binding);
        let digest = transcript.digest(Direction::ToListener, binding, exporter);
        let proved = keys.verify_client(&digest, &message.proof);
        if !proved || doomed.is_some() {
            return Err(AuthError::WrongSecret(doomed.unwrap_or("the proof of the peer is wrong")));
        }
        let signature = message.signature.as_deref();
        if !keyring.accepts_signature(peer.role, Direction::ToListener, &digest, signature) {
            return Err(AuthError::WrongSignature);
        }
        transcript.add(KIND_CLIENT_PROOF, body);
        let digest = transcript.digest(Direction::ToDialler, binding, exporter);
        let signature = keyring.sign(self.setup.identity.role, Direction::ToDialler, &digest).map(ByteArray::new);
        let frame = ServerProof { proof: ByteArray::new(keys.server_proof(&digest)), signature }.encode();
        Ok(ListenerStep::Trusted(frame, peer))
    }
}

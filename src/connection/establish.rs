//! From a wire to a trusted link: the handshake of [`proto::auth`](crate::proto::auth) under limits.
//!
//! Until the peer has proved itself, a frame has at most 4 KiB, everything together takes at most [`HANDSHAKE_TIMEOUT`], and a wrong proof is answered
//! after [`WRONG_PROOF_DELAY`], which only its own connection waits for. A refused peer is told why, in words that give nothing away.
//!
//! [`accept`] is the listening side, one task per connection. [`dial`] proves ourselves over one wire; [`dial_and_establish`] goes through a list of URLs and all
//! addresses behind them until one accepts us.

mod dialling;
mod frames;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::connection::admission::Permit;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::{
    Identity, KIND_CLIENT_PROOF, Keyring, KeyringInput, Listener, ListenerChannel, ListenerSetup, ListenerStep, Peer, Role,
};
use crate::transport::{Incoming, Wire};
use crate::types::{Binding, NodeUri, Secret};

pub use dialling::{Attempt, Declines, DialError, Expect, Order, dial, dial_and_establish};
use frames::{ReadFault, read_frame, refuse, write_frame};

/// Most time from the first byte of TLS to trust.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How late a wrong proof is answered.
pub const WRONG_PROOF_DELAY: Duration = Duration::from_millis(500);
/// Most passwords of URLs whose keys are kept.
const URI_KEYS_MAX: usize = 64;

/// A link whose peer has proved itself. No byte behind the handshake was read.
#[derive(Debug)]
pub struct Established {
    /// The stream, with its facts.
    pub wire: Wire,
    /// Who is at the other end.
    pub peer: Peer,
    /// The URL that led there, on the dialling side.
    pub uri: Option<NodeUri>,
}

/// This process in handshakes: who it is and what it can prove. Clones are cheap and share their keys.
#[derive(Clone, Debug)]
pub struct Party {
    identity: Arc<Identity>,
    keyring: Arc<Keyring>,
    /// Keys of passwords that stand in URLs. The lock is held while one is computed, so that there is only one such computation at a time.
    uri_keys: Arc<Mutex<Vec<UriKeys>>>,
}

#[derive(Debug)]
struct UriKeys {
    password: Secret,
    used_for: UsedFor,
    keyring: Arc<Keyring>,
}

/// What the password of a URL is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UsedFor {
    /// To dial: links of this role.
    Dialling(Role),
    /// To listen.
    Listening,
}

impl Party {
    /// Computes the keys on a blocking thread: takes up to three times PBKDF2, once per process.
    ///
    /// # Errors
    /// Those of [`Keyring::derive`].
    pub async fn prepare(identity: Identity, input: KeyringInput) -> Result<Self> {
        let role = identity.role;
        let keyring = blocking(move || Keyring::derive(role, &input)).await??;
        Ok(Self::new(identity, Arc::new(keyring)))
    }

    /// A party whose keys are there already.
    pub fn new(identity: Identity, keyring: Arc<Keyring>) -> Self {
        Self { identity: Arc::new(identity), keyring, uri_keys: Arc::default() }
    }

    /// The same keys under another identity of this process: a control node is also a worker.
    pub fn with_identity(&self, identity: Identity) -> Self {
        Self { identity: Arc::new(identity), keyring: Arc::clone(&self.keyring), uri_keys: Arc::default() }
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Our keys.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The keys to dial a URL, which may have its own password.
    async fn keyring_for(&self, uri: &NodeUri, expected: Role) -> Result<Arc<Keyring>> {
        match &uri.options().password {
            None => Ok(self.keyring.clone()),
            Some(password) => self.uri_keyring(password, UsedFor::Dialling(Role::weaker(self.identity.role, expected))).await,
        }
    }

    async fn uri_keyring(&self, password: &Secret, used_for: UsedFor) -> Result<Arc<Keyring>> {
        let mut known = self.uri_keys.lock().await;
        if let Some(keys) = known.iter().find(|keys| keys.used_for == used_for && keys.password == *password) {
            return Ok(keys.keyring.clone());
        }
        let (base, identity, secret) = (self.keyring.clone(), self.identity.clone(), password.clone());
        let keyring = blocking(move || match used_for {
            UsedFor::Dialling(link_role) => base.with_password(&identity.cluster, link_role, &secret),
            UsedFor::Listening => base.with_common_password(identity.role, &identity.cluster, &secret),
        });
        let keyring = Arc::new(keyring.await?);
        if known.len() == URI_KEYS_MAX {
            known.remove(0);
        }
        known.push(UriKeys { password: password.clone(), used_for, keyring: keyring.clone() });
        Ok(keyring)
    }
}

/// The part of a configuration that the keys are made of.
pub fn keyring_input(config: &Config) -> KeyringInput {
    KeyringInput {
        cluster: config.cluster_name.clone(),
        iterations: config.pbkdf2_iters,
        password: Some(config.password.clone()),
        worker_password: config.worker_password.clone(),
        admin_password: config.admin_password.clone(),
        control_password: config.control_password.clone(),
        control_key: config.control_key,
        node_token: config.node_token.clone(),
        node_tokens: config.node_tokens,
    }
}

/// Makes an incoming connection a trusted link, or closes it. To be run in the task of that connection; whatever happens concerns nobody else.
///
/// # Errors
/// What went wrong, for our log: `invalid_password`, `not_authenticated`, `protocol_error`, `unsupported_version`, `tls_error`, `timeout`,
/// `connection_failed`, or `busy` if the place was needed for a newcomer.
pub async fn accept(incoming: Incoming, party: &Party, permit: Permit) -> Result<Established> {
    let remote = incoming.remote();
    let handshake = timeout(HANDSHAKE_TIMEOUT, listen(incoming, party, &permit));
    let result = tokio::select! {
        biased;
        result = handshake => match result {
            Ok(result) => result,
            Err(_) => Err(Error::new(ErrorCode::Timeout, "no proof in time")),
        },
        () = permit.evicted() => Err(Error::new(ErrorCode::Busy, "too many connections in the handshake, an idle one is closed")),
    };
    result.map_err(|error| error.context(remote))
}

async fn listen(mut incoming: Incoming, party: &Party, permit: &Permit) -> Result<Established> {
    let accept_unbound = incoming.binding() == Binding::Off;
    let keyring = match incoming.password() {
        None => party.keyring.clone(),
        Some(password) => party.uri_keyring(password, UsedFor::Listening).await?,
    };
    if incoming.has_spoken().await {
        permit.heard();
    }
    let mut wire = incoming.into_wire().await?;
    let channel = ListenerChannel { exporter: wire.facts().binding, accept_unbound };
    let nonce = rand::random();
    let mut machine = Listener::new(ListenerSetup { identity: party.identity.clone(), keyring, nonce, channel });
    loop {
        let step = match read_frame(&mut wire).await {
            Ok(frame) => {
                match frame.kind {
                    KIND_CLIENT_PROOF => permit.proof_arrived(),
                    _ => permit.heard(),
                }
                machine.handle(frame.kind, &frame.body)
            }
            Err(ReadFault::Auth(fault)) => Err(fault),
            Err(ReadFault::Io(error)) => return Err(error),
        };
        match step {
            Ok(ListenerStep::Send(frame)) => write_frame(&mut wire, &frame).await?,
            Ok(ListenerStep::Trusted(frame, peer)) => {
                write_frame(&mut wire, &frame).await?;
                return Ok(Established { wire, peer, uri: None });
            }
            Err(fault) => {
                permit.proof_failed();
                if fault.is_wrong_secret() {
                    sleep(WRONG_PROOF_DELAY).await;
                }
                refuse(&mut wire, &fault.refusal()).await;
                return Err(fault.into());
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::new(ErrorCode::Internal, format!("computing keys failed: {error}")))
}

//! The dialling side: one wire, or every address of a list until one accepts us.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use tokio::time::timeout;

use crate::connection::establish::frames::{ReadFault, read_frame, write_frame};
use crate::connection::establish::{Established, HANDSHAKE_TIMEOUT, Party};
use crate::error::{Error, ErrorCode};
use crate::proto::auth::{AuthError, AuthFrame, Dialler, DiallerChannel, DiallerSetup, DiallerStep, Keyring, Peer, Role};
use crate::transport::{self, CertificateCheck, DialOptions, Target, Wire};
use crate::types::{Binding, NodeId, NodeUri};

/// Whom a dialler wants.
#[derive(Clone, Debug)]
pub struct Expect {
    /// The role that must answer.
    pub role: Role,
    /// The node that must answer; any, if `None`. Another one fails its address only, before any proof.
    pub id: Option<NodeId>,
    /// Who is not wanted, although it is one of these.
    pub declines: Option<Declines>,
}

impl Expect {
    /// Whoever has a role.
    pub fn any(role: Role) -> Self {
        Self { role, id: None, declines: None }
    }

    /// One node.
    pub fn node(role: Role, id: NodeId) -> Self {
        Self { id: Some(id), ..Self::any(role) }
    }
}

/// Tells by what a listener says of itself that it is not wanted, before we prove anything: for it there was no link then. What it says is not proved either, so
/// the decision may rest on nothing that a liar could gain by.
#[derive(Clone)]
pub struct Declines(Arc<dyn Fn(&Peer) -> bool + Send + Sync>);

impl Declines {
    /// True for those that are not wanted.
    pub fn new(declines: impl Fn(&Peer) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(declines))
    }
}

impl fmt::Debug for Declines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Declines")
    }
}

/// In which order a list of URLs is tried. The addresses of a name are shuffled in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they stand.
    AsGiven,
    /// At random, so that many diallers with one list spread over it.
    Shuffled,
}

/// One address that did not let us in.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The address, as `tcp:127.0.0.1:15004`, or the URL where it has none.
    pub address: String,
    /// Why.
    pub error: Error,
    /// Somebody there spoke our protocol and said no, or was not who it should be.
    pub was_answered: bool,
    /// The pause that it asked for, at most a minute.
    pub retry_after: Option<Duration>,
}

/// No address let us in.
///
/// As an [`Error`] its code is `no_connections`, except where all that answered gave the same reason and it is `invalid_password` or
/// `unsupported_version`: then it is that one.
#[derive(Clone, Debug)]
pub struct DialError {
    /// What happened at each address, in order.
    pub attempts: Vec<Attempt>,
}

impl DialError {
    /// The code of the whole.
    pub fn code(&self) -> ErrorCode {
        let mut answers = self.attempts.iter().filter(|attempt| attempt.was_answered).map(|attempt| attempt.error.code());
        let telling = [ErrorCode::InvalidPassword, ErrorCode::UnsupportedVersion];
        match answers.next() {
            Some(first) if telling.contains(first) && answers.all(|code| code == first) => first.clone(),
            _ => ErrorCode::NoConnections,
        }
    }

    /// The longest pause that any address asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        self.attempts.iter().filter_map(|attempt| attempt.retry_after).max()
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("there is no address to connect to");
        }
        for (index, Attempt { address, error, .. }) in self.attempts.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {} ({error})", error.code())?;
        }
        Ok(())
    }
}

impl std::error::Error for DialError {}

impl From<DialError> for Error {
    fn from(error: DialError) -> Self {
        Error::new(error.code(), error.to_string())
    }
}

/// Goes through the URLs until one lets us in; of each, through all its addresses.
///
/// # Errors
/// What happened at every address.
pub async fn dial_and_establish(
    uris: &[NodeUri],
    party: &Party,
    expect: &Expect,
    order: Order,
    options: &DialOptions,
) -> Result<Established, DialError> {
    let mut uris: Vec<&NodeUri> = uris.iter().collect();
    if order == Order::Shuffled {
        uris.shuffle(&mut rand::rng());
    }
    let mut attempts = Vec::new();
    for uri in uris {
        let targets = match transport::resolve(uri, options).await {
            Ok(targets) => targets,
            Err(error) => {
                attempts.push(Attempt { address: uri.to_string(), error, was_answered: false, retry_after: None });
                continue;
            }
        };
        for target in targets {
            match dial_target(&target, party, expect, options).await {
                Ok(established) => return Ok(established),
                Err(fault) => attempts.push(fault.at(&target)),
            }
        }
    }
    Err(DialError { attempts })
}

/// Proves ourselves over a wire that is open already, with our own keys.
///
/// # Errors
/// What went wrong; a refusal of the listener with its code.
pub async fn dial(wire: Wire, party: &Party, expect: &Expect) -> Result<Established, Error> {
    let channel = channel(&wire, Binding::Required)?;
    prove(wire, party, party.keyring.clone(), expect, channel).await.map_err(Fault::into_error)
}

async fn dial_target(target: &Target, party: &Party, expect: &Expect, options: &DialOptions) -> Result<Established, Fault> {
    // Keys first: the listener must not wait for them.
    let keyring = party.keyring_for(&target.uri, expect.role).await?;
    let wire = transport::connect(target, options).await?;
    let channel = channel(&wire, target.uri.options().binding.unwrap_or_default())?;
    let mut established = prove(wire, party, keyring, expect, channel).await?;
    established.uri = Some(target.lasting_uri().clone());
    Ok(established)
}

/// Leaving the binding off is a decision of our own configuration, and only where a verified certificate takes its place.
fn channel(wire: &Wire, binding: Binding) -> Result<DiallerChannel, Error> {
    let facts = wire.facts();
    match (facts.binding, binding, facts.certificate) {
        (None, _, _) => Ok(DiallerChannel::Plain),
        (Some(exporter), Binding::Required, _) => Ok(DiallerChannel::Tls(exporter)),
        (Some(_), Binding::Off, CertificateCheck::Verified) => Ok(DiallerChannel::VerifiedWithoutBinding),
        (Some(_), Binding::Off, CertificateCheck::Unchecked) => {
            Err(Error::new(ErrorCode::InvalidConfig, "binding=off needs tls_verify=host (or true) and tls_cacertfile"))
        }
    }
}

async fn prove(wire: Wire, party: &Party, keyring: Arc<Keyring>, expect: &Expect, channel: DiallerChannel) -> Result<Established, Fault> {
    match timeout(HANDSHAKE_TIMEOUT, exchange(wire, party, keyring, expect, channel)).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(ErrorCode::Timeout, "no answer to the handshake").into()),
    }
}

async fn exchange(
    mut wire: Wire,
    party: &Party,
    keyring: Arc<Keyring>,
    expect: &Expect,
    channel: DiallerChannel,
) -> Result<Established, Fault> {
    let setup = DiallerSetup {
        identity: party.identity.clone(),
        keyring,
        expect_role: expect.role,
        expect_id: expect.id.clone(),
        nonce: rand::random(),
        channel,
    };
    let (mut machine, mut frame) = Dialler::start(setup);
    loop {
        let answer = ask(&mut wire, &frame).await?;
        match machine.handle(answer.kind, &answer.body)? {
            DiallerStep::Send(next) => {
                let found = machine.found().filter(|found| expect.declines.as_ref().is_some_and(|declines| declines.0(found)));
                if let Some(found) = found {
                    return Err(
                        Error::new(ErrorCode::NotAllowed, format!("{} is there, which is not wanted a second time", found.id)).into()
                    );
                }
                frame = next;
            }
            DiallerStep::Trusted(peer) => return Ok(Established { wire, peer, uri: None }),
        }
    }
}

/// Sends a frame and reads the answer. A listener that refuses closes its end, perhaps before it has read everything: what it said last tells more than
/// that writing failed.
async fn ask(wire: &mut Wire, frame: &AuthFrame) -> Result<AuthFrame, Fault> {
    let sent = write_frame(wire, frame).await;
    match (read_frame(wire).await, sent) {
        (Ok(frame), _) => Ok(frame),
        (Err(ReadFault::Auth(fault)), _) => Err(fault.into()),
        (Err(ReadFault::Io(read)), Err(_)) if *read.code() == ErrorCode::TlsError => Err(read.into()),
        (Err(ReadFault::Io(_)), Err(write)) => Err(write.into()),
        (Err(ReadFault::Io(read)), Ok(())) => Err(read.into()),
    }
}

/// Why one address failed.
enum Fault {
    Link(Error),
    Auth(AuthError),
}

impl Fault {
    fn into_error(self) -> Error {
        match self {
            Fault::Link(error) => error,
            Fault::Auth(fault) => fault.into(),
        }
    }

    fn at(self, target: &Target) -> Attempt {
        let retry_after = match &self {
            Fault::Auth(AuthError::Refused(refusal)) => refusal.pause(),
            Fault::Link(_) | Fault::Auth(_) => None,
        };
        let was_answered = matches!(self, Fault::Auth(_));
        Attempt { address: target.to_string(), error: self.into_error(), was_answered, retry_after }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Link(error)
    }
}

impl From<AuthError> for Fault {
    fn from(fault: AuthError) -> Self {
        Fault::Auth(fault)
    }
}

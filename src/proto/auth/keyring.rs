//! Everything secret that one process needs for its links, computed once.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::control_key::{self, ControlKey};
use crate::proto::auth::keys::{LinkKeys, NodeToken, SaltedPassword, to_hex};
use crate::proto::auth::{Direction, Role};
use crate::types::{NodeId, Secret};

/// The part of the configuration from which a [`Keyring`] is derived.
#[derive(Clone, Debug, Default)]
pub struct KeyringInput {
    /// Name of the cluster.
    pub cluster: String,
    /// `pbkdf2_iters`.
    pub iterations: u32,
    /// `password`: for every role that has none of its own.
    pub password: Option<Secret>,
    /// `worker_password`.
    pub worker_password: Option<Secret>,
    /// `admin_password`.
    pub admin_password: Option<Secret>,
    /// `control_password`.
    pub control_password: Option<Secret>,
    /// `control_key`: the public half that peers of role `control` must sign with.
    pub control_key: Option<[u8; 32]>,
    /// `node_token` of a worker, instead of the worker password.
    pub node_token: Option<Secret>,
    /// `node_tokens` of a control node: workers prove their own token.
    pub node_tokens: bool,
}

impl KeyringInput {
    fn separate(&self) -> Vec<Role> {
        let own = [
            (Role::Worker, self.worker_password.is_some() || self.node_token.is_some()),
            (Role::Admin, self.admin_password.is_some()),
            (Role::Control, self.control_password.is_some()),
        ];
        own.into_iter().filter(|(_, is_set)| *is_set).map(|(role, _)| role).collect()
    }

    fn secret(&self, role: Role) -> Option<&Secret> {
        let own = match role {
            Role::Worker => &self.worker_password,
            Role::Admin => &self.admin_password,
            Role::Control => &self.control_password,
        };
        own.as_ref().or(self.password.as_ref())
    }
}

/// The keys of one process for each kind of link. Holds no password, is wiped when dropped, shows nothing.
pub struct Keyring {
    iterations: NonZeroU32,
    worker: WorkerKeys,
    admin: Option<LinkKeys>,
    control: Option<LinkKeys>,
    signing: Option<Arc<ControlKey>>,
    required_key: Option<[u8; 32]>,
    /// Roles whose secret is their own, not the common password.
    separate: Vec<Role>,
}

#[derive(Clone)]
enum WorkerKeys {
    None,
    /// One secret for all workers, or the own token of this worker.
    One(LinkKeys),
    /// The master secret of a control node that gives every worker its token.
    Tokens {
        master: SaltedPassword,
        cluster: String,
    },
}

impl Keyring {
    /// Computes what a process of `role` needs: a worker and an admin only the keys of their own links, a control node all of them.
    ///
    /// Blocks for as long as PBKDF2 takes, up to three times: call it on a blocking thread.
    ///
    /// # Errors
    /// `invalid_config` if there is no secret for the own role, no iteration, a malformed `node_token`, or the `control_key` of another secret.
    pub fn derive(role: Role, input: &KeyringInput) -> Result<Self> {
        let invalid = |message: String| Err(Error::new(ErrorCode::InvalidConfig, message));
        let Some(iterations) = NonZeroU32::new(input.iterations) else {
            return invalid("pbkdf2_iters must be at least 1".to_owned());
        };
        let salted = |secret_role: Role| {
            let password = input.secret(secret_role)?;
            Some(SaltedPassword::derive(password, &input.cluster, secret_role, iterations))
        };
        let mut keyring = Self {
            iterations,
            worker: WorkerKeys::None,
            admin: None,
            control: None,
            signing: None,
            required_key: input.control_key,
            separate: input.separate(),
        };
        match role {
            Role::Worker => {
                keyring.worker = match &input.node_token {
                    Some(token) => WorkerKeys::One(NodeToken::parse(token)?.link_keys()),
                    None => salted(Role::Worker).map_or(WorkerKeys::None, |salted| WorkerKeys::One(salted.link_keys())),
                }
            }
            Role::Admin => keyring.admin = salted(Role::Admin).map(|salted| salted.link_keys()),
            Role::Control => {
                keyring.worker = match salted(Role::Worker) {
                    None => WorkerKeys::None,
                    Some(master) if input.node_tokens => WorkerKeys::Tokens { master, cluster: input.cluster.clone() },
                    Some(salted) => WorkerKeys::One(salted.link_keys()),
                };
                keyring.admin = salted(Role::Admin).map(|salted| salted.link_keys());
                if let Some(salted) = salted(Role::Control) {
                    keyring.control = Some(salted.link_keys());
                    keyring.signing = Some(Arc::new(ControlKey::derive(&salted)));
                }
            }
        }
        let usable = match role {
            Role::Worker => !matches!(keyring.worker, WorkerKeys::None),
            Role::Admin => keyring.admin.is_some(),
            Role::Control => keyring.control.is_some(),
        };
        if !usable {
            return invalid(format!("no secret for role {role}: set password or {role}_password"));
        }
        if let (Some(required), Some(own)) = (keyring.required_key, keyring.control_public())
            && required != own
        {
            return invalid(format!("control_key is not the public half of this node's control secret, which is {}", to_hex(&own)));
        }
        Ok(keyring)
    }

    /// The keys for links of `link_role` to an address that has its own password, and for no others. Blocks for one PBKDF2.
    #[must_use]
    pub fn with_password(&self, cluster: &str, link_role: Role, password: &Secret) -> Self {
        let keys = SaltedPassword::derive(password, cluster, link_role, self.iterations).link_keys();
        let mut keyring = Self {
            iterations: self.iterations,
            worker: WorkerKeys::None,
            admin: None,
            control: None,
            signing: self.signing.clone(),
            required_key: self.required_key,
            separate: Role::ALL.to_vec(),
        };
        match link_role {
            Role::Worker => keyring.worker = WorkerKeys::One(keys),
            Role::Admin => keyring.admin = Some(keys),
            Role::Control => keyring.control = Some(keys),
        }
        keyring
    }

    /// The keys of a listener that has its own password: it stands in the place of the common `password`; secrets of single roles stay. Blocks for up to
    /// three times PBKDF2.
    #[must_use]
    pub fn with_common_password(&self, own_role: Role, cluster: &str, password: &Secret) -> Self {
        let salted = |link_role: Role| {
            let is_used = own_role.accepts().iter().any(|role| Role::weaker(own_role, *role) == link_role);
            let is_common = !self.separate.contains(&link_role);
            (is_used && is_common).then(|| SaltedPassword::derive(password, cluster, link_role, self.iterations))
        };
        let worker = match (salted(Role::Worker), &self.worker) {
            (None, known) => known.clone(),
            (Some(master), WorkerKeys::Tokens { cluster, .. }) => WorkerKeys::Tokens { master, cluster: cluster.clone() },
            (Some(salted), WorkerKeys::None | WorkerKeys::One(_)) => WorkerKeys::One(salted.link_keys()),
        };
        Self {
            iterations: self.iterations,
            worker,
            admin: salted(Role::Admin).map(|salted| salted.link_keys()).or_else(|| self.admin.clone()),
            control: salted(Role::Control).map(|salted| salted.link_keys()).or_else(|| self.control.clone()),
            signing: self.signing.clone(),
            required_key: self.required_key,
            separate: self.separate.clone(),
        }
    }

    /// Iterations that went into the keys.
    pub fn iterations(&self) -> u32 {
        self.iterations.get()
    }

    /// The keys of a link whose weaker role is `link_role`; `worker` is the id of its worker end, which matters only where workers have tokens.
    pub fn keys_for(&self, link_role: Role, worker: &NodeId) -> Option<LinkKeys> {
        match link_role {
            Role::Worker => match &self.worker {
                WorkerKeys::None => None,
                WorkerKeys::One(keys) => Some(keys.clone()),
                WorkerKeys::Tokens { master, cluster } => Some(NodeToken::issue(master, cluster, worker).link_keys()),
            },
            Role::Admin => self.admin.clone(),
            Role::Control => self.control.clone(),
        }
    }

    /// The token to configure on worker `id`; `None` unless this is a control node with `node_tokens`.
    pub fn node_token(&self, id: &NodeId) -> Option<NodeToken> {
        match &self.worker {
            WorkerKeys::Tokens { master, cluster } => Some(NodeToken::issue(master, cluster, id)),
            WorkerKeys::None | WorkerKeys::One(_) => None,
        }
    }

    /// The public half of the control key, for `control_key` of workers and admins; `None` unless this is a control node.
    pub fn control_public(&self) -> Option<[u8; 32]> {
        self.signing.as_deref().map(ControlKey::public)
    }

    /// Signs, if this is a control node and acts as one; its own worker does not.
    pub(super) fn sign(&self, own_role: Role, direction: Direction, digest: &[u8; 32]) -> Option<[u8; 64]> {
        let key = self.signing.as_ref().filter(|_| own_role == Role::Control)?;
        Some(key.sign(direction, digest))
    }

    /// Whether a peer of `role` that presents this signature satisfies `control_key`.
    pub(super) fn accepts_signature(&self, role: Role, direction: Direction, digest: &[u8; 32], signature: Option<&[u8; 64]>) -> bool {
        match (role, &self.required_key) {
            (Role::Control, Some(key)) => signature.is_some_and(|signature| control_key::verify(key, direction, digest, signature)),
            (Role::Control, None) | (Role::Worker | Role::Admin, _) => true,
        }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

//! The signature by which a control node shows that it is one.
//!
//! A worker knows the secret of its own links, so a stolen worker could play a control node towards other workers. The key here is derived from the
//! control secret, which workers do not have; they may be configured with its public half (`control_key`) and then require a signature of the
//! transcript from every peer of role `control`.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroize;

use crate::proto::auth::Direction;
use crate::proto::auth::keys::{SaltedPassword, prefix};

const SEED_LABEL: &[u8] = b"nkcluster control key v1";
const SIGN_LABEL: &[u8] = b"nkcluster control signature v1";

/// Key pair of the control side (Ed25519), the same in every control node.
pub struct ControlKey {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl ControlKey {
    /// The key pair that belongs to a stretched control password.
    pub fn derive(control: &SaltedPassword) -> Self {
        let mut seed = control.derive_secret(SEED_LABEL, &[]);
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed of 32 bytes is an Ed25519 key");
        seed.zeroize();
        let public = pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes");
        Self { pair, public }
    }

    /// The public half, as it stands (in hex) under `control_key` in the configuration of workers and admins.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Signs the digest of a transcript for one direction.
    pub fn sign(&self, direction: Direction, digest: &[u8; 32]) -> [u8; 64] {
        self.pair.sign(&signed_bytes(direction, digest)).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }
}

impl fmt::Debug for ControlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ControlKey(***)")
    }
}

/// Checks a signature of the peer against the configured public half.
#[must_use]
pub(super) fn verify(public: &[u8; 32], direction: Direction, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(&signed_bytes(direction, digest), signature).is_ok()
}

fn signed_bytes(direction: Direction, digest: &[u8; 32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    for part in [SIGN_LABEL, direction.label(), digest] {
        bytes.extend_from_slice(&prefix(part));
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::auth::Role;
    use crate::types::Secret;

    #[test]
    fn signature_holds_for_its_key_direction_and_digest_only() {
        let salted =
            |password: &str| SaltedPassword::derive(&Secret::from(password.to_owned()), "c", Role::Control, std::num::NonZeroU32::MIN);
        let key = ControlKey::derive(&salted("one"));
        let other = ControlKey::derive(&salted("two"));
        let signature = key.sign(Direction::ToListener, &[7; 32]);
        assert!(verify(&key.public(), Direction::ToListener, &[7; 32], &signature));
        assert!(!verify(&key.public(), Direction::ToDialler, &[7; 32], &signature));
        assert!(!verify(&key.public(), Direction::ToListener, &[8; 32], &signature));
        assert!(!verify(&other.public(), Direction::ToListener, &[7; 32], &signature));
        assert_eq!(ControlKey::derive(&salted("one")).public(), key.public());
    }
}

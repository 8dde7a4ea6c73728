//! Keys of one link, made of a password that is known to both sides.
//!
//! `SaltedPassword` is PBKDF2-HMAC-SHA-256 over a salt that only the configuration determines (cluster and role); it is slow on purpose and computed once.
//! From it come the two keys of SCRAM (RFC 5802 §3) by one HMAC each. A [`NodeToken`] stands in the place of the salted password of one worker.

use std::fmt;
use std::num::NonZeroU32;

use hmac::{Hmac, KeyInit, Mac};
use pbkdf2::{Algorithm, Params, pbkdf2_hmac, pbkdf2_hmac_with_params};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::Role;
use crate::types::{NodeId, Secret};

const SALT_LABEL: &[u8] = b"nkcluster salt v1";
const TOKEN_LABEL: &[u8] = b"nkcluster node token v1";

/// A password after PBKDF2: all that a process keeps of it. Wiped when dropped, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SaltedPassword([u8; 32]);

impl SaltedPassword {
    /// Stretches `password` for the links of `secret_role` in `cluster`. Takes some tenths of a second with the default of 600 000 iterations: not for the reactor.
    pub fn derive(password: &Secret, cluster: &str, secret_role: Role, iterations: NonZeroU32) -> Self {
        let salt = salt(cluster, secret_role);
        Self::stretch(password.expose().as_bytes(), &salt, iterations)
    }

    fn stretch(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Self {
        let mut salted = Self([0; 32]);
        if iterations.get() == Params::RECOMMENDED_ROUNDS {
            // Our default. This function is compiled in its own crate, which is optimised in every profile; the generic one below with ours.
            pbkdf2_hmac_with_params(password, salt, Algorithm::Pbkdf2Sha256, Params::RECOMMENDED, &mut salted.0);
        } else {
            pbkdf2_hmac::<Sha256>(password, salt, iterations.get(), &mut salted.0);
        }
        salted
    }

    /// The keys of a link.
    pub fn link_keys(&self) -> LinkKeys {
        LinkKeys::from_salted(&self.0)
    }

    /// HMAC of `parts`, each with its length in front, under `label`: the way to any other secret that is derived from this one.
    pub(super) fn derive_secret(&self, label: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        for part in std::iter::once(&label).chain(parts) {
            mac.update(&prefix(part));
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for SaltedPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaltedPassword(***)")
    }
}

/// The secret of one worker, which makes its id unforgeable: HMAC of the stretched worker password over cluster and id.
///
/// A control node that is configured for tokens computes them as needed; a worker has only its own, as 64 hex digits in its configuration.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NodeToken([u8; 32]);

impl NodeToken {
    /// The token of worker `id`.
    pub fn issue(worker: &SaltedPassword, cluster: &str, id: &NodeId) -> Self {
        Self(worker.derive_secret(TOKEN_LABEL, &[cluster.as_bytes(), id.as_str().as_bytes()]))
    }

    /// Reads the 64 hex digits of a configuration.
    ///
    /// # Errors
    /// `invalid_config` if they are not; the message does not repeat them.
    pub fn parse(text: &Secret) -> Result<Self> {
        parse_hex(text.expose().trim())
            .map(Self)
            .ok_or_else(|| Error::new(ErrorCode::InvalidConfig, "node_token must be 64 hexadecimal digits"))
    }

    /// The 64 hex digits for the configuration of the worker.
    pub fn to_hex(&self) -> Secret {
        Secret::from(to_hex(&self.0))
    }

    /// The keys of the worker's links.
    pub fn link_keys(&self) -> LinkKeys {
        LinkKeys::from_salted(&self.0)
    }
}

impl fmt::Debug for NodeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeToken(***)")
    }
}

/// The keys of RFC 5802 for one link. Both sides hold all of them, since both know the password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct LinkKeys {
    client_key: [u8; 32],
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

impl LinkKeys {
    fn from_salted(salted: &[u8; 32]) -> Self {
        let client_key = hmac(salted, b"Client Key");
        Self { client_key, stored_key: Sha256::digest(client_key).into(), server_key: hmac(salted, b"Server Key") }
    }

    /// Keys that match nothing a peer can know: they let the path of an unknown secret take the steps of a known one.
    pub(super) fn unmatched() -> Self {
        Self::from_salted(&[0; 32])
    }

    /// `ClientProof = ClientKey XOR HMAC(StoredKey, message)`, made by the dialler.
    pub fn client_proof(&self, message: &[u8]) -> [u8; 32] {
        xor(self.client_key, hmac(&self.stored_key, message))
    }

    /// Checks a dialler's proof, in constant time.
    #[must_use]
    pub fn verify_client(&self, message: &[u8], proof: &[u8; 32]) -> bool {
        let mut client_key = xor(*proof, hmac(&self.stored_key, message));
        let stored: [u8; 32] = Sha256::digest(client_key).into();
        client_key.zeroize();
        stored.ct_eq(&self.stored_key).into()
    }

    /// `ServerSignature = HMAC(ServerKey, message)`, made by the listener.
    pub fn server_proof(&self, message: &[u8]) -> [u8; 32] {
        hmac(&self.server_key, message)
    }

    /// Checks a listener's proof, in constant time.
    #[must_use]
    pub fn verify_server(&self, message: &[u8], proof: &[u8; 32]) -> bool {
        self.server_proof(message).ct_eq(proof).into()
    }
}

impl fmt::Debug for LinkKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKeys(***)")
    }
}

/// Length of `bytes` as it stands in front of them wherever several fields are hashed together.
pub(super) fn prefix(bytes: &[u8]) -> [u8; 8] {
    (bytes.len() as u64).to_be_bytes()
}

/// 32 bytes out of 64 hex digits.
pub(super) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

/// 64 hex digits of 32 bytes.
pub(super) fn to_hex(bytes: &[u8; 32]) -> String {
    use fmt::Write as _;
    // Of full size from the start, so that no half of a secret stays behind in a smaller allocation.
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn salt(cluster: &str, role: Role) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [SALT_LABEL, cluster.as_bytes(), role.name().as_bytes()] {
        hash.update(prefix(part));
        hash.update(part);
    }
    hash.finalize().into()
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = keyed(key);
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn xor(mut a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    for (a, b) in a.iter_mut().zip(b) {
        *a ^= b;
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 7677 §3: user `user`, password `pencil`, 4096 iterations.
    #[test]
    fn arithmetic_is_that_of_rfc_7677() {
        // The base64 strings of the RFC, decoded.
        let salt = [0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81];
        let keys = SaltedPassword::stretch(b"pencil", &salt, NonZeroU32::new(4096).expect("not zero")).link_keys();
        let message = b"n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let proof = keys.client_proof(message);
        assert_eq!(base64(&proof), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert_eq!(base64(&keys.server_proof(message)), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(keys.verify_client(message, &proof));
        assert_eq!(base64(&salt), "W22ZaJ0SNY7soEsUEjb6gQ==");
    }

    #[test]
    fn salt_depends_on_cluster_and_role_alone() {
        assert_ne!(salt("a", Role::Worker), salt("b", Role::Worker));
        assert_ne!(salt("a", Role::Worker), salt("a", Role::Control));
        assert_ne!(salt("aw", Role::Worker), salt("a", Role::Worker));
    }

    #[test]
    fn token_of_one_node_is_not_that_of_another() {
        let worker = SaltedPassword::stretch(b"x", b"y", NonZeroU32::MIN);
        let id = |name: &str| NodeId::new(name).expect("valid");
        let token = NodeToken::issue(&worker, "c", &id("w1"));
        assert_ne!(token.0, NodeToken::issue(&worker, "c", &id("w2")).0);
        assert_ne!(token.0, NodeToken::issue(&worker, "d", &id("w1")).0);
        assert_eq!(NodeToken::parse(&token.to_hex()).expect("parses").0, token.0);
    }

    #[test]
    fn malformed_token_is_refused_without_being_shown() {
        for text in ["", "abc", &"g".repeat(64), &"é".repeat(32)] {
            let error = NodeToken::parse(&Secret::from(text.to_owned())).expect_err("refused");
            assert_eq!(error.code(), &ErrorCode::InvalidConfig);
            assert_eq!(error.message(), "node_token must be 64 hexadecimal digits");
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        let salted = SaltedPassword([0xab; 32]);
        assert_eq!(format!("{salted:?} {:?}", salted.link_keys()), "SaltedPassword(***) LinkKeys(***)");
    }

    proptest! {
        #[test]
        fn only_the_exact_proof_of_the_exact_message_holds(salted: [u8; 32], message: Vec<u8>, at in 0usize..32, bit in 0u8..8) {
            let keys = LinkKeys::from_salted(&salted);
            let (mut client, mut server) = (keys.client_proof(&message), keys.server_proof(&message));
            prop_assert!(keys.verify_client(&message, &client) && keys.verify_server(&message, &server));
            let longer = [message.as_slice(), b"x"].concat();
            prop_assert!(!keys.verify_client(&longer, &client) && !keys.verify_server(&longer, &server));
            client[at] ^= 1 << bit;
            server[at] ^= 1 << bit;
            prop_assert!(!keys.verify_client(&message, &client) && !keys.verify_server(&message, &server));
        }

        #[test]
        fn hex_round_trips(bytes: [u8; 32]) {
            prop_assert_eq!(parse_hex(&to_hex(&bytes)), Some(bytes));
        }
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..4 {
                let digit = char::from(DIGITS[(group >> (18 - 6 * place) & 63) as usize]);
                text.push(if place > chunk.len() { '=' } else { digit });
            }
        }
        text
    }
}

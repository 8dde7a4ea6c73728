//! What both sides prove: everything that was said, in order, and the channel over which it was said.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::proto::auth::keys::prefix;

const LABEL: &[u8] = b"nkcluster handshake v1";

/// How the handshake is tied to the channel under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// The transport has no encryption (tcp, ws, memory): only the start of the link is authenticated.
    None,
    /// The exporter of the TLS connection (RFC 9266) is part of the proofs.
    TlsExporter,
    /// The dialler verified the certificate of a balancer where TLS ends; by configuration of both sides only.
    Off,
}

impl Binding {
    /// Name on the wire and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Binding::None => "none",
            Binding::TlsExporter => "tls_exporter",
            Binding::Off => "off",
        }
    }
}

/// Whose proof, so that neither can serve as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Made by the dialler.
    ToListener,
    /// Made by the listener.
    ToDialler,
}

impl Direction {
    pub(super) fn label(self) -> &'static [u8] {
        match self {
            Direction::ToListener => b"dialler to listener",
            Direction::ToDialler => b"listener to dialler",
        }
    }
}

/// Running SHA-256 over a label and the raw bytes of the messages, each with kind and length in front.
///
/// The dialler's digest covers messages 1 and 2, which hold no proofs; the listener's also covers message 3 as it came in, so that what it answers to
/// cannot be exchanged under it.
#[derive(Clone)]
pub struct Transcript {
    hash: Sha256,
}

impl Transcript {
    /// Nothing said yet.
    pub fn new() -> Self {
        let mut transcript = Self { hash: Sha256::new() };
        transcript.part(LABEL);
        transcript
    }

    /// Adds a message as it stood on the wire.
    pub fn add(&mut self, kind: u8, message: &[u8]) {
        self.hash.update([kind]);
        self.part(message);
    }

    /// What is proved in `direction` over a channel with this binding; `exporter` is empty unless the binding is [`Binding::TlsExporter`].
    pub fn digest(&self, direction: Direction, binding: Binding, exporter: &[u8]) -> [u8; 32] {
        let mut closed = self.clone();
        // No message has kind 0, so the end cannot be read as one more message.
        closed.hash.update([0]);
        closed.part(direction.label());
        closed.part(binding.name().as_bytes());
        closed.part(exporter);
        closed.hash.finalize().into()
    }

    fn part(&mut self, bytes: &[u8]) {
        self.hash.update(prefix(bytes));
        self.hash.update(bytes);
    }
}

impl Default for Transcript {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(messages: &[(u8, Vec<u8>)], direction: Direction, binding: Binding, exporter: &[u8]) -> [u8; 32] {
        let mut transcript = Transcript::new();
        for (kind, message) in messages {
            transcript.add(*kind, message);
        }
        transcript.digest(direction, binding, exporter)
    }

    /// Any change here is another wire version.
    #[test]
    fn digest_of_version_1_is_golden() {
        let bytes = digest(&[(1, b"one".to_vec()), (2, b"two".to_vec())], Direction::ToListener, Binding::TlsExporter, &[9; 32]);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "b08b4013c25b1cbc391abf16e5291e74116d73ff413d4ca97eeb496c93b1fd8c");
    }

    #[test]
    fn channel_and_direction_are_part_of_the_digest() {
        let said = [(1, b"m".to_vec())];
        let mut digests = vec![
            digest(&said, Direction::ToListener, Binding::None, &[]),
            digest(&said, Direction::ToDialler, Binding::None, &[]),
            digest(&said, Direction::ToListener, Binding::Off, &[]),
            digest(&said, Direction::ToListener, Binding::TlsExporter, &[1; 32]),
            digest(&said, Direction::ToListener, Binding::TlsExporter, &[2; 32]),
        ];
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), 5);
    }

    proptest! {
        #[test]
        fn different_messages_have_different_digests(
            a in prop::collection::vec((1u8..6, prop::collection::vec(any::<u8>(), 0..8)), 0..4),
            b in prop::collection::vec((1u8..6, prop::collection::vec(any::<u8>(), 0..8)), 0..4),
        ) {
            let of = |messages: &[(u8, Vec<u8>)]| digest(messages, Direction::ToDialler, Binding::None, &[]);
            prop_assert_eq!(of(&a) == of(&b), a == b);
        }
    }
}

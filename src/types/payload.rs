//! The opaque body of a request, reply, command or event.
//!
//! A class encodes its value once, as MessagePack with named fields; everything between the two ends carries the bytes untouched. Only edges that speak JSON, the command
//! line and HTTP, look inside, by [`Payload::from_json`] and [`Payload::to_json`].
//!
//! The bytes come from peers, so reading them is bounded three ways: [`Payload::BYTES_MAX`] of them, [`Payload::DEPTH_MAX`] levels, and [`Payload::JSON_VALUES_MAX`] values
//! once they become JSON, which takes many times more memory than MessagePack. A length that a peer claims never reserves memory.

mod json;

use std::fmt;
use std::io::ErrorKind;

use bytes::Bytes;
use serde::de::{self, DeserializeOwned, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorCode, Result};

/// MessagePack that only its class understands. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Payload(Bytes);

impl Payload {
    /// Most bytes of one payload; larger things travel as streams.
    pub const BYTES_MAX: usize = 16 * 1024 * 1024;

    /// Deepest nesting of arrays and maps.
    pub const DEPTH_MAX: usize = 64;

    /// Most values, keys and single bytes of byte strings included, that [`to_json`](Self::to_json) produces.
    pub const JSON_VALUES_MAX: usize = 1_000_000;

    /// Encodes a value, structs with the names of their fields so that either side may add some.
    ///
    /// `invalid_payload` if the value cannot be encoded, `payload_too_large` above [`BYTES_MAX`](Self::BYTES_MAX).
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let bytes = rmp_serde::to_vec_named(value).map_err(invalid)?;
        Self(bytes.into()).bounded()
    }

    /// Decodes the value; `invalid_payload` if it is another one, is nested too deep, or has bytes behind it.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        let mut decoder = rmp_serde::Deserializer::from_read_ref(&self.0[..]);
        decoder.set_max_depth(Self::DEPTH_MAX);
        let value = T::deserialize(&mut decoder).map_err(invalid)?;
        end(decoder)?;
        Ok(value)
    }

    /// The MessagePack of a JSON text; `invalid_payload` if it is not JSON or is nested too deep.
    pub fn from_json(text: &str) -> Result<Self> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let payload = Self::transcode(&mut reader).map_err(invalid)?;
        reader.end().map_err(invalid)?;
        payload.decode::<IgnoredAny>()?;
        payload.bounded()
    }

    /// The payload as JSON: byte strings become arrays of numbers, integer keys become strings, numbers that JSON has not become null.
    ///
    /// `invalid_payload` if it is no MessagePack, has keys or extensions that JSON cannot show, or too many values.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        let mut decoder = rmp_serde::Deserializer::from_read_ref(&self.0[..]);
        decoder.set_max_depth(Self::DEPTH_MAX);
        let value = json::read(&mut decoder, Self::JSON_VALUES_MAX).map_err(invalid)?;
        end(decoder)?;
        Ok(value)
    }

    /// Takes bytes from the wire as they are; whoever decodes them finds out whether they are MessagePack.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, without copying.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// `true` without any bytes, which is no MessagePack: nothing was ever encoded here.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The payload that says nothing: MessagePack's `nil`, JSON's `null`, Rust's `()`.
    pub fn nil() -> Self {
        Self(Bytes::from_static(&[0xc0]))
    }

    fn transcode<'de, D: Deserializer<'de>>(value: D) -> Result<Self, rmp_serde::encode::Error> {
        let mut bytes = Vec::new();
        serde_transcode::transcode(value, &mut rmp_serde::Serializer::new(&mut bytes))?;
        Ok(Self(bytes.into()))
    }

    fn bounded(self) -> Result<Self> {
        if self.len() <= Self::BYTES_MAX {
            return Ok(self);
        }
        let (len, max) = (self.len(), Self::BYTES_MAX);
        Err(Error::new(ErrorCode::PayloadTooLarge, format!("a payload of {len} bytes, allowed are {max}; send a stream")))
    }
}

type Decoder<'de> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'de, [u8]>>;

/// Refuses bytes behind the value. The decoder does not tell its position, but asked for one byte more it says that there is none.
fn end(mut decoder: Decoder<'_>) -> Result<()> {
    use rmp_serde::decode::Error::InvalidMarkerRead;
    match bool::deserialize(&mut decoder) {
        Err(InvalidMarkerRead(error)) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        _ => Err(invalid("bytes follow the value")),
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self::nil()
    }
}

impl fmt::Debug for Payload {
    /// Only the size: payloads may be large and may hold what must not stand in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let value = self.to_json().map_err(serde::ser::Error::custom)?;
            value.serialize(serializer)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Body;

        impl Visitor<'_> for Body {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a payload as bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Payload, E> {
                let payload = Payload(Bytes::copy_from_slice(bytes));
                payload.bounded().map_err(E::custom)
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Payload, E> {
                Payload(bytes.into()).bounded().map_err(E::custom)
            }
        }

        if !deserializer.is_human_readable() {
            return deserializer.deserialize_byte_buf(Body);
        }
        let payload = Self::transcode(deserializer).map_err(de::Error::custom)?;
        payload.decode::<IgnoredAny>().map_err(de::Error::custom)?;
        payload.bounded().map_err(de::Error::custom)
    }
}

fn invalid(reason: impl fmt::Display) -> Error {
    Error::new(ErrorCode::InvalidPayload, reason.to_string())
}

#[cfg(test)]
mod tests;

//! Names on a local disk are bytes, paths of a remote are text; the way from one to the other and back.
//!
//! Bytes that are no UTF-8 are written as rclone writes them: `‛` and two hexadecimal digits. A `‛` of the name itself is doubled. On the way back
//! only bytes from 0x80 on are taken for quoted, so that no text of a peer becomes `/` or a NUL.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use crate::path::EntryPath;

/// What begins a quoted byte.
const QUOTE: char = '‛';

/// The text of one name.
pub(super) fn to_text(name: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(name) {
        Ok(text) if !text.contains(QUOTE) => return Cow::Borrowed(text),
        _ => {}
    }
    let mut text = String::with_capacity(name.len() + 16);
    for chunk in name.utf8_chunks() {
        for char in chunk.valid().chars() {
            text.push(char);
            if char == QUOTE {
                text.push(QUOTE);
            }
        }
        for byte in chunk.invalid() {
            text.push(QUOTE);
            text.push_str(&format!("{byte:02X}"));
        }
    }
    Cow::Owned(text)
}

/// The bytes of a path below the root; `.` for the root itself.
pub(super) fn to_native(path: &EntryPath) -> Cow<'_, OsStr> {
    if path.is_root() { Cow::Borrowed(OsStr::new(".")) } else { name_to_native(path.as_str()) }
}

/// The bytes of a name, or of several with `/` between.
pub(super) fn name_to_native(text: &str) -> Cow<'_, OsStr> {
    if !text.contains(QUOTE) {
        return Cow::Borrowed(OsStr::new(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(QUOTE) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let behind = &rest[at + QUOTE.len_utf8()..];
        bytes_of_quote(&mut bytes, behind, &mut rest);
    }
    bytes.extend_from_slice(rest.as_bytes());
    Cow::Owned(OsString::from_vec(bytes))
}

/// Takes what follows a quote; `rest` is what remains then.
fn bytes_of_quote<'a>(bytes: &mut Vec<u8>, behind: &'a str, rest: &mut &'a str) {
    if let Some(after) = behind.strip_prefix(QUOTE) {
        bytes.extend_from_slice(QUOTE.encode_utf8(&mut [0; 4]).as_bytes());
        *rest = after;
        return;
    }
    let is_upper_hex = |digits: &&str| digits.bytes().all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(&digit));
    let byte = behind.get(..2).filter(is_upper_hex).and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|byte| *byte >= 0x80);
    match byte {
        Some(byte) => {
            bytes.push(byte);
            *rest = &behind[2..];
        }
        // A lone quote is itself.
        None => {
            bytes.extend_from_slice(QUOTE.encode_utf8(&mut [0; 4]).as_bytes());
            *rest = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_are_quoted_as_rclone_quotes_them() {
        assert_eq!(to_text(b"gro\xdf"), "gro‛DF");
        assert_eq!(to_text("a‛b".as_bytes()), "a‛‛b");
        assert!(matches!(to_text("plain ß".as_bytes()), Cow::Borrowed("plain ß")));
    }

    #[test]
    fn no_text_of_a_peer_becomes_a_separator() {
        for text in ["‛2F", "‛00", "‛2E‛2E", "‛", "‛d", "‛df"] {
            assert_eq!(name_to_native(text).as_bytes(), text.as_bytes(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_returns(name in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xe2), Just(0x80), Just(0x9b), Just(b'D')], 0..40)) {
            let text = to_text(&name).into_owned();
            let native = name_to_native(&text);
            prop_assert_eq!(native.as_bytes(), &name[..]);
        }

        #[test]
        fn a_text_never_gains_a_separator(text in "[‛0-9A-Fa-f./]{0,30}") {
            let slashes = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'/').count();
            prop_assert_eq!(slashes(name_to_native(&text).as_bytes()), slashes(text.as_bytes()));
        }
    }
}

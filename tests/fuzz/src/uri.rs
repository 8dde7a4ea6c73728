//! URLs and lists of them, as they come from operators, files and peers.

use nkcluster::types::NodeUri;

use crate::input::text;
use crate::seeded::seeded_crash;

/// Stands in the text for byte 1: a password that must not be seen again.
const CANARY: &str = "p4ssw0rdCanary";

/// A list is read or refused. What was read, its passwords taken away, returns from its own text, alone and as a list, and from what peers see. A password is in
/// no text that we make, whether it was understood or not.
pub fn uri(data: &[u8]) {
    let text = text(data).replace('\u{1}', CANARY);
    let has_password = text.contains(&format!(";password={CANARY}")) && text.matches(CANARY).count() == 1;
    let uris = match NodeUri::parse_list(&text) {
        Ok(uris) => uris,
        Err(error) => {
            assert!(!has_password || !error.message().contains(CANARY), "the error repeats a password: {error}");
            return;
        }
    };
    assert!(uris.len() <= NodeUri::LIST_MAX);
    let mut shown = Vec::new();
    for uri in &uris {
        let knows_password = uri.options().password.as_ref().is_some_and(|password| password.expose() == CANARY);
        for printed in [uri.to_string(), format!("{uri:?}"), rmp_text(uri)] {
            assert!(!has_password || !knows_password || !printed.contains(CANARY), "the password is shown: {printed}");
        }
        let public = uri.clone().without_secrets();
        let printed = public.to_string();
        // Quotes make a text longer than what was read.
        if printed.len() <= NodeUri::BYTES_MAX {
            assert_eq!(printed.parse().as_ref(), Ok(&public), "{printed}");
            let seen_by_peer: NodeUri = rmp_serde::from_slice(&encoded(uri)).unwrap_or_else(|error| panic!("{printed}: {error}"));
            assert_eq!(seen_by_peer, public);
        }
        shown.push(printed);
        // What the layers above ask has an answer for every URL.
        let _ = (uri.effective_port(), uri.is_loopback(), uri.asks_naptr(), uri.asks_srv(), uri.path(), uri.host().bind_ip());
    }
    let list = shown.join(", ");
    if list.len() <= NodeUri::BYTES_MAX {
        let public: Vec<NodeUri> = uris.iter().map(|uri| uri.clone().without_secrets()).collect();
        assert_eq!(NodeUri::parse_list(&list), Ok(public), "{list}");
    }
    let options = uris.first().map(NodeUri::options);
    seeded_crash!(
        "uri",
        options.is_some_and(|options| options.sctp_out_streams > Some(1)),
        options.is_some_and(|options| options.sctp_in_streams > Some(2)),
        options.is_some_and(|options| options.tcp_listeners > Some(3)),
    );
}

fn encoded(uri: &NodeUri) -> Vec<u8> {
    rmp_serde::to_vec_named(uri).unwrap_or_else(|error| panic!("a URL always encodes: {error}"))
}

fn rmp_text(uri: &NodeUri) -> String {
    String::from_utf8_lossy(&encoded(uri)).into_owned()
}

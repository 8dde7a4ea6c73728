//! The first inputs: one honest example of each thing, from which the fuzzers start.
//!
//! They are made by the library itself, so a new version of the wire makes new ones; what the fuzzers found later lies beside them in the corpus.

use bytes::BytesMut;
use nkcluster::proto::auth::{Dialler, DiallerChannel, DiallerSetup, Identity, Keyring, KeyringInput, Refusal, Role, VERSIONS};
use nkcluster::proto::frame::{self, Kind};
use nkcluster::types::{Incarnation, Meta, NodeId, Payload};

/// Inputs of each target: target, name, content.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut all = Vec::new();
    for (name, text) in URIS {
        all.push(("uri", *name, text.as_bytes().to_vec()));
    }
    for (name, text) in LABELS {
        all.push(("labels", *name, text.as_bytes().to_vec()));
    }
    all.push(("labels", "from-a-peer", labels_of_a_peer()));
    for (name, text) in SELECTORS {
        all.push(("selector", *name, text.as_bytes().to_vec()));
    }
    for (name, text) in CONFIGS {
        all.push(("config", *name, text.as_bytes().to_vec()));
    }
    for (name, json) in JSONS {
        all.push(("payload", *name, [b"\0", json.as_bytes()].concat()));
        let packed = Payload::from_json(json).map(|payload| payload.as_bytes().to_vec()).unwrap_or_default();
        all.push(("payload", PACKED[JSONS.iter().position(|(other, _)| other == name).unwrap_or(0)], [b"\x01", &packed[..]].concat()));
    }
    all.push(("payload", "packed-bytes", b"\x01\x82\xa1b\xc4\x03abc\x05\xca\x3f\x80\0\0".to_vec()));
    let hello = client_first();
    all.push(("before_trust", "hello", hello.clone()));
    all.push(("before_trust", "hello-and-wrong-proof", [&hello[..], &wrong_proof()].concat()));
    all.push(("before_trust", "hello-and-ping", [&hello[..], &frame_of(Kind::Ping, &[0; 28])].concat()));
    all.push(("before_trust", "refusal", refusal()));
    all.push(("before_trust", "too-large", vec![0xff; 8]));
    all.push(("before_trust", "needs-trust", frame_of(Kind::Ping, &[0; 28])));
    for (name, bytes) in HANDSHAKES {
        all.push(("handshake", *name, bytes.to_vec()));
    }
    for (name, way, first, second) in INTERMEDIARIES {
        let length = u16::try_from(first.len()).expect("they are short");
        all.push(("intermediary", *name, [&[*way][..], &length.to_be_bytes(), first, second].concat()));
    }
    for (name, bytes) in SESSIONS {
        all.push(("session", *name, bytes.to_vec()));
    }
    for (name, bytes) in TRANSFERS {
        all.push(("transfer", *name, bytes.to_vec()));
    }
    all
}

const URIS: &[(&str, &str)] = &[
    ("plain", "nkcluster://localhost"),
    ("list", "nkcluster://10.0.0.1:1973;transport=tls, nkcluster://c1.example.org/nk;transport=wss"),
    ("brackets", "<nkcluster://[::1]:1972/path;transport=ws>;tls_verify=host"),
    (
        "options",
        "nkcluster://all;transport=tls;tls_certfile=\"/etc/a b.pem\";tls_keyfile=/k;tls_cacertfile=/ca;tls_depth=2;tls_versions=\"1.2 1.3\"",
    ),
    ("times", "nkcluster://h;idle_timeout=5000;connect_timeout=100;sctp_out_streams=1;sctp_in_streams=2;no_dns_cache;tcp_listeners=3"),
    ("password", "nkcluster://h;password=\u{1};tls_password=\"a;b\""),
    ("proxy", "nkcluster://h;transport=wss;proxy=http://user:pw@proxy:3128;host=x;ws_proto=y;exclusive;binding=off;tls_verify=true"),
    ("wrong-scheme", "http://h"),
    ("all6", "nkcluster://all6:0, nkcluster://node;transport=memory, nkcluster://h;transport=sctp, nkcluster://h;transport=quic"),
];

const LABELS: &[(&str, &str)] = &[
    ("original", "core;group=group1;master, meta2;labelA=1;labelB=2"),
    ("quoted", "\"a, b\";\"k\"=\"v;\\\"w\\\\\", plain"),
    ("update", "a;x=1, b, c;y=2\0b;z=3, d"),
    ("twice", "a, a"),
];

const SELECTORS: &[(&str, &str)] = &[
    ("words", "core && master\0\x02w1\0c1\0core\0core;master"),
    ("fields", "status=ready && id=w1 || owner=c1 && class!=files\0\x02w1\0c1\0core\0"),
    ("nested", "!(a || (b && !c)) && \"d e\"=\"f\"\0\x03w1\0\0\0a;b, d"),
    ("values", "group=group1 && dc!=eu\0\x02\0\0\0x;group=group1"),
];

/// Flags, see `config.rs`; then the file, the variables and the flags of the command line.
pub(crate) const CONFIGS: &[(&str, &str)] = &[
    ("worker", "\x03node_id = \"w1\"\nmeta = \"a;b=1, c\"\nping_time = 1000\n"),
    (
        "control",
        "\x05listen = \"nkcluster://127.0.0.1:1973;transport=tls\"\nring_size = 512\nstaged_joins = true\nhttp = \"127.0.0.1:8080\"\n",
    ),
    ("others", "\x03cluster_addr = [\"nkcluster://c1\"]\n\0PING_TIME=2000\0--stats-time=1000\0LOG=debug"),
    (
        "numbers",
        "\x07max_calls = 5\naccept_rate = 100\npbkdf2_iters = 1000\nclasses = [\"core\", \"copy\"]\ngrants = \"*\"\nsplit = \"majority\"\n",
    ),
    (
        "addresses",
        "\x03main_ip = \"10.0.0.1\"\next_ip6 = \"::1\"\ncontrol_key = \"0000000000000000000000000000000000000000000000000000000000000000\"\n",
    ),
    ("wrong", "\x03ping_tme = 5\n"),
];

const JSONS: &[(&str, &str)] = &[
    ("object", "{\"a\":{\"b\":[1,-2,3.5,\"x\"]},\"c\":null,\"d\":true}"),
    ("numbers", "[0,-1,255,65536,18446744073709551615,-9223372036854775808,1e300,-0.0,0.1]"),
    ("texts", "{\"\":\"\\u0000\\ud83d\\ude00\",\"long key long key long key long key\":\"\"}"),
    ("nested", "[[[[[[[[{\"a\":[[]]}]]]]]]]]"),
];

const PACKED: &[&str] = &["packed-object", "packed-numbers", "packed-texts", "packed-nested"];

/// Roles, channel, secrets; then what the middle does with each message.
const HANDSHAKES: &[(&str, &[u8])] = &[
    ("honest-worker", &[0, 0, 0]),
    ("honest-admin-over-tls", &[1, 1, 0]),
    ("honest-control-behind-balancer", &[2, 3, 2]),
    ("control-dials-worker", &[3, 1, 0]),
    ("man-in-the-middle", &[0, 2, 0]),
    ("wrong-secret", &[0, 0, 1]),
    ("not-agreed-balancer", &[0, 4, 0]),
    ("another-bit", &[0, 0, 0, 0, 1, 0, 40, 1]),
    ("one-more-field", &[0, 0, 0, 0, 0, 8, 1, 0xc0]),
    ("own-message-back", &[0, 0, 0, 0, 5, 0]),
    ("another-kind", &[0, 0, 0, 4, 3]),
    ("cut-short", &[0, 0, 0, 0, 0, 2, 0, 9]),
    ("garbage", &[1, 0, 0, 6, 1, 2, 0x81, 0xa1]),
];

/// Way, first part, second part.
const INTERMEDIARIES: &[(&str, u8, &[u8], &[u8])] = &[
    ("upgrade", 0, UPGRADE, MESSAGES),
    ("upgrade-of-a-page", 0, b"GET /nk HTTP/1.1\r\nOrigin: http://a\r\n\r\n", b""),
    ("balancer-of-ipv4", 1, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\0\x07\0\x08GET / HTTP/1.1\r\n\r\n", b""),
    ("balancer-looks", 1, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", UPGRADE),
    ("answer", 2, ANSWER, b""),
    ("answer-and-more", 2, b"HTTP/1.1 403 No\r\n\r\n", b"more"),
    ("tunnel", 3, b"HTTP/1.1 200 Open\r\n\r\n", ANSWER),
    ("no-tunnel", 3, b"HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic\r\n\r\n", b""),
];

const UPGRADE: &[u8] = b"GET /nk HTTP/1.1\r\nHost: c1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: nkcluster\r\n\r\n";

/// A message in two fragments, a ping, and the close.
const MESSAGES: &[u8] = b"\x02\x82\0\0\0\0ab\x89\x80\0\0\0\0\x80\x81\0\0\0\0c\x88\x80\0\0\0\0";

const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: MDEyMzQ1Njc4OWFiY2RlZmdoaWo=\r\nSec-WebSocket-Protocol: nkcluster\r\n\r\n";

/// Side and role of the peer; then turns, see `session.rs`.
const SESSIONS: &[(&str, &[u8])] = &[
    ("peer-calls-and-is-answered", &[4, 2, 0, 1, 0, 0, 1, 3, b'a', b'b', b'c', 13, 0, 0, 22, 3]),
    ("peer-calls-with-a-stream", &[4, 2, 0, 2, 1, 0, 0, 0, 0, 4, 0, 0, 2, 15, 0, 2, 4, 0, 1, 1, 15, 0, 2, 15, 0, 2]),
    ("we-call-with-a-stream", &[5, 11, 0, 0, 1, 1, 1, 14, 0, 3, 22, 3, 5, 0, 1, 16, 0, 22, 3, 3, 0, 0, 1, b'r']),
    ("large-call-in-fragments", &[4, 7, 0, 1, 1, 3, 0, 0xff, 0, 1, 7, 0, 0, 1, 2, 0, 0xff, 0, 1]),
    ("large-reply-of-ours", &[4, 2, 0, 1, 0, 0, 1, 0, 13, 0, 1, 22, 3, 22, 3]),
    ("channels", &[4, 18, 8, 3, 8, 5, 18, 19, 1, 22, 3]),
    ("cancelled", &[4, 2, 0, 1, 0, 0, 1, 0, 9, 0, 13, 0, 0, 11, 0, 0, 1, 1, 0, 20, 0]),
    ("worker-describes-itself", &[0, 10, 0, 16, 3, 2, 4, 5, 0, 7, 4, 2, 1, b'1']),
    ("reset", &[4, 2, 0, 2, 1, 0, 0, 0, 0, 6, 0, 15, 0, 2, 17, 0]),
    ("says", &[4, 21, 0, 1, 0, 21, 0, 1, 1, 2, b'e', b'v', 21, 0, 1, 2, 22, 3]),
    ("raw", &[4, 1, 9, 0, 0, 0, 3, 34, 0, 3, 0, 0, 1, 4, 0, 5, 43, 0]),
];

/// Turns of the client, see `transfer.rs`.
const TRANSFERS: &[(&str, &[u8])] = &[
    ("send-empty", &[4, 0, 0, 1, b'n', 0, 0, 0, 0, 0, 1, 0xa4, 0, 7, 0, 0, 0, 8, 0]),
    (
        "send-one-byte",
        &[4, 0, 0, 3, b'd', b'/', b'n', 0, 0, 1, 0, 0, 1, 0xa4, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, b'k', 8, 0],
    ),
    ("fetch", &[6, 1, b'a', 9, 0, 0]),
    ("fetch-outside", &[6, 3, b'o', b'u', b't']),
    ("send-outside", &[4, 0, 0, 4, b'u', b'p', b'/', b'x', 0, 0, 0, 0, 0, 0, 0, 0]),
    ("broken", &[4, 0, 0, 1, b'n', 3, 232, 3, 0, 0, 1, 0xa4, 0, 7, 0, 0, 0, 3, 0, 99, b'k', 11]),
    (
        "broken-and-resumed",
        &[
            4, 0, 0, 1, b'n', 3, 232, 3, 0, 0, 1, 0xa4, 0, 7, 0, 0, 0, 3, 0, 99, b'k', 11, 4, 0, 0, 1, b'n', 3, 232, 3, 0, 0, 1, 0xa4, 0,
            7, 0, 100, 1, 3, 3, 131, b'k', 8, 100, 11,
        ],
    ),
    ("wait", &[10, 10, 1, 5, 0xa4, b'w', b'a', b'i', b't']),
];

fn frame_of(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::put_frame(&mut out, kind, 0, body);
    out.to_vec()
}

fn client_first() -> Vec<u8> {
    let input = KeyringInput { cluster: "c".to_owned(), iterations: 1, password: Some("guessed".into()), ..KeyringInput::default() };
    let identity = Identity {
        cluster: "c".to_owned(),
        role: Role::Worker,
        id: NodeId::new("w1").expect("a letter and a digit are a name"),
        incarnation: Incarnation::from_bytes([2; 16]),
        versions: VERSIONS.to_vec(),
        features: vec!["a".to_owned()],
    };
    let setup = DiallerSetup {
        identity: identity.into(),
        keyring: Keyring::derive(Role::Worker, &input).expect("one password serves every role").into(),
        expect_role: Role::Control,
        expect_id: None,
        nonce: [1; 32],
        channel: DiallerChannel::Plain,
    };
    frame_of(Kind::ClientFirst, &Dialler::start(setup).1.body)
}

fn wrong_proof() -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Proof {
        proof: serde_bytes::ByteArray<32>,
        signature: Option<serde_bytes::ByteArray<64>>,
    }
    let proof = Proof { proof: serde_bytes::ByteArray::new([9; 32]), signature: None };
    frame_of(Kind::ClientProof, &rmp_serde::to_vec_named(&proof).expect("bytes encode"))
}

fn refusal() -> Vec<u8> {
    frame_of(Kind::Refusal, &Refusal::new(nkcluster::ErrorCode::Busy, "full").to_frame().body)
}

fn labels_of_a_peer() -> Vec<u8> {
    let meta: Meta = "core;group=group1;master".parse().expect("labels of the checklist");
    let packed = rmp_serde::to_vec_named(&meta).expect("labels encode");
    [b"a\0", &packed[..]].concat()
}

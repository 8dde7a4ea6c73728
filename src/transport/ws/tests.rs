use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use proptest::prelude::*;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::error::{Error, ErrorCode};
use crate::types::NodeUri;

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

/// A frame as a client sends it.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = header(first, 0x80, payload.len());
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn header(first: u8, mask_bit: u8, length: usize) -> Vec<u8> {
    match length {
        0..126 => vec![first, mask_bit | length as u8],
        126..65_536 => [&[first, mask_bit | 126], &(length as u16).to_be_bytes()[..]].concat(),
        _ => [&[first, mask_bit | 127], &(length as u64).to_be_bytes()[..]].concat(),
    }
}

/// The next frame of a server: first byte and payload.
async fn server_frame(stream: &mut DuplexStream) -> io::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await?;
    let length = match stream.read_u8().await? {
        126 => usize::from(stream.read_u16().await?),
        127 => stream.read_u64().await? as usize,
        length => usize::from(length),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok((first, payload))
}

/// A listener's end behind the upgrade, and the bare stream of the other end.
async fn server(buffer: usize) -> (Stream<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(buffer);
    (Stream::new(ours, Role::Server, Vec::new()).await, theirs)
}

async fn pair(buffer: usize) -> (Stream<DuplexStream>, Stream<DuplexStream>) {
    let (ours, theirs) = duplex(buffer);
    (Stream::new(ours, Role::Server, Vec::new()).await, Stream::new(theirs, Role::Client, Vec::new()).await)
}

fn inner(error: &io::Error) -> &Error {
    error.get_ref().and_then(|inner| inner.downcast_ref()).expect("an error of ours inside")
}

/// An upgrade request with these lines changed: `None` leaves the line out.
fn request(path: &str, changes: &[(&str, Option<&str>)]) -> Vec<u8> {
    let lines = [
        ("Host", "example.org"),
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "other, nkcluster"),
    ];
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in lines {
        let value = changes.iter().find(|(changed, _)| *changed == name).map_or(Some(value), |(_, value)| *value);
        if let Some(value) = value {
            text += &format!("{name}: {value}\r\n");
        }
    }
    for (name, value) in changes.iter().filter(|(name, _)| !lines.iter().any(|(known, _)| known == name)) {
        text += &format!("{name}: {}\r\n", value.expect("a value"));
    }
    (text + "\r\n").into_bytes()
}

/// How a listener answers, and what it makes of it.
async fn ask(url: &str, origins: &[&str], bytes: &[u8]) -> (String, Result<(), Error>) {
    let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
    let rules = Rules::new(&uri(url), &origins.into()).expect("rules");
    let (ours, mut theirs) = duplex(64 * 1024);
    theirs.write_all(bytes).await.expect("writes");
    let accepted = accept(ours, &rules).await.map(drop);
    let mut answer = String::new();
    theirs.read_to_string(&mut answer).await.expect("text");
    (answer, accepted)
}

#[tokio::test]
async fn upgrade_is_granted_for_path_and_sub_protocol_of_the_url() {
    for (url, request) in [
        ("nkcluster://all;transport=ws", request("/", &[])),
        ("nkcluster://all/nk;transport=ws", request("/nk?x=1", &[])),
        ("nkcluster://all;transport=ws;ws_proto=mine", request("/", &[("Sec-WebSocket-Protocol", Some("mine"))])),
    ] {
        let (answer, accepted) = ask(url, &[], &request).await;
        accepted.expect("granted");
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let answer = answer.to_ascii_lowercase();
        assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{answer}");
        let protocol = if url.ends_with("mine") { "mine" } else { "nkcluster" };
        assert!(answer.contains(&format!("sec-websocket-protocol: {protocol}\r\n")), "{answer}");
    }
}

#[tokio::test]
async fn upgrade_is_refused_with_the_status_that_says_why() {
    let long = "x".repeat(9000);
    for (status, bytes) in [
        (404, request("/other", &[])),
        (403, request("/", &[("Origin", Some("https://evil.example"))])),
        (403, request("/", &[("Origin", Some("null"))])),
        (400, request("/", &[("Sec-WebSocket-Protocol", None)])),
        (400, request("/", &[("Sec-WebSocket-Protocol", Some("nkcluster2"))])),
        (426, request("/", &[("Upgrade", None)])),
        (426, request("/", &[("Connection", Some("close"))])),
        (426, request("/", &[("Sec-WebSocket-Version", Some("12"))])),
        (426, request("/", &[("Sec-WebSocket-Key", Some("short"))])),
        (431, request("/", &[("X-Long", Some(&long))])),
        (400, [request("/", &[]), masked(FIN | BINARY, b"too early")].concat()),
        (400, b"POST / HTTP/1.1\r\n\r\n".to_vec()),
        (400, b"GET\x20\xff\xff HTTP/1.1\r\n\r\n".to_vec()),
        (400, vec![0x16, 3, 1, 2, 0, 1]),
    ] {
        let (answer, accepted) = ask("nkcluster://all;transport=ws", &["https://good.example"], &bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
        let error = accepted.expect_err("refused");
        assert_eq!(error.code(), &ErrorCode::ProtocolError);
        assert!(error.message().contains(&status.to_string()), "{error}");
    }
}

#[tokio::test]
async fn web_page_comes_in_if_its_origin_is_allowed() {
    let allowed = ["https://good.example", "http://localhost:3000"];
    for origin in ["https://good.example", "HTTPS://Good.example", "http://localhost:3000"] {
        let (answer, accepted) = ask("nkcluster://all;transport=ws", &allowed, &request("/", &[("Origin", Some(origin))])).await;
        assert!(accepted.is_ok(), "{origin}: {answer}");
    }
    for origin in ["https://good.example.evil.example", "http://good.example", "https://good.example:444"] {
        let (_, accepted) = ask("nkcluster://all;transport=ws", &allowed, &request("/", &[("Origin", Some(origin))])).await;
        assert!(accepted.is_err(), "{origin}");
    }
}

/// What a dialler makes of an answer, in which `KEY` stands for the right key.
async fn answered(answer: &str) -> Result<(), Error> {
    let request = Request::new(&uri("nkcluster://example.org/nk;transport=ws")).expect("a request");
    let (ours, mut theirs) = duplex(64 * 1024);
    let serve = async {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(theirs.read_u8().await.expect("a request"));
        }
        let asked = String::from_utf8(asked).expect("text");
        let key = asked.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).expect("a key");
        let answer = answer.replace("KEY", &derive_accept_key(key.as_bytes()));
        theirs.write_all(answer.as_bytes()).await.expect("writes");
        drop(theirs);
        asked
    };
    let (connected, asked) = tokio::join!(connect(ours, &request), serve);
    assert!(asked.starts_with("GET /nk HTTP/1.1\r\nHost: example.org:1974\r\n"), "{asked}");
    assert!(asked.contains("\r\nSec-WebSocket-Protocol: nkcluster\r\n"), "{asked}");
    assert!(!asked.to_ascii_lowercase().contains("origin"), "{asked}");
    connected.map(drop)
}

const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: KEY\r\n";

#[tokio::test]
async fn dialler_believes_only_an_answer_to_its_own_request() {
    answered(&format!("{GRANTED}Sec-WebSocket-Protocol: nkcluster\r\n\r\n")).await.expect("granted");
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(9000));
    for (code, word, answer) in [
        (ErrorCode::NoConnections, "404 Not Found", "HTTP/1.1 404 Not Found\r\n\r\n"),
        (ErrorCode::NoConnections, "503", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
        (ErrorCode::ProtocolError, "sub-protocol", &format!("{GRANTED}\r\n")),
        (ErrorCode::ProtocolError, "sub-protocol", &format!("{GRANTED}Sec-WebSocket-Protocol: chat\r\n\r\n")),
        (ErrorCode::ProtocolError, "key", &format!("{GRANTED}Sec-WebSocket-Protocol: nkcluster\r\n\r\n").replace("KEY", "a2V5")),
        (ErrorCode::ProtocolError, "upgrade", &GRANTED.replace("WebSocket\r", "h2c\r").replace("KEY\r\n", "KEY\r\n\r\n")),
        (
            ErrorCode::ProtocolError,
            "extension",
            &format!("{GRANTED}Sec-WebSocket-Protocol: nkcluster\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        ),
        (ErrorCode::ProtocolError, "not HTTP", "SSH-2.0-OpenSSH_9\r\n"),
        (ErrorCode::ProtocolError, "cannot be read", "HTTP/1.1 abc\r\n\r\n"),
        (ErrorCode::ProtocolError, "larger", &endless),
        (ErrorCode::ConnectionFailed, "closed", "HTTP/1.1 101"),
        (ErrorCode::ConnectionFailed, "closed", ""),
    ] {
        let error = answered(answer).await.expect_err(answer);
        assert_eq!(error.code(), &code, "{error}");
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

#[test]
fn request_names_the_host_as_browsers_do() {
    for (url, host) in [
        ("nkcluster://example.org;transport=wss", "example.org:1975"),
        ("nkcluster://example.org:443;transport=wss", "example.org"),
        ("nkcluster://example.org:80;transport=ws", "example.org"),
        ("nkcluster://example.org:443;transport=ws", "example.org:443"),
        ("nkcluster://[fd00::1]:9;transport=ws", "[fd00::1]:9"),
        ("nkcluster://10.0.0.1:9;transport=ws;host=c1.example.org", "c1.example.org"),
    ] {
        let request = Request::new(&uri(url)).expect("a request");
        let text = String::from_utf8(request.bytes.clone()).expect("text");
        assert!(text.contains(&format!("\r\nHost: {host}\r\n")), "{url}: {text}");
    }
}

#[test]
fn options_that_cannot_stand_in_a_request_are_refused() {
    for options in ["host=ex\u{e4}mple.org", "ws_proto=\u{e4}", "ws_proto=\"a, b\""] {
        let url = uri(&format!("nkcluster://example.org;transport=ws;{options}"));
        assert_eq!(Request::new(&url).expect_err("refused").code(), &ErrorCode::InvalidConfig);
        let rules = Rules::new(&url, &[].into());
        assert_eq!(rules.is_err(), options.starts_with("ws_proto"));
    }
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_connection_with_its_close_code() {
    // The header alone: nothing is allocated for it.
    let oversized = [&header(FIN | BINARY, 0x80, MESSAGE_BYTES_MAX + 1)[..], &[0; 4]].concat();
    let whole = vec![0; MESSAGE_BYTES_MAX];
    let fragments = [masked(BINARY, &whole), masked(FIN | CONTINUATION, b"x")].concat();
    for (what, code, bytes) in [
        ("text message", 1003_u16, masked(FIN | TEXT, b"hello")),
        ("too long", 1009, oversized),
        ("too long", 1009, fragments),
        ("unmasked", 1002, [header(FIN | BINARY, 0, 1), vec![0]].concat()),
        ("Reserved bits", 1002, masked(FIN | 0x40 | BINARY, b"x")),
        ("Continue frame", 1002, masked(FIN | CONTINUATION, b"x")),
        ("UTF-8", 1002, masked(FIN | TEXT, b"\xff")),
        ("too big", 1002, masked(FIN | PING, &[0; 126])),
        ("invalid opcode", 1002, masked(FIN | 11, b"")),
    ] {
        let (mut ours, mut theirs) = server(256 * 1024).await;
        theirs.write_all(&bytes).await.expect("writes");
        let mut buffer = [0; 8];
        for _ in 0..2 {
            let error = ours.read(&mut buffer).await.expect_err(what);
            assert_eq!(inner(&error).code(), &ErrorCode::ProtocolError);
            assert!(inner(&error).message().to_lowercase().contains(&what.to_lowercase()), "{what}: {error}");
        }
        let (first, payload) = server_frame(&mut theirs).await.expect("a close frame");
        assert_eq!((first, &payload[..2]), (FIN | CLOSE, &code.to_be_bytes()[..]), "{what}");
    }
}

#[tokio::test]
async fn messages_of_every_allowed_size_arrive_and_pings_between_them_are_answered() {
    let (mut ours, mut theirs) = server(256 * 1024).await;
    let whole = vec![7; MESSAGE_BYTES_MAX];
    let bytes = [
        masked(FIN | BINARY, b""),
        masked(FIN | PING, b"are you there"),
        masked(BINARY, b"a"),
        masked(FIN | PONG, b"unasked"),
        masked(CONTINUATION, b""),
        masked(FIN | CONTINUATION, b"b"),
        masked(FIN | BINARY, &whole),
    ];
    theirs.write_all(&bytes.concat()).await.expect("writes");
    let mut read = vec![0; 2 + MESSAGE_BYTES_MAX];
    ours.read_exact(&mut read).await.expect("reads");
    assert_eq!(&read[..2], b"ab");
    assert_eq!(&read[2..], whole);
    assert_eq!(server_frame(&mut theirs).await.expect("a pong"), (FIN | PONG, b"are you there".to_vec()));
}

#[tokio::test]
async fn writes_become_whole_binary_messages_of_bounded_size() {
    let (mut ours, mut theirs) = server(256 * 1024).await;
    let pieces = [io::IoSlice::new(b"head"), io::IoSlice::new(b""), io::IoSlice::new(b"body")];
    assert_eq!(ours.write_vectored(&pieces).await.expect("writes"), 8);
    let large = vec![1; MESSAGE_BYTES_MAX + 5];
    ours.write_all(&large).await.expect("writes");
    let halves = [io::IoSlice::new(&large[..40_000]), io::IoSlice::new(&large[..40_000])];
    assert_eq!(ours.write_vectored(&halves).await.expect("writes"), MESSAGE_BYTES_MAX);
    assert_eq!(server_frame(&mut theirs).await.expect("a message"), (FIN | BINARY, b"headbody".to_vec()));
    for length in [MESSAGE_BYTES_MAX, 5, MESSAGE_BYTES_MAX] {
        let (first, payload) = server_frame(&mut theirs).await.expect("a message");
        assert_eq!((first, payload.len()), (FIN | BINARY, length));
    }
}

#[tokio::test]
async fn peer_that_never_reads_costs_one_message_and_the_pongs_it_asked_for() {
    let (mut ours, mut theirs) = server(1024).await;
    let piece = vec![0; 10_000];
    let mut taken = 0;
    let written = poll_fn(|cx| {
        loop {
            match Pin::new(&mut ours).poll_write(cx, &piece) {
                Poll::Ready(Ok(count)) => taken += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
    });
    written.await.expect("waits");
    assert!(taken <= MESSAGE_BYTES_MAX + 1024, "{taken}");
    // As many pings as it likes: they are answered as far as there is room, and nothing breaks.
    for _ in 0..200 {
        theirs.write_all(&masked(FIN | PING, &[1; 125])).await.expect("writes");
        let mut buffer = [0; 1];
        let read = poll_fn(|cx| {
            let mut buffer = tokio::io::ReadBuf::new(&mut buffer);
            Poll::Ready(Pin::new(&mut ours).poll_read(cx, &mut buffer).is_pending())
        });
        assert!(read.await, "there is nothing to read");
    }
    let write = async {
        ours.write_all(b"on").await.expect("goes on");
        ours.flush().await.expect("flushes");
    };
    let read = async {
        let (mut messages, mut pongs) = (Vec::new(), 0);
        while !messages.ends_with(b"on") {
            match server_frame(&mut theirs).await.expect("a frame") {
                (first, payload) if first == FIN | BINARY => messages.extend(payload),
                (first, _) => {
                    assert_eq!(first, FIN | PONG);
                    pongs += 1;
                }
            }
        }
        (messages.len(), pongs)
    };
    let ((), (received, pongs)) = tokio::join!(write, read);
    assert_eq!(received, taken + 2);
    assert!((1..=(MESSAGE_BYTES_MAX + SPARE_BYTES) / 127 + 1).contains(&pongs), "{pongs}");
}

#[tokio::test]
async fn shutdown_is_the_close_handshake_and_loses_nothing_that_was_sent() {
    for server_first in [true, false] {
        let (a, b) = pair(64 * 1024).await;
        let (mut first, mut second) = if server_first { (a, b) } else { (b, a) };
        first.write_all(b"last words").await.expect("writes");
        first.shutdown().await.expect("shuts down");
        assert_eq!(first.write(b"more").await.expect_err("said goodbye").kind(), io::ErrorKind::BrokenPipe);
        // Until it has read so far the other side may still send.
        second.write_all(b"crossing").await.expect("writes");
        second.flush().await.expect("flushes");
        let mut text = String::new();
        second.read_to_string(&mut text).await.expect("reads to the end");
        assert_eq!(text, "last words");
        assert_eq!(second.write(b"late").await.expect_err("the other side is gone").kind(), io::ErrorKind::BrokenPipe);
        second.shutdown().await.expect("nothing is left to do");
        let mut text = String::new();
        first.read_to_string(&mut text).await.expect("reads to the end");
        assert_eq!(text, "crossing");
        first.shutdown().await.expect("again is no error");
    }
}

#[tokio::test]
async fn end_without_farewell_is_told_apart_from_the_end() {
    let (mut ours, theirs) = server(1024).await;
    drop(theirs);
    let mut text = Vec::new();
    assert_eq!(ours.read_to_end(&mut text).await.expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
    // A half close of TCP below is the same: nobody can say goodbye any more.
    let (mut ours, mut theirs) = server(1024).await;
    theirs.write_all(&masked(FIN | BINARY, b"x")).await.expect("writes");
    theirs.shutdown().await.expect("shuts down");
    assert_eq!(ours.read_u8().await.expect("reads"), b'x');
    assert_eq!(ours.read_u8().await.expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
}

/// What an intermediary may make of a stream: messages cut into fragments of any size, with pings between them, in pieces of any size.
fn chopped(bytes: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut sizes = sizes.iter().copied().cycle();
    let mut size = move || sizes.next().unwrap_or(1);
    let (mut out, mut left) = (Vec::new(), bytes);
    while !left.is_empty() {
        let (mut message, more) = left.split_at(size().min(left.len()));
        left = more;
        let (mut opcode, mut fragment_min) = (BINARY, 0);
        loop {
            // Now and then an empty one.
            let (fragment, more) = message.split_at((size() % 7).max(fragment_min).min(message.len()));
            fragment_min = usize::from(fragment.is_empty());
            message = more;
            let fin = if message.is_empty() { FIN } else { 0 };
            out.extend(masked(fin | opcode, fragment));
            if message.is_empty() {
                break;
            }
            out.extend(masked(FIN | PING, b""));
            opcode = CONTINUATION;
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn stream_is_the_same_whatever_an_intermediary_makes_of_it(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        sizes in prop::collection::vec(1usize..50, 1..10),
        piece in 1usize..30,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let read = runtime.block_on(async {
            let (mut ours, theirs) = server(16).await;
            let (mut answers, mut theirs) = tokio::io::split(theirs);
            let write = async {
                for piece in chopped(&bytes, &sizes).chunks(piece) {
                    theirs.write_all(piece).await.expect("writes");
                    tokio::task::yield_now().await;
                }
                theirs.write_all(&masked(FIN | CLOSE, b"")).await.expect("writes");
            };
            let read = async {
                let mut read = Vec::new();
                ours.read_to_end(&mut read).await.expect("reads");
                drop(ours);
                read
            };
            let pongs = async { tokio::io::copy(&mut answers, &mut tokio::io::sink()).await };
            tokio::join!(write, read, pongs).1
        });
        prop_assert_eq!(read, bytes);
    }

    #[test]
    fn no_bytes_make_us_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (mut ours, mut theirs) = server(1024).await;
            theirs.write_all(&bytes).await.expect("writes");
            drop(theirs);
            // Whatever it is, it ends.
            let _ = ours.read_to_end(&mut Vec::new()).await;
            let (answer, _) = ask("nkcluster://all;transport=ws", &[], &[b"GET ", bytes.as_slice(), b"\r\n\r\n"].concat()).await;
            assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
            let _ = answered_bytes(&bytes).await;
        });
    }
}

async fn answered_bytes(bytes: &[u8]) -> Result<(), Error> {
    let request = Request::new(&uri("nkcluster://example.org;transport=ws")).expect("a request");
    let (ours, mut theirs) = duplex(4096);
    theirs.write_all(&[b"HTTP/1.1 101 ", bytes, b"\r\n\r\n"].concat()).await.expect("writes");
    connect(ours, &request).await.map(drop)
}

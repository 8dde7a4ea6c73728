//! HTTP before there is a link: who knocks at a WebSocket listener, a balancer in front of it, and the servers and proxies that a dialler meets.

use std::io::ErrorKind;

use nkcluster::transport::{DialOptions, ListenOptions, Listener, dial};
use nkcluster::types::NodeUri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::input::Input;
use crate::seeded::seeded_crash;

/// Turns of the runtime for an answer, before the second part is sent all the same.
const TURNS_MAX: usize = 32;
/// Bytes of an answer that are looked at; all are read.
const HEARD_BYTES_MAX: usize = 64 * 1024;
/// Longest error that a server or a proxy may cause.
const ERROR_BYTES_MAX: usize = 1024;
/// Password for the proxy.
const CANARY: &str = "p4ssw0rdCanary";

/// Two parts: what is said first, and what is said when an answer has come. A listener lets in only who asked for our sub-protocol and is no web page, answers
/// everybody in HTTP, and hands on no more bytes than came. A dialler is fooled by no answer, since nobody can know the one to its key, and its error is short
/// text without the password.
pub fn intermediary(data: &[u8]) {
    let mut input = Input::new(data);
    let way = input.below(4);
    let length = usize::from(input.u16());
    let rest = input.rest();
    let (first, second) = rest.split_at(length.min(rest.len()));
    STREET.with(|street| match way {
        0 => street.knock(&street.door, first, second),
        1 => street.knock(&street.balanced, first, second),
        2 => street.answer(&street.direct, first, second),
        _ => street.answer(&street.through_proxy, first, second),
    });
}

struct Street {
    runtime: Runtime,
    /// A listener of ws.
    door: Listener,
    /// The same behind a balancer that sends the PROXY protocol.
    balanced: Listener,
    /// Where diallers arrive, directly and through a proxy at the same place.
    server: TcpListener,
    direct: NodeUri,
    through_proxy: NodeUri,
}

thread_local! {
    static STREET: Street = Street::open();
}

impl Street {
    fn open() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let uri: NodeUri = "nkcluster://127.0.0.1:0/nk;transport=ws".parse().expect("a URL");
        let plain = ListenOptions::default();
        let behind = ListenOptions { trusted_proxies: vec!["127.0.0.0/8".parse().expect("a range")], ..ListenOptions::default() };
        let listen = |options| runtime.block_on(Listener::bind(&uri, options)).expect("loopback has free ports");
        let (door, balanced) = (listen(&plain), listen(&behind));
        let server = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("loopback has free ports");
        let port = server.local_addr().expect("it is bound").port();
        let dialled = |more: &str| format!("nkcluster://127.0.0.1:{port}/nk;transport=ws;proxy={more}").parse().expect("a URL");
        let (direct, through_proxy) = (dialled("off"), dialled(&format!("http://user:{CANARY}@127.0.0.1:{port}")));
        Self { runtime, door, balanced, server, direct, through_proxy }
    }

    /// Speaks to a listener.
    fn knock(&self, listener: &Listener, first: &[u8], second: &[u8]) {
        let port = listener.uri().effective_port();
        let gone = Notify::new();
        let stranger = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            let heard = say(&mut stream, first, second).await;
            gone.notify_one();
            heard
        };
        let listening = async {
            let incoming = tokio::select! {
                biased;
                incoming = listener.accept() => incoming,
                // A balancer that makes no sense is cut off, and nothing arrives.
                () = gone.notified() => return None,
            };
            let (mut reader, _writer) = incoming.into_wire().await.ok()?.into_split();
            let (mut bytes, mut buffer) = (0, [0; 4096]);
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                bytes += count;
            }
            Some(bytes)
        };
        let (heard, handed_on) = self.runtime.block_on(async { tokio::join!(stranger, listening) });
        assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&heard));
        let is_upgraded = heard.starts_with(b"HTTP/1.1 101 ");
        assert!(handed_on.is_none() || is_upgraded, "it was let in and not told");
        if handed_on.is_some() {
            let asked = String::from_utf8_lossy(first).into_owned() + &String::from_utf8_lossy(second);
            let asked = asked.to_ascii_lowercase();
            assert!(asked.contains("websocket") && asked.contains("nkcluster") && asked.contains(" /nk"), "{asked}");
            let head = asked.split("\r\n\r\n").find(|part| part.contains("websocket")).unwrap_or_default();
            assert!(!head.contains("\norigin:"), "a web page was let in: {asked}");
        }
        let bytes = handed_on.unwrap_or(0);
        assert!(bytes <= second.len() || bytes <= first.len(), "{bytes} bytes out of nothing");
        seeded_crash!("intermediary", is_upgraded, bytes > 0, bytes != 3);
    }

    /// Is dialled, and answers.
    fn answer(&self, uri: &NodeUri, first: &[u8], second: &[u8]) {
        let options = DialOptions::default();
        let server = async {
            let (mut stream, _) = self.server.accept().await.expect("loopback works");
            let mut request = [0; 4096];
            // It speaks first, and what it says fits.
            let _ = stream.read(&mut request).await;
            say(&mut stream, first, second).await;
        };
        let (dialled, ()) = self.runtime.block_on(async { tokio::join!(dial(uri, &options), server) });
        let Err(error) = dialled else { panic!("an answer to a key that nobody knew") };
        let text = error.to_string();
        assert!(!text.contains(CANARY), "the password is in {text}");
        assert!(text.len() <= ERROR_BYTES_MAX, "{} bytes: {text}", text.len());
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

/// Says both parts, and returns what is heard until the other side closes.
async fn say(stream: &mut TcpStream, first: &[u8], second: &[u8]) -> Vec<u8> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    // The other side may have closed already.
    let _ = stream.write_all(first).await;
    if !second.is_empty() {
        for _ in 0..TURNS_MAX {
            match stream.try_read(&mut buffer) {
                Ok(count) => {
                    heard.extend_from_slice(&buffer[..count]);
                    break;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::task::yield_now().await,
                Err(_) => break,
            }
        }
        let _ = stream.write_all(second).await;
    }
    let _ = stream.shutdown().await;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if heard.len() < HEARD_BYTES_MAX {
            heard.extend_from_slice(&buffer[..count]);
        }
    }
    heard
}

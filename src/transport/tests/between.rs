//! What stands between dialler and listener: HTTP proxies, balancers, and who is neither.

use std::net::SocketAddr;

use tokio::io::AsyncBufReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

/// An HTTP proxy that knows one host by name, `c1.example.org`, which is this machine, and wants these credentials in base 64.
struct HttpProxy {
    addr: SocketAddr,
    accepting: JoinHandle<()>,
    asked: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl HttpProxy {
    async fn start(credentials: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, credentials, ask.clone()));
            }
        });
        Self { addr, accepting, asked }
    }

    fn in_front_of(&self, listener: &Listener, credentials: &str) -> NodeUri {
        let real = listener.uri();
        let (port, path, transport) = (real.effective_port(), real.path(), real.effective_transport());
        uri(&format!("nkcluster://c1.example.org:{port}{path};transport={transport};proxy=http://{credentials}{}", self.addr))
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, credentials: Option<&str>, ask: tokio::sync::mpsc::UnboundedSender<String>) {
    let mut stream = tokio::io::BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).expect("a tunnel").to_owned();
    let is_let_in = credentials.is_none_or(|credentials| head.contains(&format!("\r\nProxy-Authorization: Basic {credentials}\r\n")));
    let _ = ask.send(to.clone());
    if !is_let_in {
        let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n").await;
        return;
    }
    let Some(port) = to.strip_prefix("c1.example.org:") else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").await;
        return;
    };
    let Ok(mut target) = TcpStream::connect(format!("127.0.0.1:{port}")).await else {
        let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
        return;
    };
    // Byte by byte, as an unkind network would.
    for byte in b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n" {
        let _ = stream.write_all(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut target).await;
}

#[tokio::test]
async fn every_transport_passes_a_proxy_which_resolves_the_name() {
    let files = Files::new();
    let listen = ListenOptions { tls: files.options("c1.example.org", TlsVerify::False), ..ListenOptions::default() };
    let trusting = tls(TlsOptions { cacertfile: Some(files.path("ca.pem")), verify: TlsVerify::Host, ..TlsOptions::default() });
    let mut proxy = HttpProxy::start(Some("bWU6c2VjcmV0")).await;
    for text in &EVERY[..4] {
        let listener = bind(&text.replace(";ws_proto=mine", ""), &listen).await;
        let target = proxy.in_front_of(&listener, "me:secret@");
        let (ours, theirs) = meet(&listener, &target, &trusting).await.expect("they meet");
        let (transport, port) = (listener.transport(), listener.uri().effective_port());
        assert_eq!(proxy.asked.recv().await, Some(format!("c1.example.org:{port}")));
        assert_eq!(ours.facts().remote, format!("{transport}:c1.example.org:{port}"));
        assert_eq!(ours.facts().peer_addr, None);
        // The binding is that of the TLS inside the tunnel, and the name that of the URL.
        assert_eq!(ours.facts().binding, theirs.facts().binding);
        assert_eq!(ours.facts().binding.is_some(), transport.is_encrypted());
        assert_eq!(ours.facts().certificate == CertificateCheck::Verified, transport.is_encrypted());
    }
}

#[tokio::test]
async fn proxy_that_refuses_is_named_and_its_password_is_not() {
    let listener = bind(EVERY[2], &ListenOptions::default()).await;
    let proxy = HttpProxy::start(Some("bWU6c2VjcmV0")).await;
    for (credentials, word) in [("", "407"), ("me:hunter2@", "407"), ("me:secret@", "502")] {
        let mut target = proxy.in_front_of(&listener, credentials);
        if word == "502" {
            target = target.with_port(1);
        }
        let error = dial(&target, &DialOptions::default()).await.expect_err("refused");
        assert_eq!(error.code(), &ErrorCode::NoConnections);
        for part in [word, "c1.example.org", &proxy.addr.to_string()] {
            assert!(error.message().contains(part), "{part}: {error}");
        }
        assert!(!error.message().contains("hunter2") && !error.message().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn environment_sends_web_sockets_through_its_proxy() {
    let listener = bind("nkcluster://127.0.0.1:0;transport=ws", &ListenOptions::default()).await;
    let mut proxy = HttpProxy::start(None).await;
    let address = proxy.addr.to_string();
    let proxies = ProxyEnvironment::from_variables(|name| (name == "HTTPS_PROXY").then(|| address.clone()));
    let options = DialOptions { proxies, ..DialOptions::default() };
    let port = listener.uri().effective_port();
    let target = uri(&format!("nkcluster://c1.example.org:{port};transport=ws"));
    meet(&listener, &target, &options).await.expect("they meet");
    assert_eq!(proxy.asked.recv().await, Some(format!("c1.example.org:{port}")));
    // Loopback is near.
    meet(&listener, listener.uri(), &options).await.expect("they meet");
    assert!(proxy.asked.try_recv().is_err());
}

/// A connection to the listener which begins with the word of a proxy, and then goes on as told.
async fn announced(listener: &Listener, header: &[u8], then: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", listener.uri().effective_port())).await.expect("connects");
    stream.write_all(&[header, then].concat()).await.expect("writes");
    stream
}

/// PROXY version 2: 10.1.2.3:4660 to 192.168.0.1:1973.
const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x03\xc0\xa8\0\x01\x12\x34\x07\xb5";

#[tokio::test]
async fn trusted_balancer_tells_who_the_peer_is_on_every_transport() {
    let listen = ListenOptions { trusted_proxies: vec!["127.0.0.0/8".parse().expect("a range")], ..ListenOptions::default() };
    for text in &EVERY[..4] {
        let listener = bind(text, &listen).await;
        let target = listener.uri().clone();
        // A balancer that forwards to the listener.
        let balancer = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let in_front = target.clone().with_port(balancer.local_addr().expect("bound").port());
        let forward = tokio::spawn(async move {
            let (mut stream, _) = balancer.accept().await.expect("accepts");
            let mut to = TcpStream::connect(("127.0.0.1", target.effective_port())).await.expect("connects");
            to.write_all(HEADER).await.expect("writes");
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
        });
        let accept = async {
            let incoming = listener.accept().await;
            let shown = incoming.remote();
            let admitted_as = incoming.peer_addr();
            let mut wire = incoming.into_wire().await.expect("a wire");
            assert_eq!(wire.read_u8().await.expect("reads"), 7);
            (shown, admitted_as, wire)
        };
        let connect = async {
            let mut wire = dial(&in_front, &DialOptions::default()).await.expect("connects");
            wire.write_u8(7).await.expect("writes");
            wire.flush().await.expect("flushes");
            wire
        };
        let ((shown, admitted_as, accepted), _connected) = tokio::join!(accept, connect);
        assert_eq!(shown, format!("{}:10.1.2.3:4660", listener.transport()));
        assert_eq!(admitted_as.map(|addr| addr.to_string()).as_deref(), Some("10.1.2.3:4660"));
        assert_eq!(accepted.facts().remote, shown);
        assert_eq!(accepted.facts().peer_addr, admitted_as);
        forward.abort();
    }
}

#[tokio::test]
async fn balancer_that_says_nothing_is_closed_and_the_next_one_is_served() {
    let listen = ListenOptions { trusted_proxies: vec!["127.0.0.1".parse().expect("a range")], ..ListenOptions::default() };
    let listener = bind(EVERY[0], &listen).await;
    let mut silent = announced(&listener, b"", b"sixteen bytes here").await;
    let _told = announced(&listener, HEADER, b"x").await;
    let incoming = listener.accept().await;
    assert_eq!(incoming.remote(), "tcp:10.1.2.3:4660");
    assert_eq!(incoming.into_wire().await.expect("a wire").read_u8().await.expect("reads"), b'x');
    // Unread bytes make the end a reset.
    let _ = silent.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn stranger_who_plays_a_balancer_is_not_believed() {
    for text in &EVERY[1..4] {
        let listener = bind(text, &ListenOptions::default()).await;
        let _stream = announced(&listener, HEADER, b"\r\n\r\n").await;
        let incoming = listener.accept().await;
        assert!(incoming.remote().contains(":127.0.0.1:"), "{}", incoming.remote());
        let error = incoming.into_wire().await.expect_err("not what was expected");
        assert!([ErrorCode::ProtocolError, ErrorCode::TlsError].contains(error.code()), "{error}");
    }
}

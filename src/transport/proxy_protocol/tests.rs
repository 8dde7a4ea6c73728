use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// A header with these bytes behind the signature.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short");
    [&SIGNATURE[..], &[command, family], &length.to_be_bytes(), rest].concat()
}

/// 10.1.2.3:4660 to 192.168.0.1:1973.
const V4: [u8; 12] = [10, 1, 2, 3, 192, 168, 0, 1, 0x12, 0x34, 0x07, 0xb5];

fn v6() -> Vec<u8> {
    let ip = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    [&ip(1)[..], &ip(2), &[0x12, 0x34, 0x07, 0xb5]].concat()
}

async fn read_all(bytes: &[u8]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
    let mut left = bytes;
    let read = read(&mut left).await;
    (read, left.to_vec())
}

#[tokio::test]
async fn header_tells_the_real_peer_and_nothing_behind_it_is_taken() {
    let tlvs = [4, 0, 1, 7];
    for (bytes, expected) in [
        (header(0x21, 0x11, &V4), Some("10.1.2.3:4660")),
        (header(0x21, 0x11, &[&V4[..], &tlvs].concat()), Some("10.1.2.3:4660")),
        (header(0x21, 0x21, &v6()), Some("[2001:db8::1]:4660")),
        (header(0x21, 0x00, &[]), None),
        (header(0x21, 0x31, &[0; 216]), None),
        (header(0x20, 0x11, &V4), None),
        (header(0x20, 0x00, &[]), None),
    ] {
        let (read, left) = read_all(&[&bytes[..], b"next"].concat()).await;
        assert_eq!(read.expect("a header"), expected.map(|text| text.parse().expect("an address")));
        assert_eq!(left, b"next");
    }
}

#[tokio::test]
async fn what_is_no_header_of_version_2_is_refused() {
    for (fault, bytes) in [
        (HeaderFault::NoHeader, b"PROXY TCP4 10.1.2.3 192.168.0.1 4660 1973\r\n".to_vec()),
        (HeaderFault::NoHeader, vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0]),
        (HeaderFault::NoHeader, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (HeaderFault::Version, header(0x11, 0x11, &V4)),
        (HeaderFault::Version, header(0x22, 0x11, &V4)),
        (HeaderFault::Family, header(0x21, 0x12, &V4)),
        (HeaderFault::Family, header(0x21, 0x41, &V4)),
        (HeaderFault::Length(11), header(0x21, 0x11, &V4[..11])),
        (HeaderFault::Length(35), header(0x21, 0x21, &v6()[..35])),
        (HeaderFault::Length(4097), header(0x21, 0x11, &[0; 4097])),
    ] {
        let (read, _) = read_all(&bytes).await;
        let error = read.expect_err("refused");
        let found: &HeaderFault = error.get_ref().and_then(|inner| inner.downcast_ref()).expect("a fault");
        assert_eq!(found, &fault);
    }
}

proptest! {
    #[test]
    fn no_header_makes_us_panic(command: u8, family: u8, rest in prop::collection::vec(any::<u8>(), 0..80), cut in 0usize..100) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for command in [command, 0x21] {
            for family in [family, 0x11, 0x21] {
                let bytes = header(command, family, &rest);
                let _ = runtime.block_on(read_all(&bytes));
                let (read, _) = runtime.block_on(read_all(&bytes[..cut.min(bytes.len())]));
                prop_assert!(cut >= bytes.len() || read.is_err(), "half a header is none");
            }
        }
    }
}

async fn bound() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    (listener, addr)
}

fn trusting(range: &str) -> Behind {
    Behind::new(vec![range.parse().expect("a range")])
}

#[tokio::test]
async fn slow_header_holds_up_nobody_else() {
    let (listener, addr) = bound().await;
    let behind = trusting("127.0.0.1");
    let mut slow = TcpStream::connect(addr).await.expect("connects");
    slow.write_all(&SIGNATURE[..5]).await.expect("writes");
    let mut quick = TcpStream::connect(addr).await.expect("connects");
    quick.write_all(&header(0x21, 0x11, &V4)).await.expect("writes");
    let (_, peer) = behind.accept(&listener).await.expect("accepts");
    assert_eq!(peer.to_string(), "10.1.2.3:4660");
    slow.write_all(&SIGNATURE[5..]).await.expect("writes");
    slow.write_all(&header(0x20, 0, &[])[12..]).await.expect("writes");
    let (_, peer) = behind.accept(&listener).await.expect("accepts");
    assert_eq!(peer, slow.local_addr().expect("connected"));
}

#[tokio::test]
async fn only_proxies_are_asked_for_a_header() {
    let (listener, addr) = bound().await;
    let behind = trusting("10.0.0.0/8");
    let mut direct = TcpStream::connect(addr).await.expect("connects");
    direct.write_all(&header(0x21, 0x11, &V4)).await.expect("writes");
    let (mut accepted, peer) = behind.accept(&listener).await.expect("accepts");
    assert_eq!(peer, direct.local_addr().expect("connected"), "what it claims is not believed");
    let mut first = [0; 12];
    accepted.read_exact(&mut first).await.expect("reads");
    assert_eq!(first, SIGNATURE, "and left to the protocol above, which refuses it");
}

#[tokio::test(start_paused = true)]
async fn proxy_without_a_header_is_closed_after_the_limit() {
    let (listener, addr) = bound().await;
    let behind = trusting("127.0.0.0/8");
    let mut silent = TcpStream::connect(addr).await.expect("connects");
    let accepting = tokio::spawn(async move { behind.accept(&listener).await.map(drop) });
    let mut buffer = [0; 1];
    assert_eq!(silent.read(&mut buffer).await.expect("an end"), 0);
    assert!(!accepting.is_finished());
    accepting.abort();
}

use std::io::ErrorKind;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::*;

/// A link that `a` dialled to `b`.
async fn link(net: &MemoryNet) -> (Wire, Wire) {
    let listener = net.listen("b").expect("listens");
    let ours = net.node("a").dial("b").expect("dials");
    (ours, listener.accept().await)
}

/// `true` if nothing arrives, however long one waits.
async fn is_silent(wire: &mut Wire) -> bool {
    timeout(Duration::from_secs(3600), wire.read_u8()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_and_the_end_of_the_stream_after_them() {
    let (mut ours, mut theirs) = link(&MemoryNet::new()).await;
    ours.write_all(b"hello").await.expect("writes");
    drop(ours);
    let mut text = String::new();
    theirs.read_to_string(&mut text).await.expect("reads");
    assert_eq!(text, "hello");
    assert_eq!(theirs.write_u8(1).await.expect_err("nobody reads").kind(), ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn writer_waits_for_the_reader() {
    let (mut ours, mut theirs) = link(&MemoryNet::new()).await;
    ours.write_all(&[0; BUFFER_BYTES]).await.expect("fits");
    assert!(timeout(Duration::from_secs(3600), ours.write_u8(1)).await.is_err());
    theirs.read_u8().await.expect("reads");
    ours.write_u8(1).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn cut_link_is_reset_at_both_ends_and_a_new_one_works() {
    let net = MemoryNet::new();
    let listener = net.listen("b").expect("listens");
    let mut ours = net.node("a").dial("b").expect("dials");
    let mut theirs = listener.accept().await;
    ours.write_all(b"lost").await.expect("writes");
    assert_eq!((net.links("a", "b"), net.cut("b", "a"), net.links("a", "b")), (1, 1, 0));
    assert_eq!(theirs.read_u8().await.expect_err("reset").kind(), ErrorKind::ConnectionReset);
    assert_eq!(ours.read_u8().await.expect_err("reset").kind(), ErrorKind::ConnectionReset);
    assert_eq!(ours.write_u8(1).await.expect_err("reset").kind(), ErrorKind::ConnectionReset);
    let mut ours = net.node("a").dial("b").expect("dials again");
    ours.write_u8(7).await.expect("writes");
    assert_eq!(listener.accept().await.read_u8().await.expect("reads"), 7);
}

#[tokio::test(start_paused = true)]
async fn frozen_bytes_arrive_when_the_flow_is_open_again() {
    let net = MemoryNet::new();
    let (mut ours, mut theirs) = link(&net).await;
    net.set_flow("a", "b", Flow::Frozen);
    ours.write_u8(7).await.expect("writes");
    assert!(is_silent(&mut theirs).await);
    theirs.write_u8(8).await.expect("the other way is open");
    assert_eq!(ours.read_u8().await.expect("reads"), 8);
    net.set_flow("a", "b", Flow::Open);
    assert_eq!(theirs.read_u8().await.expect("reads"), 7);
}

#[tokio::test(start_paused = true)]
async fn lost_bytes_vanish_in_one_direction_only() {
    let net = MemoryNet::new();
    net.set_flow("a", "b", Flow::Lost);
    let (mut ours, mut theirs) = link(&net).await;
    ours.write_all(&[0; 2 * BUFFER_BYTES]).await.expect("the writer does not notice");
    assert_eq!(net.bytes("a", "b"), 2 * BUFFER_BYTES as u64);
    assert!(is_silent(&mut theirs).await);
    theirs.write_u8(8).await.expect("writes");
    assert_eq!(ours.read_u8().await.expect("reads"), 8);
}

#[tokio::test(start_paused = true)]
async fn delayed_bytes_take_their_time_and_keep_their_order() {
    let net = MemoryNet::new();
    let (mut ours, mut theirs) = link(&net).await;
    net.set_delay("a", "b", Duration::from_secs(2));
    let start = Instant::now();
    ours.write_u8(1).await.expect("writes");
    net.set_delay("a", "b", Duration::ZERO);
    ours.write_u8(2).await.expect("writes");
    assert_eq!(theirs.read_u8().await.expect("reads"), 1);
    assert_eq!(theirs.read_u8().await.expect("reads"), 2);
    assert!(start.elapsed() >= Duration::from_secs(2), "of the virtual clock");
}

#[tokio::test(start_paused = true)]
async fn refused_way_lets_nobody_through_and_keeps_what_is_open() {
    let net = MemoryNet::new();
    let (mut ours, mut theirs) = link(&net).await;
    net.set_refused("a", "b", true);
    assert_eq!(net.node("a").dial("b").expect_err("refused").code(), &ErrorCode::NoConnections);
    ours.write_u8(1).await.expect("writes");
    assert_eq!(theirs.read_u8().await.expect("reads"), 1);
}

#[tokio::test(start_paused = true)]
async fn address_belongs_to_one_listener_until_it_is_dropped() {
    let net = MemoryNet::new();
    let listener = net.listen("b").expect("listens");
    assert_eq!(net.listen("b").expect_err("in use").code(), &ErrorCode::CannotBind);
    drop(listener);
    assert_eq!(net.dial("a", "b").expect_err("gone").code(), &ErrorCode::NoConnections);
    net.listen("b").expect("free again");
    assert_eq!(MemoryNet::new().dial("a", "b").expect_err("another network").code(), &ErrorCode::NoConnections);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn stream_is_the_same_however_it_is_cut_up(writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..12), read in 1usize..70_000) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let received = runtime.block_on(async {
            let net = MemoryNet::new();
            net.set_delay("a", "b", Duration::from_millis(3));
            let (mut ours, mut theirs) = link(&net).await;
            let write = async {
                for bytes in &writes {
                    ours.write_all(bytes).await.expect("writes");
                }
                drop(ours);
            };
            let receive = async {
                let (mut received, mut buffer) = (Vec::new(), vec![0; read]);
                loop {
                    match theirs.read(&mut buffer).await.expect("reads") {
                        0 => return received,
                        count => received.extend_from_slice(&buffer[..count]),
                    }
                }
            };
            tokio::join!(write, receive).1
        });
        prop_assert_eq!(received, writes.concat());
    }
}

//! The head of an HTTP message, read from a stream that will soon carry something else.
//!
//! Both the WebSocket upgrade and the tunnel of a proxy begin with one head each way. It comes in pieces of any size, is bounded, and is given up at the
//! first byte that shows that the other side speaks something else.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Largest head.
pub(super) const BYTES_MAX: usize = 8 * 1024;
const END: &[u8] = b"\r\n\r\n";
const READ_BYTES: usize = 1024;

/// A head with its last empty line, and what came behind it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) bytes: Vec<u8>,
    pub(super) rest: Vec<u8>,
}

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeadFault {
    #[error("the connection was closed before the end of the HTTP head")]
    Closed,
    #[error("what came is not HTTP")]
    NotHttp,
    #[error("the HTTP head is larger than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("{0}")]
    Io(io::Error),
}

/// Reads a head that begins with `start`, such as `HTTP/1.`. The caller bounds the time.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), start: &[u8]) -> Result<Head, HeadFault> {
    let mut bytes = Vec::new();
    let mut chunk = [0; READ_BYTES];
    loop {
        let count = stream.read(&mut chunk).await.map_err(HeadFault::Io)?;
        if count == 0 {
            return Err(HeadFault::Closed);
        }
        // The end may lie across two pieces.
        let searched = bytes.len().saturating_sub(END.len() - 1);
        bytes.extend_from_slice(&chunk[..count]);
        let compared = start.len().min(bytes.len());
        if bytes[..compared] != start[..compared] {
            return Err(HeadFault::NotHttp);
        }
        if let Some(at) = bytes[searched..].windows(END.len()).position(|window| window == END) {
            let rest = bytes.split_off(searched + at + END.len());
            if bytes.len() > BYTES_MAX {
                return Err(HeadFault::TooLarge);
            }
            return Ok(Head { bytes, rest });
        }
        if bytes.len() > BYTES_MAX {
            return Err(HeadFault::TooLarge);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const START: &[u8] = b"HTTP/1.";

    /// What is read of these pieces.
    fn read_pieces(pieces: Vec<Vec<u8>>) -> Result<Head, HeadFault> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (mut ours, mut theirs) = tokio::io::duplex(64);
            let write = async {
                for piece in pieces {
                    // The reader stops where it has seen enough.
                    let _ = theirs.write_all(&piece).await;
                }
                drop(theirs);
            };
            let read = async {
                let head = read(&mut ours, START).await;
                drop(ours);
                head
            };
            tokio::join!(write, read).1
        })
    }

    #[test]
    fn what_is_no_head_is_told_apart() {
        assert!(matches!(read_pieces(vec![b"HTTP/1.1 200 OK\r\n".to_vec()]), Err(HeadFault::Closed)));
        assert!(matches!(read_pieces(vec![b"HTT".to_vec(), b"Q".to_vec()]), Err(HeadFault::NotHttp)));
        assert!(matches!(read_pieces(vec![]), Err(HeadFault::Closed)));
        let endless = [START, &vec![b'x'; BYTES_MAX]].concat();
        assert!(matches!(read_pieces(vec![endless.clone()]), Err(HeadFault::TooLarge)));
        assert!(matches!(read_pieces(vec![endless, b"\r\n\r\n".to_vec()]), Err(HeadFault::TooLarge)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn head_is_the_same_however_it_is_cut_up(
            // No line is empty: the first such line ends the head.
            text in "([a-z ]{1,20}(\r\n)?){0,20}",
            rest in prop::collection::vec(any::<u8>(), 0..50),
            sizes in prop::collection::vec(1usize..40, 1..20),
        ) {
            let head = [START, text.as_bytes(), b"x\r\n\r\n"].concat();
            let whole = [head.clone(), rest.clone()].concat();
            let (mut pieces, mut left) = (Vec::new(), whole.as_slice());
            for size in sizes.into_iter().cycle() {
                if left.is_empty() { break; }
                let (piece, more) = left.split_at(size.min(left.len()));
                pieces.push(piece.to_vec());
                left = more;
            }
            let read = read_pieces(pieces).expect("a head");
            prop_assert_eq!(&read.bytes, &head);
            prop_assert!(rest.starts_with(&read.rest));
        }
    }
}

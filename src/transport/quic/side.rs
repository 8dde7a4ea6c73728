//! Streams beside the link stream.

use std::fmt;
use std::io;
use std::sync::Arc;

use quinn::VarInt;

use super::stream::{Reader, Shared, Writer};
use super::{SIDE_STREAMS_MAX, TRUSTED_BYTES, io_error};
use crate::transport::{ReadHalf, WriteHalf};

/// Opens and accepts streams of one direction beside the link stream. The bytes of each arrive in order, whatever happens to those of the others. Clones
/// are the same.
#[derive(Clone)]
pub struct SideStreams {
    shared: Arc<Shared>,
}

impl fmt::Debug for SideStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SideStreams").finish_non_exhaustive()
    }
}

impl SideStreams {
    /// The peer is trusted from here on: it may open streams, and send without waiting for us.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.connection.set_receive_window(VarInt::from_u32(TRUSTED_BYTES));
        shared.connection.set_max_concurrent_uni_streams(VarInt::from_u32(SIDE_STREAMS_MAX));
        Self { shared }
    }

    /// Opens a stream to the peer, once it allows one more. The peer hears of it with the first bytes.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn open(&self) -> io::Result<WriteHalf> {
        let send = self.shared.connection.open_uni().await.map_err(|error| io_error(&error))?;
        Ok(Box::new(Writer::side(send, Arc::clone(&self.shared))))
    }

    /// The next stream of the peer. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn accept(&self) -> io::Result<ReadHalf> {
        let recv = self.shared.connection.accept_uni().await.map_err(|error| io_error(&error))?;
        Ok(Box::new(Reader::side(recv, Arc::clone(&self.shared))))
    }
}

//! Lets work rest and go on.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether work may begin; clones belong together.
#[derive(Clone, Debug)]
pub struct Gate {
    is_closed: Arc<watch::Sender<bool>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { is_closed: Arc::new(watch::Sender::new(false)) }
    }
}

impl Gate {
    /// What has begun ends; nothing else begins.
    pub fn close(&self) {
        self.is_closed.send_replace(true);
    }

    /// Work goes on.
    pub fn open(&self) {
        self.is_closed.send_replace(false);
    }

    /// Whether work rests.
    pub fn is_closed(&self) -> bool {
        *self.is_closed.borrow()
    }

    /// Resolves while it is open.
    pub async fn passed(&self) {
        // The sender lives as long as `self`.
        let _ = self.is_closed.subscribe().wait_for(|is_closed| !is_closed).await;
    }
}

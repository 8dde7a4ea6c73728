//! The wish that work ends.

use std::sync::Arc;

use tokio::sync::watch;

/// Cancels work that is under way; clones belong together.
#[derive(Clone, Debug)]
pub struct Cancel {
    state: Arc<watch::Sender<bool>>,
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new(false)) }
    }

    /// Cancels; there is no way back.
    pub fn cancel(&self) {
        self.state.send_replace(true);
    }

    /// Whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.state.borrow()
    }

    /// Resolves when it is cancelled.
    pub async fn cancelled(&self) {
        let mut receiver = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = receiver.wait_for(|is_cancelled| *is_cancelled).await;
    }
}

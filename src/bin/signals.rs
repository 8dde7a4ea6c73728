//! What the operating system asks of us.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, from the moment this exists.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Takes the signals over; the process does not end by them any more.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next of them; returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        // A stream of signals never ends; if it did, waiting for ever is right.
        tokio::select! {
            Some(()) = self.interrupt.recv() => "SIGINT",
            Some(()) = self.terminate.recv() => "SIGTERM",
            else => std::future::pending().await,
        }
    }
}

/// SIGHUP of a daemon, from the moment this exists: read again what can change. The process does not end by it any more, whether `nohup` started it or not.
pub(crate) struct ReloadSignal(Signal);

impl ReloadSignal {
    /// Takes the signal over.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // A stream of signals never ends; if it did, waiting for ever is right.
            std::future::pending::<()>().await;
        }
    }
}

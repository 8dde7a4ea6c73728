//! Who the control nodes are, and which of them live.
//!
//! ```text
//!   dialling, links ──► Keeper (task) ──► Machine (pure) ──► View, published to all of the control node
//!        ▲                  │   ▲                             list of members, written down
//!        └── Dial, Close ───┘   └── envelopes ◄── Carrier ◄── links of our own, or actors of ractor
//! ```
//!
//! [`machine`] decides, from [`envelope`]s and time alone; [`table`] holds what was heard of everybody, [`graph`] says who is alive, [`dials`] whom to look for.

mod carrier;
mod dials;
mod envelope;
mod fault;
mod graph;
mod keeper;
mod machine;
pub(super) mod operations;
mod saved;
#[cfg(test)]
mod simulation;
mod table;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use self::carrier::actors::Actors;
pub(super) use self::dials::DialNumber;
pub(super) use self::envelope::RowState;
use self::keeper::{Event, Keeper};
pub(super) use self::keeper::{Membership, Turns};
use self::machine::Setup;
use super::shared::Shared;
use crate::ring::RingSize;

/// Membership before its keeper runs: what it is told meanwhile is read then.
pub(super) struct Prepared {
    handle: Membership,
    events: tokio::sync::mpsc::UnboundedReceiver<Event>,
}

impl Prepared {
    pub(super) fn new() -> Self {
        let (handle, events) = Membership::channel();
        Self { handle, events }
    }

    pub(super) fn handle(&self) -> Membership {
        self.handle.clone()
    }

    /// Starts to look for the others.
    pub(super) async fn start(self, shared: &Arc<Shared>) {
        let config = Arc::clone(&shared.config);
        let state_dir = config.state_dir.clone();
        let saved = tokio::task::spawn_blocking(move || saved::read(&state_dir)).await.unwrap_or_default();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Larger than any before on this state directory, whatever the clock says; and where there was none, most likely.
        let generation = u64::try_from(wall.as_millis()).unwrap_or(0).max(saved.generation.saturating_add(1));
        let setup = Setup {
            id: shared.id.clone(),
            incarnation: shared.incarnation,
            generation,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            listen: shared.listen.get().cloned().unwrap_or_default(),
            ring_size: RingSize::new(config.ring_size).expect("the configuration was checked"),
            staged_joins: config.staged_joins,
            split: config.split,
            seeds: config.cluster_addr.clone(),
            saved,
            random: rand::random(),
        };
        let actors = match shared.dial.memory {
            // Nodes on a memory network share a process, and so the registries of ractor.
            Some(_) => None,
            None => {
                let started = Actors::start(&shared.id, shared.incarnation, shared.party.keyring(), self.handle.clone()).await;
                started.inspect_err(|error| tracing::error!(%error, "membership travels on the data links only")).unwrap_or_default()
            }
        };
        Keeper::spawn(shared, self.handle, self.events, setup, actors);
    }
}

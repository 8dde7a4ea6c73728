//! A worker that is reached over a link of another control node works like any other, but each of its calls crosses one node more. So a direct way is looked
//! for in the background: the worker is dialled where it listens, and asked to dial us if that fails. Workers behind one address of a balancer, or that cannot
//! be reached at all, stay as they are, and are tried again, less and less often.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::task::JoinHandle;

use super::actor::{Own, ProxyActor};
use super::state::LinkKey;
use super::{Msg, Proxy};
use crate::connection::LinkParts;
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::control::shared::Shared;
use crate::control::workers;
use crate::proto::auth::Role;
use crate::proto::message::{Message, Redirect};
use crate::proto::session::Side;
use crate::types::NodeUri;

/// Pause after the first attempt, which may have met a crowd at the door; it doubles with each further one. Half of it is random.
const PAUSE: Duration = Duration::from_secs(4);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30 * 60);

impl ProxyActor {
    /// The worker obeys over this link; a direct one is looked for if it is not.
    pub(super) fn improve(&self, own: &mut Own, key: LinkKey) {
        own.improving.take().inspect(JoinHandle::abort);
        if !own.lent.contains(&key) {
            return;
        }
        let listen = own.state.describe.as_ref().map(|describe| describe.listen.clone()).unwrap_or_default();
        let addresses = own.found_at.iter().cloned().chain(listen).collect();
        let search = Search { addresses, proxy: Arc::clone(&self.proxy) };
        own.improving = Some(tokio::spawn(search.run(Arc::clone(&self.shared))));
    }

    /// Asks the worker to dial us.
    pub(super) fn redirect(&self, own: &Own) {
        let addresses = self.shared.listen.get().cloned().unwrap_or_default();
        if own.is_over_lent_link()
            && !addresses.is_empty()
            && let Some(current) = self.proxy.current()
        {
            current.channel.message(&Message::Redirect(Redirect { addresses }));
        }
    }
}

/// Looks for a direct way until it is aborted.
struct Search {
    addresses: Vec<NodeUri>,
    proxy: Arc<Proxy>,
}

impl Search {
    async fn run(self, shared: Arc<Shared>) {
        let expect = Expect::node(Role::Worker, self.proxy.id.clone());
        let mut pause = PAUSE;
        loop {
            let is_direct = match self.addresses.is_empty() {
                true => false,
                false => match dial_and_establish(&self.addresses, &shared.party, &expect, Order::AsGiven, &shared.dial).await {
                    Ok(established) => {
                        let dialled = established.uri.clone();
                        let link = workers::start(&shared, LinkParts { established, side: Side::Dialler }, dialled);
                        // Ends this task if the worker obeys over it; else the link ends.
                        link.ended().await;
                        true
                    }
                    Err(error) => {
                        tracing::debug!(worker = %self.proxy.id, error = %crate::error::Error::from(error), "no direct way to the worker");
                        false
                    }
                },
            };
            if !is_direct && !self.proxy.cast(Msg::Redirect) {
                return;
            }
            let part = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(part)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

//! Dials a worker that has gone away.

use std::sync::Arc;

use super::{Msg, Proxy};
use crate::connection::LinkParts;
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::control::shared::Shared;
use crate::control::workers;
use crate::proto::auth::Role;
use crate::proto::session::Side;
use crate::types::NodeUri;

/// One attempt to dial a worker that has gone away.
pub(super) struct Dial {
    pub(super) number: u64,
    pub(super) addresses: Vec<NodeUri>,
    pub(super) proxy: Arc<Proxy>,
}

impl Dial {
    /// The worker introduces itself on the new link, which ends this task.
    pub(super) async fn run(self, shared: Arc<Shared>) {
        let Self { number, addresses, proxy } = self;
        let expect = Expect::node(Role::Worker, proxy.id.clone());
        let error = match dial_and_establish(&addresses, &shared.party, &expect, Order::AsGiven, &shared.dial).await {
            Ok(established) => {
                let dialled = established.uri.clone();
                let link = workers::start(&shared, LinkParts { established, side: Side::Dialler }, dialled);
                link.ended().await
            }
            Err(error) => error.into(),
        };
        proxy.cast(Msg::DialFailed { dial: number, error });
    }
}

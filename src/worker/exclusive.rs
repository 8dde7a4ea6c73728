//! One more connection, because the holder asks for it.
//!
//! A control node that wants a connection of its own for some calls dials the worker. Where it cannot, because the worker has no listener or stands behind a
//! firewall, it asks for it over the channel of the adoption, and the worker dials the same control node at the address by which it is connected. What then
//! comes over that link are calls on a channel which the holder binds to its term; the link is no adoption, and this worker's agent does not know of it.

use std::sync::Arc;

use super::handler;
use super::shared::Shared;
use crate::connection::{Channel, Link};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::message::{ExclusiveDial, ExclusiveHere, Message};
use crate::types::NodeUri;

/// Such connections at a time. A control node asks for fewer; more are refused.
pub(super) const EXCLUSIVE_MAX: usize = 16;

/// Dials where `way` leads, and says so there, or says on `channel` why not.
pub(super) fn dial(shared: &Arc<Shared>, channel: &Channel, way: Option<NodeUri>, asked: ExclusiveDial) {
    let (shared, channel) = (Arc::clone(shared), channel.clone());
    let request = asked.request;
    let place = Arc::clone(&shared.exclusive).try_acquire_owned();
    tokio::spawn(async move {
        let made = match place {
            Ok(place) => connect(&shared, &channel, way).await.map(|link| (link, place)),
            Err(_) => {
                Err(Error::new(ErrorCode::Busy, format!("worker {} has {EXCLUSIVE_MAX} exclusive connections, the most it may", shared.id)))
            }
        };
        match made {
            Ok((link, place)) => {
                link.channel_zero().message(&Message::ExclusiveHere(ExclusiveHere { request, refused: None }));
                link.ended().await;
                drop(place);
            }
            Err(error) => {
                let refused = Some(error.bounded());
                channel.message(&Message::ExclusiveHere(ExclusiveHere { request, refused }));
            }
        }
    });
}

async fn connect(shared: &Arc<Shared>, channel: &Channel, way: Option<NodeUri>) -> Result<Link> {
    let control = channel.link().peer().id.clone();
    let (Some(connector), Some(way)) = (&shared.connector, way) else {
        return Err(Error::new(ErrorCode::NoConnections, format!("worker {} was dialled and knows no way to {control}", shared.id)));
    };
    let dialled = connector.connect_again(way, control).await?;
    Ok(Link::start(dialled.parts, dialled.options, |link| handler::new(Arc::clone(shared), link, None)))
}

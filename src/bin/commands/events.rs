//! Live events until Ctrl-C.

use nkcluster::cluster::{EventBody, EventFilter, EventRecord};
use nkcluster::types::{ClassName, NodeId};
use serde_json::json;

use super::Session;
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};
use crate::signals::StopSignals;

pub(super) async fn follow(session: &Session, class: Option<ClassName>, node: Option<NodeId>) -> Outcome {
    let mut signals = StopSignals::install().map_err(|error| Failure::io("cannot handle signals", &error))?;
    let filter = EventFilter { class, node };
    let subscribed = tokio::time::timeout(session.timeout, session.cluster.events(filter)).await;
    let mut events = subscribed.map_err(|_| Failure::new("timeout", "the events did not start in time").with_exit(exit::TIMEOUT))??;
    // From here on nothing is missed: scripts wait for this line before they do what they want to see.
    output::to_stderr(&match session.form {
        Form::Json => json!({ "following": true }).to_string(),
        Form::People => "following events, Ctrl-C ends".to_owned(),
    });
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            _ = signals.next() => return Ok(()),
        };
        match next {
            Some(Ok(event)) => print(session.form, &event)?,
            Some(Err(error)) => return Err(Failure::unreached(&error)),
            None => return Err(Failure::new("connection_failed", "the control node ended the events").with_exit(exit::UNREACHED)),
        }
    }
}

fn print(form: Form, record: &EventRecord) -> Outcome {
    let document = record.to_json()?;
    match form {
        Form::Json => form.document(&document),
        Form::People => {
            let (time, node, class, seq) = (output::clock(record.time_ms), &record.node, &record.class, record.seq);
            let what = match &record.event {
                EventBody::Class(_) => document["event"].to_string(),
                EventBody::Nkcluster(_) => document["event"]["nkcluster"].to_string(),
            };
            form.line(format!("{time} {node} {class} #{seq} {what}"))
        }
    }
}

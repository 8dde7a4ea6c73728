//! Requests, tasks, functions.

use nkcluster::types::{ClassName, NodeId, Payload};
use serde_json::{Value, json};

use super::{Session, json_argument};
use crate::cli::TaskCommand;
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output;

pub(super) async fn request(session: &Session, node: &NodeId, class: &ClassName, text: &str) -> Outcome {
    let payload = json_argument(text).await?;
    let reply = session.cluster.request(node, class, payload, session.options()).await?;
    print_reply(session, &json_of(&reply)?)
}

pub(super) async fn call(session: &Session, node: &NodeId, function: &str, args: &[String]) -> Outcome {
    let mut values = Vec::with_capacity(args.len());
    for (index, text) in args.iter().enumerate() {
        let wrong = |error: serde_json::Error| {
            let message = format!("argument {} of {function} is not JSON: {error}; a text stands in double quotes", index + 1);
            Failure::usage("invalid_payload", message)
        };
        values.push(serde_json::from_str::<Value>(text).map_err(wrong)?);
    }
    let reply = session.cluster.call_function(node, function, values, session.options()).await?;
    print_reply(session, &reply)
}

pub(super) async fn task(session: &Session, command: TaskCommand) -> Outcome {
    match command {
        TaskCommand::Start { node, class, payload, id } => {
            let spec = json_argument(&payload).await?;
            let mut options = session.options();
            options.task_id = id;
            let started = session.cluster.start_task(&node, &class, spec, options).await?;
            let reply = json_of(&started.reply)?;
            session.form.print(&json!({ "task_id": started.id, "reply": reply }), || match &reply {
                Value::Null => format!("task {} runs on {node}", started.id),
                reply => format!("task {} runs on {node}: {reply}", started.id),
            })
        }
        TaskCommand::List { node, class } => {
            let tasks = session.cluster.tasks(&node, class, session.timeout).await?;
            session.form.print(&tasks, || table(&tasks))
        }
        TaskCommand::Command { node, class, id, payload } => {
            let command = json_argument(&payload).await?;
            let reply = session.cluster.command(&node, &class, &id, command, session.options()).await?;
            print_reply(session, &json_of(&reply)?)
        }
        TaskCommand::Stop { node, class, id } => {
            session.cluster.stop_task(&node, &class, &id, session.timeout).await?;
            session.form.print(&json!({ "task_id": id }), || format!("task {id} is stopped"))
        }
    }
}

fn table(tasks: &[nkcluster::cluster::TaskEntry]) -> String {
    if tasks.is_empty() {
        return "no tasks".to_owned();
    }
    let mut table = output::table(["class", "id", "started", "state"]);
    for task in tasks {
        let state = format!("{:?}", task.state).to_lowercase();
        table.add_row([task.class.to_string(), task.id.to_string(), output::clock(task.started), state]);
    }
    output::text_of(&table)
}

/// A class that says nothing may answer without any bytes.
fn json_of(payload: &Payload) -> Outcome<Value> {
    match payload.is_empty() {
        true => Ok(Value::Null),
        false => Ok(payload.to_json().map_err(|error| Failure::from(error).with_exit(exit::FAILED))?),
    }
}

/// People get the reply alone, indented.
fn print_reply(session: &Session, reply: &Value) -> Outcome {
    session.form.print(&json!({ "reply": reply }), || format!("{reply:#}"))
}

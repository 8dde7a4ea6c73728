//! Labels and the key/value store of a worker.

use nkcluster::types::{Meta, NodeId};
use serde_json::{Value, json};

use super::Session;
use crate::cli::{DataOperation, MetaChange};
use crate::failure::Outcome;
use crate::output;

pub(super) async fn meta(session: &Session, node: &NodeId, change: Option<MetaChange>) -> Outcome {
    let (cluster, timeout) = (&session.cluster, session.timeout);
    let labels = match change {
        None => cluster.meta(node, timeout).await?,
        Some(MetaChange::Set { tokens }) => cluster.update_meta(node, tokens, timeout).await?,
        Some(MetaChange::Unset { keys }) => cluster.remove_meta(node, names(keys), timeout).await?,
    };
    session.form.print(&labels, || table(&labels))
}

fn names(keys: Vec<String>) -> Vec<String> {
    keys.iter().flat_map(|key| key.split([',', ' '])).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn table(labels: &Meta) -> String {
    if labels.is_empty() {
        return "no labels".to_owned();
    }
    let mut table = output::table(["label", "values"]);
    for label in labels {
        let values: Vec<_> = label
            .values()
            .map(|(key, value)| match value {
                Some(value) => format!("{key}={value}"),
                None => key.to_owned(),
            })
            .collect();
        table.add_row([label.name().to_owned(), values.join(", ")]);
    }
    output::text_of(&table)
}

pub(super) async fn data(session: &Session, node: &NodeId, operation: DataOperation) -> Outcome {
    let (cluster, timeout) = (&session.cluster, session.timeout);
    match operation {
        DataOperation::Get { key } => {
            let value = cluster.data(node, &key, timeout).await?;
            session.form.print(&json!({ "value": value }), || value.to_string())
        }
        DataOperation::Put { key, value } => {
            cluster.put_data(node, &key, json_or_text(&value), timeout).await?;
            session.form.print(&json!({ "key": key }), || format!("{key} is stored on {node}"))
        }
        DataOperation::Del { key } => {
            cluster.delete_data(node, &key, timeout).await?;
            session.form.print(&json!({ "key": key }), || format!("{key} is deleted on {node}"))
        }
    }
}

/// What is not JSON is a text, so that nobody has to quote a word twice.
fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_json_is_a_text() {
        assert_eq!(json_or_text("{\"a\":1}"), json!({ "a": 1 }));
        assert_eq!(json_or_text("12"), json!(12));
        assert_eq!(json_or_text("alice"), json!("alice"));
        assert_eq!(json_or_text(""), json!(""));
    }

    #[test]
    fn names_are_separated_by_commas_or_blanks() {
        assert_eq!(names(vec!["a,b".into(), "c d".into(), "".into()]), ["a", "b", "c", "d"]);
    }
}

//! What a URL stands for, without connecting.

use nkcluster::transport::{self, DialOptions, ProxyEnvironment, Target};
use nkcluster::types::NodeUri;
use serde_json::{Value, json};

use super::resolver;
use crate::cli::Global;
use crate::failure::{Failure, Outcome};
use crate::output::{Form, table, text_of};

pub(super) async fn run(uri: &NodeUri, global: &Global, form: Form) -> Outcome {
    let options = DialOptions {
        connect_timeout: global.timeout,
        proxies: ProxyEnvironment::of_process(),
        resolver: resolver(global),
        ..DialOptions::default()
    };
    let targets = transport::resolve(uri, &options).await.map_err(Failure::from)?;
    let document: Vec<Value> = targets.iter().map(document).collect();
    form.print(&document, || {
        let mut table = table(["transport", "address", "from"]);
        for target in &targets {
            table.add_row([target.transport.to_string(), target.address(), from(target)]);
        }
        text_of(&table)
    })
}

fn document(target: &Target) -> Value {
    json!({
        "transport": target.transport,
        "address": target.address(),
        "uri": target.uri.clone().without_secrets().to_string(),
        "proxy": target.proxy(),
        "supported": target.is_supported(),
        "from": steps(target),
    })
}

fn steps(target: &Target) -> Vec<String> {
    target.steps().iter().map(ToString::to_string).collect()
}

/// The steps on one line, and what is special about the address.
fn from(target: &Target) -> String {
    let steps = match target.steps() {
        [] if target.proxy().is_some() => "looked up by the proxy".to_owned(),
        [] => "no DNS needed".to_owned(),
        _ => steps(target).join(" -> "),
    };
    let proxy = target.proxy().map(|proxy| format!(", through {proxy}")).unwrap_or_default();
    let unsupported = if target.is_supported() { "" } else { ", unsupported: would be passed over" };
    format!("{steps}{proxy}{unsupported}")
}

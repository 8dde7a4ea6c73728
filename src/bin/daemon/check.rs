//! What `--check-config` prints.

use nkcluster::config::{ClassList, Config};
use nkcluster::types::NodeUri;

/// The node that would run, as keys and values; no secrets.
pub(super) fn report(config: &Config) -> String {
    let path = |path: &std::path::Path| quoted(&path.display().to_string());
    let mut lines = vec![
        ("role", quoted(config.role.name())),
        ("node_id", config.node_id.as_ref().map_or_else(|| "# random at every start".to_owned(), |id| quoted(id.as_str()))),
        ("cluster_name", quoted(&config.cluster_name)),
        ("cluster_addr", quoted(&list(&config.cluster_addr))),
        ("listen", quoted(&list(&config.listen))),
        ("meta", quoted(&config.meta.to_string())),
        ("classes", classes(&config.classes)),
        ("grants", classes(&config.grants)),
        ("state_dir", path(&config.state_dir)),
        ("file_root", path(&config.file_root())),
        ("http", config.http.map_or_else(|| quoted("off"), |address| quoted(&address.to_string()))),
        ("log", quoted(&config.log)),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    let lines = lines.iter().map(|(key, value)| match value.strip_prefix('#') {
        Some(comment) => format!("# {key}:{comment}"),
        None => format!("{key} = {value}"),
    });
    let warnings = config.warnings().into_iter().map(|warning| format!("# warning: {warning}"));
    lines.chain(warnings).collect::<Vec<_>>().join("\n")
}

/// A TOML string; JSON's escapes are among those of TOML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list(uris: &[NodeUri]) -> String {
    uris.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn classes(list: &ClassList) -> String {
    let names: Vec<_> = match list {
        ClassList::All => vec![quoted("*")],
        ClassList::Only(names) => names.iter().map(|name| quoted(name.as_str())).collect(),
    };
    format!("[{}]", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_shows_the_node_and_no_secret() {
        let mut config = Config::worker();
        config.password = "hush-hush".into();
        config.meta = "core;group=\"a b\"".parse().expect("labels");
        let report = report(&config);
        assert!(report.starts_with("role = \"worker\"\n# node_id: random"), "{report}");
        assert!(report.contains("meta = \"core;group=\\\"a b\\\"\""), "{report}");
        assert!(report.contains("classes = [\"core\"]"), "{report}");
        assert!(!report.contains("hush"), "{report}");
    }
}

//! `nkcluster resolve`.

use serde_json::json;

use crate::dns::{Dns, address, alias, naptr, srv};
use crate::support::{Cli, Ran, command};

/// The command, which must not hold up the server that answers it.
async fn resolve(arguments: &[&str]) -> Ran {
    let mut command = command(env!("CARGO_BIN_EXE_nkcluster"));
    command.arg("resolve").args(arguments);
    tokio::task::spawn_blocking(|| Ran::of(command, "")).await.expect("it ends")
}

#[tokio::test]
async fn what_would_be_tried_is_told_in_order_with_where_it_came_from() {
    let dns = Dns::start([
        ("example.org", naptr(10, 100, "NKS+D2T", "_nks._tcp.example.org")),
        ("example.org", naptr(10, 200, "NK+D2S", "_nk._sctp.example.org")),
        ("_nks._tcp.example.org", srv(1, 2, 1973, "c1.example.org")),
        ("_nk._sctp.example.org", srv(1, 2, 1972, "c1.example.org")),
        ("c1.example.org", alias("machine.example.org")),
        ("machine.example.org", address("192.0.2.1")),
    ])
    .await;
    let server = dns.addr.to_string();
    let ran = resolve(&["nkcluster://example.org;password=hidden", "--dns", &server, "--json"]).await;
    let tls = json!({
        "transport": "tls",
        "address": "192.0.2.1:1973",
        "uri": "nkcluster://example.org:1973;transport=tls",
        "proxy": null,
        "supported": true,
        "from": ["NAPTR example.org 10 100 NKS+D2T", "SRV _nks._tcp.example.org 1 2 1973 c1.example.org", "A c1.example.org"],
    });
    assert_eq!(ran.json()[0], tls);
    assert_eq!((&ran.json()[1]["transport"], &ran.json()[1]["supported"]), (&json!("sctp"), &json!(false)));
    let ran = resolve(&["nkcluster://example.org", "--dns", &server]).await;
    let text = ran.text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("TRANSPORT  ADDRESS"), "{text}");
    assert!(lines[1].contains("192.0.2.1:1973") && lines[1].ends_with("-> A c1.example.org"), "{text}");
    assert!(lines[2].starts_with("sctp") && lines[2].ends_with("unsupported: would be passed over"), "{text}");
}

#[tokio::test]
async fn a_name_without_addresses_exits_with_3_and_a_wrong_server_with_2() {
    let dns = Dns::start([]).await;
    resolve(&["nkcluster://nobody.example.org", "--json", "--dns", &dns.addr.to_string()])
        .await
        .fails(3, "no_connections")
        .naming(&["nobody.example.org", "no such name"]);
    resolve(&["nkcluster://a", "--json", "--dns", "dns.example.org"]).await.fails(2, "invalid_usage").naming(&["dns.example.org"]);
    let ran = resolve(&["nkcluster://192.0.2.1"]).await;
    assert!(ran.text().contains("tcp        192.0.2.1:1972  no DNS needed"), "{ran:?}");
}

#[tokio::test]
async fn other_commands_ask_the_same_servers() {
    let dns = Dns::start([]).await;
    let server = dns.addr.to_string();
    let ran =
        tokio::task::spawn_blocking(move || Cli::at("nkcluster://example.org").script(&["--dns", &server, "nodes"])).await.expect("ends");
    ran.fails(3, "no_connections").naming(&["example.org"]);
    assert_eq!(dns.asked("NAPTR example.org."), 1);
}

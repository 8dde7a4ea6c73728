use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::types::Secret;

fn uri(text: &str) -> NodeUri {
    text.parse().expect(text)
}

fn code_of(text: &str) -> ErrorCode {
    NodeUri::parse_list(text).expect_err(text).code().clone()
}

#[test]
fn url_is_read_into_its_parts() {
    let uri = uri("nkcluster://Host.Example.com:1234/nk;transport=wss;password=p;tls_verify=host");
    assert_eq!(uri.host(), &Host::Name("host.example.com".into()));
    assert_eq!((uri.port(), uri.path(), uri.transport()), (Some(1234), "/nk", Some(Transport::Wss)));
    assert_eq!(uri.options().password, Some(Secret::new("p")));
    assert_eq!(uri.options().tls_verify, Some(TlsVerify::Host));
}

#[test]
fn every_option_of_a_url_is_read() {
    let options =
        uri("nkcluster://a;tls_certfile=/c;tls_keyfile=/k;tls_cacertfile=\"/c a\";tls_password=s;tls_depth=16;tls_versions=\"1.3,1.2\";\
         idle_timeout=1000;connect_timeout=2000;sctp_out_streams=3;sctp_in_streams=4;no_dns_cache;tcp_listeners=5;host=h;ws_proto=w;\
         proxy=http://me:pw@proxy.local:3128;exclusive=true;binding=off;tls_verify=true;password=\"a;b,c\"")
        .options()
        .clone();
    let proxy = ProxyAddr { host: "proxy.local".into(), port: 3128, credentials: Some(Secret::new("me:pw")) };
    let expected = UriOptions {
        password: Some(Secret::new("a;b,c")),
        tls_certfile: Some("/c".into()),
        tls_keyfile: Some("/k".into()),
        tls_cacertfile: Some("/c a".into()),
        tls_password: Some(Secret::new("s")),
        tls_verify: Some(TlsVerify::True),
        tls_depth: Some(16),
        tls_versions: Some(vec![TlsVersion::V1_2, TlsVersion::V1_3]),
        idle_timeout: Some(Duration::from_secs(1)),
        connect_timeout: Some(Duration::from_secs(2)),
        sctp_out_streams: Some(3),
        sctp_in_streams: Some(4),
        no_dns_cache: Some(true),
        tcp_listeners: Some(5),
        host: Some("h".into()),
        ws_proto: Some("w".into()),
        proxy: Some(Proxy::Http(proxy)),
        exclusive: Some(true),
        binding: Some(Binding::Off),
    };
    assert_eq!(options, expected);
    assert_eq!(uri("nkcluster://a;proxy=off").options().proxy, Some(Proxy::Off));
}

#[test]
fn hosts_are_words_names_and_addresses() {
    for (text, host) in [
        ("all", Host::All),
        ("ALL6", Host::All6),
        ("localhost", Host::Localhost),
        ("node", Host::Node),
        ("10.0.0.1", Host::Ip([10, 0, 0, 1].into())),
        ("[::1]", Host::Ip(Ipv6Addr::LOCALHOST.into())),
        ("my_host-1.", Host::Name("my_host-1.".into())),
    ] {
        assert_eq!(uri(&format!("nkcluster://{text}:7")).host(), &host);
    }
    let allows = |text: &str| uri(text).host().bind_ip().map(|ip| ip.to_string());
    assert_eq!(allows("nkcluster://all").as_deref(), Some("0.0.0.0"));
    assert_eq!(allows("nkcluster://all6").as_deref(), Some("::"));
    assert_eq!(allows("nkcluster://node"), None);
}

#[test]
fn lists_take_commas_spaces_and_angle_brackets() {
    let list = NodeUri::parse_list(" nkcluster://a:1 , <nkcluster://[::1]:2/p;transport=tls>;password=x,NkCluster://c ; exclusive ")
        .expect("parses");
    let shown: Vec<_> = list.iter().map(NodeUri::to_string).collect();
    assert_eq!(shown, ["nkcluster://a:1", "nkcluster://[::1]:2/p;transport=tls;password=***", "nkcluster://c;exclusive=true"]);
    assert_eq!(NodeUri::parse_list("  "), Ok(vec![]));
}

#[test]
fn errors_have_the_codes_of_the_original() {
    assert_eq!(code_of("http://localhost"), ErrorCode::InvalidScheme);
    assert_eq!(code_of("nkcluster://localhost;transport=udp"), ErrorCode::InvalidTransport);
    assert_eq!(code_of("nkcluster://localhost;transport"), ErrorCode::InvalidTransport);
    for text in [
        "localhost",
        "nkcluster:localhost",
        "nkcluster://",
        "nkcluster://:1",
        "nkcluster://a:65536",
        "nkcluster://a:+1",
        "nkcluster://a:",
        "nkcluster://a:1x",
        "nkcluster://a b",
        "nkcluster://a,",
        ",nkcluster://a",
        "nkcluster://a,,nkcluster://b",
        "<nkcluster://a",
        "nkcluster://a>",
        "nkcluster://::1",
        "nkcluster://[::1",
        "nkcluster://[1.2.3.4]",
        "nkcluster://1.2.3",
        "nkcluster://256.1.1.1",
        "nkcluster://a..b",
        "nkcluster://ä",
        "nkcluster://me:pw@a",
        "nkcluster://a;",
        "nkcluster://a;=1",
    ] {
        assert_eq!(code_of(text), ErrorCode::InvalidUri, "{text}");
    }
    assert!("nkcluster://a,nkcluster://b".parse::<NodeUri>().is_err());
    assert!("".parse::<NodeUri>().is_err());
}

#[test]
fn bad_option_is_a_syntax_error_that_names_it() {
    for (option, name) in [
        ("tls_verify=hola", "tls_verify"),
        ("tls_verify", "tls_verify"),
        ("colour=red", "colour"),
        ("tls_depth=17", "tls_depth"),
        ("tls_versions=1.1", "tls_versions"),
        ("tls_versions=\" \"", "tls_versions"),
        ("idle_timeout=0", "idle_timeout"),
        ("connect_timeout=soon", "connect_timeout"),
        ("exclusive=maybe", "exclusive"),
        ("binding=on", "binding"),
        ("proxy=ftp://a:1", "proxy"),
        ("proxy=http://a", "proxy"),
        ("proxy=http://a:0", "proxy"),
        ("proxy=http://***@a:1", "proxy"),
        ("password=", "password"),
        ("password=\"\"", "password"),
        ("password=***", "password"),
        ("password=a;password=b", "password"),
        ("tls_certfile=\"a", "tls_certfile"),
        ("path=nk", "path"),
        ("transport=tcp;transport=tls", "transport"),
    ] {
        let error = NodeUri::parse_list(&format!("nkcluster://a;{option}")).expect_err(option);
        assert_eq!(error.code(), &ErrorCode::SyntaxError, "{option}");
        assert!(error.message().contains(&format!("`{name}`")), "{option}: {error}");
    }
}

#[test]
fn passwords_leave_a_url_only_when_they_are_asked_for() {
    let uri = uri("nkcluster://a;password=hunter2;tls_password=hunter2;proxy=http://me:hunter2@b:1");
    let shown = "nkcluster://a;password=***;tls_password=***;proxy=http://***@b:1";
    assert_eq!(uri.to_string(), shown);
    assert!(!format!("{uri:?} {:?}", uri.options()).contains("hunter2"));
    assert_eq!(serde_json::to_string(&uri).expect("encodes"), "\"nkcluster://a;proxy=http://b:1\"");
    assert!(shown.parse::<NodeUri>().is_err());
    assert_eq!(uri.options().password.as_ref().map(Secret::expose), Some("hunter2"));
    // Three stars in quotes are a password like any other.
    let stars = "nkcluster://a;password=\"***\"".parse::<NodeUri>().expect("parses");
    assert_eq!(stars.options().password, Some(Secret::new("***")));
}

#[test]
fn errors_show_no_password() {
    for text in [
        "nkcluster://me:hunter2@a",
        "nkcluster://hunter2@a",
        "nkcluster://me:hunter2/x@a",
        "a;password=hunter2",
        "me:hunter2@a",
        "nkcluster://a;password=x;hunter2",
        "nkcluster://a;password=\"hunter2",
        "nkcluster://a;password=a hunter2",
        "nkcluster://a;password=a<hunter2",
        "nkcluster://a;proxy=me:hunter2@b",
        "nkcluster://a;proxy=http://me:hunter2@b:x",
        "nkcluster://a;tls_password=hunter2;tls_password=hunter2",
    ] {
        let error = NodeUri::parse_list(text).expect_err(text);
        assert!(!error.message().contains("hunter2"), "{text}: {error}");
    }
}

#[test]
fn transport_and_port_follow_the_rules_of_the_original() {
    for (text, transport, port, naptr, srv) in [
        ("a", Transport::Tcp, 1972, true, false),
        ("a:99", Transport::Tcp, 99, false, false),
        ("a;transport=wss", Transport::Wss, 1975, false, true),
        ("a:99;transport=wss", Transport::Wss, 99, false, false),
        ("10.0.0.1", Transport::Tcp, 1972, false, false),
        ("[::1];transport=tls", Transport::Tls, 1973, false, false),
        ("localhost", Transport::Tcp, 1972, false, false),
        ("all;transport=quic", Transport::Quic, 1976, false, false),
    ] {
        let uri = uri(&format!("nkcluster://{text}"));
        assert_eq!((uri.effective_transport(), uri.effective_port()), (transport, port), "{text}");
        assert_eq!((uri.asks_naptr(), uri.asks_srv()), (naptr, srv), "{text}");
    }
}

#[test]
fn socket_is_published_with_its_real_port() {
    let addr = "127.0.0.1:15004".parse().expect("is an address");
    let published = NodeUri::socket_uri(Transport::Tcp, addr);
    assert_eq!(published.to_string(), "nkcluster://127.0.0.1:15004;transport=tcp");
    assert_eq!(published.to_string().parse(), Ok(published));
    let addr = "[::1]:1".parse().expect("is an address");
    assert_eq!(NodeUri::socket_uri(Transport::Wss, addr).to_string(), "nkcluster://[::1]:1;transport=wss");
}

#[test]
fn loopback_is_recognised() {
    for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "a;transport=memory"] {
        assert!(uri(&format!("nkcluster://{host}")).is_loopback(), "{host}");
    }
    for host in ["all", "all6", "node", "a", "10.0.0.1", "0.0.0.0", "[::]", "[::ffff:10.0.0.1]"] {
        assert!(!uri(&format!("nkcluster://{host}")).is_loopback(), "{host}");
    }
}

#[test]
fn path_is_a_slash_or_what_either_form_says() {
    assert_eq!(uri("nkcluster://a").path(), "/");
    assert_eq!(uri("nkcluster://a/b/c").path(), "/b/c");
    assert_eq!(uri("nkcluster://a;path=/b").path(), "/b");
    assert_eq!(code_of("nkcluster://a/b;path=/c"), ErrorCode::SyntaxError);
}

#[test]
fn lists_are_bounded() {
    assert_eq!(NodeUri::parse_list(&["nkcluster://a"; 256].join(",")).expect("parses").len(), 256);
    assert_eq!(code_of(&["nkcluster://a"; 257].join(",")), ErrorCode::InvalidUri);
    assert_eq!(code_of(&format!("nkcluster://a/{}", "x".repeat(NodeUri::BYTES_MAX))), ErrorCode::InvalidUri);
}

fn any_uri() -> impl Strategy<Value = NodeUri> {
    let host = prop_oneof![
        Just(Host::All),
        Just(Host::All6),
        Just(Host::Localhost),
        Just(Host::Node),
        "[a-z][a-z0-9-]{1,8}(\\.[a-z]{2,4}){1,2}".prop_map(Host::Name),
        any::<IpAddr>().prop_map(Host::Ip),
    ];
    let words = || prop::option::of("[^\\p{C}]{1,8}");
    let options = (words(), words(), words(), any::<Option<bool>>(), prop::option::of(0..=16_u8), prop::option::of(1..1000_u64));
    let options = options.prop_map(|(host, ws_proto, file, exclusive, tls_depth, idle)| UriOptions {
        host,
        ws_proto,
        tls_certfile: file.map(Into::into),
        exclusive,
        tls_depth,
        idle_timeout: idle.map(Duration::from_millis),
        tls_verify: exclusive.map(|_| TlsVerify::Host),
        tls_versions: tls_depth.map(|_| vec![TlsVersion::V1_2, TlsVersion::V1_3]),
        ..UriOptions::default()
    });
    let transport = prop::option::of(prop::sample::select(&Transport::ALL));
    (host, any::<Option<u16>>(), "(/[a-z]{0,4}){0,2}", transport, options).prop_map(|(host, port, path, transport, options)| NodeUri {
        host,
        port,
        path,
        transport,
        options,
    })
}

proptest! {
    #[test]
    fn url_returns_from_its_text(uris in prop::collection::vec(any_uri(), 0..4)) {
        let text: Vec<_> = uris.iter().map(NodeUri::to_string).collect();
        prop_assert_eq!(NodeUri::parse_list(&text.join(", ")), Ok(uris));
    }

    #[test]
    fn no_text_makes_us_panic(tail in "[a-z0-9:/;=,<>\"\\[\\]\\\\ .*@]{0,32}|\\PC{0,24}") {
        if let Ok(uris) = NodeUri::parse_list(&format!("nkcluster://{tail}")) {
            for uri in uris {
                let shown = uri.clone().without_secrets();
                prop_assert_eq!(shown.to_string().parse::<NodeUri>(), Ok(shown));
            }
        }
    }

    #[test]
    fn any_password_is_taken_and_none_is_shown(password in "[^\\p{C}]{1,16}") {
        let quoted = password.replace('\\', "\\\\").replace('"', "\\\"");
        let uri = uri(&format!("nkcluster://a;password=\"{quoted}\";exclusive"));
        prop_assert_eq!(uri.options().password.as_ref().map(Secret::expose), Some(&*password));
        prop_assert_eq!(uri.to_string(), "nkcluster://a;password=***;exclusive=true");
    }

    #[test]
    fn paths_of_files_return(path in "(/[^\\p{C}]{1,8}){1,3}") {
        let options = UriOptions { tls_keyfile: Some(Path::new(&path).to_owned()), ..UriOptions::default() };
        let uri = NodeUri::new(Host::All, None).with_options(options);
        prop_assert_eq!(uri.to_string().parse::<NodeUri>(), Ok(uri));
    }
}

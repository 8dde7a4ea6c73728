use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::*;

fn uri(text: &str) -> NodeUri {
    text.parse().expect("a valid URL")
}

fn environment(variables: &[(&str, &str)]) -> ProxyEnvironment {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    ProxyEnvironment::from_variables(|name| variables.get(name).map(|value| (*value).to_owned()))
}

/// The proxy for a URL, as text.
fn chosen(environment: &ProxyEnvironment, url: &str) -> Option<String> {
    environment.choose(&uri(url)).expect("a usable proxy").map(|proxy| Proxy::Http(proxy).to_string())
}

const WSS: &str = "nkcluster://c1.example.org:443;transport=wss";

#[test]
fn url_has_the_last_word_and_the_environment_speaks_for_web_sockets_only() {
    let variables = environment(&[("HTTPS_PROXY", "http://p.example:3128")]);
    let from_variables = Some("http://p.example:3128".to_owned());
    assert_eq!(chosen(&variables, WSS), from_variables);
    assert_eq!(chosen(&variables, "nkcluster://c1.example.org;transport=ws"), from_variables);
    assert_eq!(chosen(&variables, "nkcluster://10.0.0.1;transport=ws"), from_variables);
    for direct in ["nkcluster://c1.example.org;transport=tls", "nkcluster://c1.example.org;transport=tcp", "nkcluster://c1.example.org"] {
        assert_eq!(chosen(&variables, direct), None);
        assert_eq!(chosen(&variables, &format!("{direct};proxy=http://other:1")), Some("http://other:1".to_owned()));
    }
    for loopback in ["localhost", "127.0.0.1", "[::1]"] {
        assert_eq!(chosen(&variables, &format!("nkcluster://{loopback};transport=wss")), None);
    }
    assert_eq!(chosen(&variables, &format!("{WSS};proxy=off")), None);
    assert_eq!(chosen(&variables, &format!("{WSS};proxy=other:1")), Some("http://other:1".to_owned()));
    assert_eq!(chosen(&environment(&[]), WSS), None);
}

#[test]
fn first_variable_that_says_something_wins() {
    for (variables, expected) in [
        (&[("HTTPS_PROXY", "a:1"), ("ALL_PROXY", "b:1")][..], "http://a:1"),
        (&[("https_proxy", "c:1"), ("HTTPS_PROXY", "a:1")], "http://c:1"),
        (&[("HTTPS_PROXY", ""), ("all_proxy", "b:1")], "http://b:1"),
        (&[("ALL_PROXY", "http://b")], "http://b:80"),
        (&[("ALL_PROXY", " http://[fd00::1]/ ")], "http://[fd00::1]:80"),
        (&[("ALL_PROXY", "http://[fd00::1]:8080/")], "http://[fd00::1]:8080"),
        (&[("ALL_PROXY", "http://me:secret@b:8080")], "http://***@b:8080"),
        (&[("ALL_PROXY", "http://me:secret@b")], "http://***@b:80"),
        (&[("HTTP_PROXY", "a:1"), ("ALL_PROXY", "b:1")], "http://b:1"),
    ] {
        assert_eq!(chosen(&environment(variables), WSS).as_deref(), Some(expected));
    }
}

#[test]
fn no_proxy_names_hosts_domains_ranges_and_ports() {
    for (except, url) in [
        ("*", WSS),
        ("other, c1.example.org", WSS),
        ("EXAMPLE.org", WSS),
        (".example.org", WSS),
        ("*.example.org", WSS),
        ("example.org:443", WSS),
        ("example.org", "nkcluster://c1.example.org.;transport=wss"),
        ("10.0.0.0/8", "nkcluster://10.1.2.3;transport=ws"),
        ("10.1.2.3", "nkcluster://10.1.2.3;transport=ws"),
        ("10.1.2.3:1974", "nkcluster://10.1.2.3;transport=ws"),
        ("fd00::/8", "nkcluster://[fd00::1];transport=ws"),
        ("[fd00::1]:1974", "nkcluster://[fd00::1];transport=ws"),
    ] {
        assert_eq!(chosen(&environment(&[("HTTPS_PROXY", "p:1"), ("NO_PROXY", except)]), url), None, "{except} {url}");
    }
    for (except, url) in [
        ("", WSS),
        ("ample.org", WSS),
        ("org.example", WSS),
        ("example.org:80", WSS),
        ("10.0.0.0/8", WSS),
        ("10.0.0.0/8", "nkcluster://11.1.2.3;transport=ws"),
        ("10.1.2.3:80", "nkcluster://10.1.2.3;transport=ws"),
        ("3", "nkcluster://10.1.2.3;transport=ws"),
    ] {
        assert!(chosen(&environment(&[("HTTPS_PROXY", "p:1"), ("no_proxy", except)]), url).is_some(), "{except} {url}");
    }
}

#[test]
fn proxy_that_is_none_is_an_error_which_names_the_variable_and_no_secret() {
    for value in ["socks5://p:1080", "https://p:443", "http://me:hunter2@p:none", "http://"] {
        let variables = environment(&[("https_proxy", value)]);
        let error = variables.choose(&uri(WSS)).expect_err(value);
        assert_eq!(error.code(), &ErrorCode::InvalidConfig);
        assert!(error.message().contains("https_proxy") && !error.message().contains("hunter2"), "{error}");
        assert!(!format!("{variables:?}").contains("hunter2"));
        // Who does not need it does not notice.
        assert_eq!(chosen(&variables, "nkcluster://c1.example.org;transport=tls"), None);
        assert_eq!(chosen(&variables, &format!("{WSS};proxy=off")), None);
    }
}

fn tunnel(proxy: &str) -> Tunnel {
    match proxy.parse() {
        Ok(Proxy::Http(proxy)) => Tunnel::new(proxy, &uri(WSS)),
        other => panic!("not a proxy: {other:?}"),
    }
}

/// What a proxy that answers so leads to, and what it was asked.
async fn asked(tunnel: &Tunnel, answer: &[u8]) -> (Result<()>, String) {
    let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
    theirs.write_all(answer).await.expect("writes");
    theirs.shutdown().await.expect("shuts down");
    let result = tunnel.ask(&mut ours).await;
    drop(ours);
    let mut request = String::new();
    theirs.read_to_string(&mut request).await.expect("text");
    (result, request)
}

#[tokio::test]
async fn tunnel_is_asked_for_by_name_and_with_credentials_only_if_there_are_some() {
    let (result, request) = asked(&tunnel("http://p:1"), b"HTTP/1.0 200 Connection established\r\nX: y\r\n\r\n").await;
    result.expect("opened");
    assert!(request.starts_with("CONNECT c1.example.org:443 HTTP/1.1\r\nHost: c1.example.org:443\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n") && !request.contains("Authorization"), "{request}");
    // RFC 7617 §2, with the percent signs of URLs.
    let (_, request) = asked(&tunnel("http://Aladdin:open%20sesame@p:1"), b"HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(request.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"), "{request}");
}

#[tokio::test]
async fn proxy_that_opens_no_tunnel_is_told_with_its_reason() {
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; 9000]].concat();
    for (answer, word) in [
        (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "wants a user"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"),
        (b"HTTP/1.1 502 \x1b[31mBad\xff\r\n\r\n", "502 [31mBad"),
        (b"HTTP/1.1 301\r\nLocation: http://x\r\n\r\n", "301"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "bytes behind"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "cannot be read"),
        (b"HTTP/1.1  200 OK\r\n\r\n", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\n", "closed"),
        (b"SSH-2.0-OpenSSH_9\r\n", "does not speak HTTP"),
        (b"", "closed"),
        (&endless, "larger"),
    ] {
        let (result, _) = asked(&tunnel("http://p:1"), answer).await;
        let error = result.expect_err(word);
        assert_eq!(error.code(), &ErrorCode::NoConnections);
        assert!(error.message().contains(word), "{word}: {error}");
    }
    let (result, _) = asked(&tunnel("http://me:hunter2@p:1"), b"HTTP/1.1 407 No\r\n\r\n").await;
    let error = result.expect_err("refused").to_string();
    assert!(error.contains("does not accept") && !error.contains("hunter2"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn proxy_that_dribbles_or_is_away_costs_no_more_than_the_limit_and_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let proxy = format!("http://me:hunter2@{}", listener.local_addr().expect("bound"));
    let dribble = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        for byte in b"HTTP/1.1 200 OK\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
            if stream.write_u8(*byte).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let error = tunnel(&proxy).open(Duration::from_secs(30)).await.expect_err("too slow");
    assert_eq!(error.code(), &ErrorCode::NoConnections);
    assert!(error.message().contains("127.0.0.1") && error.message().contains("no answer"), "{error}");
    assert!(!error.message().contains("hunter2"), "{error}");
    dribble.abort();
    let _ = dribble.await;
    let error = tunnel(&proxy).open(Duration::from_secs(30)).await.expect_err("nobody listens any more");
    assert!(error.message().contains("127.0.0.1"), "{error}");
}

proptest! {
    #[test]
    fn no_answer_and_no_variable_make_us_panic(answer in prop::collection::vec(any::<u8>(), 0..60), text in "\\PC{0,30}") {
        let _ = status(&answer);
        let _ = status(&[b"HTTP/1.1 ", answer.as_slice()].concat());
        let variables = environment(&[("HTTPS_PROXY", &text), ("NO_PROXY", &text)]);
        let _ = variables.choose(&uri(WSS));
        let unescaped = text.replace('%', "");
        let bytes = plain(&Secret::from(unescaped.as_str()));
        prop_assert_eq!(bytes.as_slice(), unescaped.as_bytes());
    }
}

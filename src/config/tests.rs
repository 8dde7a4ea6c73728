use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::error::{Error, ErrorCode};

const NO_ENV: [(&str, &str); 0] = [];

fn written(dir: &TempDir, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    path
}

/// The configuration of a worker from this file.
fn from_file(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("makes a directory");
    let path = written(&dir, "node.toml", text, 0o600);
    Layers::new().flag("role", "worker")?.file(path)?.build()
}

#[test]
fn text_is_taken_like_a_file_of_that_name() {
    let built = |text| Layers::new().flag("role", "worker")?.text("from-a-vault.toml", text)?.build();
    assert_eq!(built("node_id = \"w7\"").expect("builds"), from_file("node_id = \"w7\"").expect("builds"));
    let error = built("ping_tme = 5000").expect_err("no such key");
    assert_eq!((error.file(), error.key()), (Some(Path::new("from-a-vault.toml")), Some("ping_tme")));
}

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    fs::read_to_string(path).expect("the file is shipped")
}

/// Removes the comment sign from every line `# key = value`.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| {
        let key = line.split_once(" = ").map(|(key, _)| key);
        key.is_some_and(|key| key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
    };
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if is_key(rest) => rest,
        _ => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn assert_shipped_is_default(name: &str, mut default: Config) {
    let dir = tempfile::tempdir().expect("makes a directory");
    let commented = written(&dir, "commented.toml", &shipped(name), 0o600);
    let plain = uncommented(&shipped(name));
    let open = written(&dir, "open.toml", &plain, 0o600);
    default.allow_default_password = true;
    for path in [commented, open] {
        let layers = Layers::new().file(path).expect("reads").flag("allow_default_password", "true");
        assert_eq!(layers.expect("known").build().expect("builds"), default);
    }
    let table: toml::Table = plain.parse().expect("is TOML");
    let mut said: Vec<_> = table.keys().map(String::as_str).collect();
    let mut known: Vec<_> = Config::keys().filter(|key| !matches!(*key, "is_control" | "type")).collect();
    said.sort_unstable();
    known.sort_unstable();
    assert_eq!(said, known);
}

#[test]
fn shipped_control_file_shows_every_key_with_its_default() {
    assert_shipped_is_default("control.toml", Config::control());
}

#[test]
fn shipped_worker_file_shows_every_key_with_its_default() {
    assert_shipped_is_default("worker.toml", Config::worker());
}

#[test]
fn every_field_is_a_key() {
    let debug = format!("{:#?}", Config::control());
    let fields = debug.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
    let fields: Vec<_> = fields.map(|(name, _)| name).filter(|name| !name.starts_with(' ')).collect();
    assert!(fields.len() > 50);
    for field in fields.into_iter().filter(|field| *field != "notes") {
        assert!(Config::keys().any(|key| key == field), "{field} is no key");
    }
}

/// A value for every key that differs from the default.
const OTHER_VALUES: &[(&str, &str)] = &[
    ("node_id", "dev1"),
    ("cluster_name", "other"),
    ("cluster_addr", "nkcluster://a:1, nkcluster://b"),
    ("listen", "nkcluster://localhost:1"),
    ("meta", "a;b=1"),
    ("allow_readable_secrets", "true"),
    ("password", "p"),
    ("worker_password", "p"),
    ("admin_password", "p"),
    ("control_password", "p"),
    ("control_key", "00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00fF"),
    ("node_token", "t"),
    ("node_tokens", "true"),
    ("allow_default_password", "true"),
    ("pbkdf2_iters", "1"),
    ("tls_cacertfile", "/ca"),
    ("tls_password", "p"),
    ("tls_verify", "host"),
    ("tls_depth", "16"),
    ("tls_versions", "1.2,1.3"),
    ("ping_time", "1000"),
    ("proxy_connect_retry", "1000"),
    ("stats_time", "1000"),
    ("drain_timeout", "0"),
    ("connect_timeout", "1"),
    ("idle_timeout", "1"),
    ("tcp_timeout", "1"),
    ("sctp_timeout", "1"),
    ("ws_timeout", "1"),
    ("udp_timeout", "1"),
    ("http_timeout", "1"),
    ("dns_cache_ttl", "0"),
    ("dns_servers", "192.0.2.53, [2001:db8::53]:5353"),
    ("max_connections", "1"),
    ("max_unauthenticated", "1"),
    ("accept_rate", "1"),
    ("max_calls", "1"),
    ("journal_bytes", "65536"),
    ("outcome_bytes", "65536"),
    ("trusted_proxies", "10.0.0.0/8, ::1"),
    ("allowed_origins", "https://a.example"),
    ("tcp_listeners", "1"),
    ("sctp_out_streams", "1"),
    ("sctp_in_streams", "1"),
    ("main_ip", "10.0.0.1"),
    ("main_ip6", "::2"),
    ("ext_ip", "10.0.0.1"),
    ("ext_ip6", "::2"),
    ("ring_size", "8"),
    ("staged_joins", "true"),
    ("split", "majority"),
    ("classes", "*"),
    ("grants", "files, process"),
    ("state_dir", "/var/lib/nkcluster"),
    ("file_root", "/srv"),
    ("log", "debug"),
    ("log_format", "json"),
    ("http", "127.0.0.1:80"),
];

/// The lines of the printed configuration that differ.
fn changed_fields(a: &Config, b: &Config) -> Vec<String> {
    let text = |config: &Config| format!("{config:?}");
    let fields = |text: &str| -> Vec<String> {
        let names: Vec<_> = Config::keys().map(|key| format!(" {key}: ")).collect();
        let mut starts: Vec<_> = names.iter().filter_map(|name| Some((text.find(name)?, name))).collect();
        starts.sort_unstable();
        let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
        starts.iter().zip(ends).map(|((start, _), end)| text[*start..end].to_owned()).collect()
    };
    let (a, b) = (fields(&text(a)), fields(&text(b)));
    let pairs = a.iter().zip(&b).filter(|(a, b)| a != b);
    pairs.map(|(a, _)| a.trim_start().split(':').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_key_changes_its_own_field_from_every_source() {
    let default = Config::worker();
    for (key, value) in OTHER_VALUES {
        let name = format!("NKCLUSTER_{}", key.to_uppercase());
        let by_flag = Layers::new().flag("role", "worker").and_then(|layers| layers.flag(key, *value)?.build());
        let by_env = Layers::new().env([("NKCLUSTER_ROLE", "worker"), (&name, value)]).and_then(Layers::build);
        let by_flag = by_flag.expect(key);
        assert_eq!(by_env.expect(key), by_flag);
        assert_ne!(by_flag, default, "{key}");
        // The common secret prints the same whatever it is.
        if *key != "password" {
            assert_eq!(changed_fields(&by_flag, &default), [*key]);
        }
    }
    let tried = |key: &str| OTHER_VALUES.iter().any(|(tried, _)| *tried == key);
    let elsewhere = ["role", "is_control", "type", "tls_certfile", "tls_keyfile"];
    let untried: Vec<_> = Config::keys().filter(|key| !tried(key) && !elsewhere.contains(key) && !key.ends_with("_file")).collect();
    assert!(untried.is_empty(), "{untried:?}");
}

#[test]
fn flag_beats_environment_beats_file_beats_default_in_any_order() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let path = written(&dir, "a.toml", "role = \"worker\"\nping_time = 1001\nstats_time = 1001\ndrain_timeout = 1001\n", 0o600);
    let variables = [("NKCLUSTER_PING_TIME", "1002"), ("NKCLUSTER_STATS_TIME", "1002")];
    let there = Layers::new().file(&path).and_then(|l| l.env(variables)?.flag("ping-time", "1003")?.build());
    let back = Layers::new().flag("ping_time", "1003").and_then(|l| l.env(variables)?.file(&path)?.build());
    let config = there.expect("builds");
    assert_eq!(back.expect("builds"), config);
    assert_eq!(config.ping_time.as_millis(), 1003);
    assert_eq!(config.stats_time.as_millis(), 1002);
    assert_eq!(config.drain_timeout.as_millis(), 1001);
    assert_eq!(config.connect_timeout.as_millis(), 30_000);
}

#[test]
fn role_has_three_names_and_no_default() {
    for (key, value, role) in [
        ("role", "control", Role::Control),
        ("role", "worker", Role::Worker),
        ("is_control", "true", Role::Control),
        ("is_control", "false", Role::Worker),
        ("type", "primary", Role::Control),
        ("type", "secondary", Role::Worker),
    ] {
        let layers = Layers::new().flag(key, value).and_then(|layers| layers.flag("password", "x"));
        assert_eq!(layers.and_then(Layers::build).expect("builds").role, role);
    }
    let error = Layers::new().env(NO_ENV).and_then(Layers::build).expect_err("no role");
    assert_eq!(error.key(), Some("role"));
}

#[test]
fn flag_for_the_role_beats_its_other_name_in_the_file() {
    assert_eq!(from_file("is_control = true").expect("builds").role, Role::Worker);
    let error = from_file("is_control = true\ntype = \"primary\"").map(drop);
    // The flag speaks for the role, so two names below it do no harm.
    assert_eq!(error, Ok(()));
    let both = Layers::new().flag("is_control", "true").and_then(|layers| layers.flag("role", "worker"));
    assert_eq!(both.map(drop).expect_err("two names").key(), Some("role"));
}

#[test]
fn unknown_key_is_refused_with_the_nearest_one() {
    let error = from_file("pingtime = 5").expect_err("unknown");
    assert_eq!(error.key(), Some("pingtime"));
    assert!(error.reason().contains("`ping_time`"), "{error}");
    let error = from_file("[tls]\nverify = true").expect_err("unknown");
    assert_eq!(error.key(), Some("tls"));
    let error = Layers::new().flag("quite-unlike-any", "1").map(drop).expect_err("unknown");
    assert!(!error.reason().contains("did you mean"), "{error}");
}

#[test]
fn foreign_variables_are_left_alone_and_slips_are_noted() {
    let foreign =
        [("NKCLUSTER_PORT", "tcp://10.0.0.1:1973"), ("NKCLUSTER_SERVICE_HOST", "10.0.0.1"), ("NKCLUSTER_CONNECT", "x"), ("HOME", "/")];
    let config = Layers::new().env(foreign).and_then(|l| l.flag("role", "worker")?.build()).expect("builds");
    assert!(config.notes.is_empty(), "{:?}", config.notes);
    let config = Layers::new().env([("NKCLUSTER_PASWORD", "x")]).and_then(|l| l.flag("role", "worker")?.build());
    let notes = config.expect("builds").notes;
    assert!(notes[0].contains("did you mean NKCLUSTER_PASSWORD"), "{notes:?}");
}

#[test]
fn error_names_file_key_value_and_what_was_expected() {
    let error = from_file("ping_time = 5").expect_err("too short");
    assert!(error.file().is_some());
    assert_eq!((error.key(), error.value()), (Some("ping_time"), Some("5")));
    let text = error.to_string();
    assert!(text.ends_with("node.toml: ping_time = 5: expected a number from 1000 to 60000 (milliseconds)"), "{text}");
    let error = Layers::new().env([("NKCLUSTER_ROLE", "boss")]).and_then(Layers::build).expect_err("no role");
    assert_eq!(error.to_string(), "environment: NKCLUSTER_ROLE = \"boss\": expected `control` or `worker`");
    assert_eq!(Error::from(error).code(), &ErrorCode::InvalidConfig);
}

#[test]
fn wrong_values_are_refused_by_every_bounded_key() {
    for text in [
        "ping_time = 999",
        "ping_time = 60001",
        "ping_time = -1",
        "ping_time = 5.5",
        "ping_time = \"5s\"",
        "proxy_connect_retry = 999",
        "stats_time = 0",
        "tls_depth = 17",
        "tls_versions = []",
        "tls_versions = [\"1.1\"]",
        "ring_size = 100",
        "ring_size = 4",
        "ring_size = 8192",
        "max_connections = 0",
        "node_id = \"a b\"",
        "node_id = 7",
        "classes = [\"*\", \"core\"]",
        "classes = [7]",
        "grants = \"a b\"",
        "http = \"on\"",
        "dns_servers = \"dns.example.org\"",
        "dns_servers = [\"192.0.2.53:0\"]",
        "dns_servers = \"0.0.0.0\"",
        "dns_servers = \"1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4,1.1.1.5,1.1.1.6,1.1.1.7,1.1.1.8,1.1.1.9\"",
        "trusted_proxies = [\"10.0.0.0/33\"]",
        "trusted_proxies = \"balancer.example.org\"",
        "trusted_proxies = 10",
        "allowed_origins = \"*\"",
        "allowed_origins = [\"console.example.org\"]",
        "allowed_origins = [\"https://console.example.org/\"]",
        "log_format = \"xml\"",
        "split = \"brain\"",
        "control_key = \"00\"",
        "control_key = \"+0ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff\"",
        "password = \"\"",
        "password = 7",
        "staged_joins = \"maybe\"",
        "main_ip = \"::1\"",
        "cluster_name = \"\"",
        "state_dir = \"\"",
        "pbkdf2_iters = 0",
    ] {
        let error = from_file(text).expect_err(text);
        assert_eq!(error.key(), text.split(' ').next());
    }
}

#[test]
fn errors_of_urls_and_labels_keep_their_codes() {
    for (text, code) in [
        ("listen = \"http://all\"", ErrorCode::InvalidScheme),
        ("listen = \"nkcluster://all;transport=udp\"", ErrorCode::InvalidTransport),
        ("cluster_addr = \"nkcluster://a b\"", ErrorCode::InvalidUri),
        ("cluster_addr = \"nkcluster://a;tls_verify=hola\"", ErrorCode::SyntaxError),
        ("tls_verify = \"hola\"", ErrorCode::SyntaxError),
        ("meta = \";\"", ErrorCode::InvalidTokens),
        ("node_id = \"a b\"", ErrorCode::InvalidName),
        ("ping_time = 1", ErrorCode::InvalidConfig),
    ] {
        assert_eq!(from_file(text).expect_err(text).code(), &code, "{text}");
    }
}

#[test]
fn secrets_stand_in_no_error_and_no_debug_text() {
    for text in [
        "password = hunter2",
        "password = \"hunter2",
        "password = [\"hunter2\"]",
        "worker_password = { a = \"hunter2\" }",
        "password = \"hunter2\"\npassword = \"hunter2\"",
        "password = \"hunter2\\u0007\"",
        "cluster_addr = \"nkcluster://a;password=hunter2;x\"",
        "cluster_addr = \"nkcluster://me:hunter2@a\"",
        "cluster_addr = \"nkcluster://a;proxy=http://me:hunter2@b\"",
        "cluster_addr = \"nkcluster://a;password=\\\"hunter2\"",
        "cluster_addr = \"nkcluster://a;password=a;hunter2\"",
        "node_token = \"hunter2\"\nnode_token_file = \"b\"",
    ] {
        let error = match from_file(text) {
            Err(error) => format!("{error} {error:?}"),
            Ok(config) => panic!("{text} gave {config:?}"),
        };
        assert!(!error.contains("hunter2"), "{error}");
    }
    let config = from_file("password = \"hunter2\"\nnode_token = \"hunter2\"\ncluster_addr = \"nkcluster://a;password=hunter2\"");
    assert!(!format!("{:?}", config.expect("builds")).contains("hunter2"));
}

#[test]
fn password_file_is_trimmed_of_one_newline() {
    let dir = tempfile::tempdir().expect("makes a directory");
    for (text, secret) in [("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), (" s3 cret", " s3 cret")] {
        let path = written(&dir, "secret", text, 0o600);
        let layers = Layers::new().flag("role", "worker").and_then(|l| l.flag("password-file", path.display().to_string()));
        let config = layers.and_then(Layers::build).expect("builds");
        assert_eq!(config.password.expose(), secret);
        assert!(config.notes.is_empty());
    }
}

#[test]
fn bad_password_file_is_refused() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let long = "x".repeat(5000);
    for (text, mode) in [("", 0o600), ("\n", 0o600), ("a\nb\n", 0o600), (&long, 0o600), ("s3cret", 0o644), ("s3cret", 0o602)] {
        let path = written(&dir, "secret", text, mode);
        let layers = Layers::new().flag("role", "worker").and_then(|l| l.flag("admin_password_file", path.display().to_string()));
        let error = layers.and_then(Layers::build).expect_err("refused");
        assert_eq!(error.key(), Some("admin_password_file"));
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
    let error = from_file("password_file = \"/nonexistent\"").expect_err("no file");
    assert!(error.reason().contains("cannot read"), "{error}");
}

#[test]
fn readable_password_file_is_a_warning_where_allowed() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let path = written(&dir, "secret", "s3cret\n", 0o644);
    let text = format!("password_file = {path:?}\nallow_readable_secrets = true\n");
    let config = from_file(&text).expect("builds");
    assert_eq!(config.password.expose(), "s3cret");
    assert_eq!(config.notes.len(), 1);
}

#[test]
fn secret_in_a_readable_configuration_file_is_a_warning() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let path = written(&dir, "a.toml", "role = \"worker\"\npassword = \"x\"\nadmin_password = \"\"\n", 0o644);
    let config = Layers::new().file(path).and_then(Layers::build).expect("builds");
    assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
}

#[test]
fn password_and_its_file_replace_each_other_across_sources_only() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let secret = written(&dir, "secret", "of file", 0o600);
    let both = format!("password = \"a\"\npassword_file = {secret:?}\n");
    let error = from_file(&both).expect_err("two in one source");
    assert!(error.key().is_some_and(|key| key.starts_with("password")));
    let path = written(&dir, "a.toml", &format!("role = \"worker\"\npassword_file = {secret:?}\n"), 0o600);
    let build = |env: &[(&str, &str)], flags: &[(&str, &str)]| {
        let layers = Layers::new().file(&path).and_then(|layers| layers.env(env.iter().copied()));
        let layers = flags.iter().try_fold(layers?, |layers, (key, value)| layers.flag(key, *value));
        layers.and_then(Layers::build)
    };
    let by_env = build(&[("NKCLUSTER_PASSWORD", "of env")], &[]).expect("builds");
    assert_eq!(by_env.password.expose(), "of env");
    let file = secret.display().to_string();
    let by_flag = build(&[("NKCLUSTER_PASSWORD", "of env")], &[("password_file", &file)]).expect("builds");
    assert_eq!(by_flag.password.expose(), "of file");
}

#[test]
fn default_password_is_refused_where_others_can_reach_the_node() {
    let control = |changes: &[(&str, &str)]| {
        let layers = Layers::new().flag("role", "control");
        let layers = changes.iter().try_fold(layers?, |layers, (key, value)| layers.flag(key, *value));
        layers.and_then(Layers::build)
    };
    let refused: &[&[(&str, &str)]] = &[
        &[],
        &[("password", "nkcluster")],
        &[("listen", "nkcluster://all6")],
        &[("listen", "nkcluster://localhost, nkcluster://10.0.0.1")],
        &[("listen", "nkcluster://node")],
        &[("worker_password", "a"), ("admin_password", "b")],
        &[("password", "a"), ("admin_password", "nkcluster")],
        &[("password", "a"), ("listen", "nkcluster://all;password=nkcluster")],
    ];
    for changes in refused {
        assert_eq!(control(changes).expect_err("refused").key(), Some("password"), "{changes:?}");
    }
    let accepted: &[&[(&str, &str)]] = &[
        &[("password", "a")],
        &[("allow_default_password", "true")],
        &[("listen", "")],
        &[("listen", "nkcluster://localhost, nkcluster://127.0.0.2, nkcluster://[::1]")],
        &[("listen", "nkcluster://all;password=a")],
        &[("worker_password", "a"), ("admin_password", "b"), ("control_password", "c")],
    ];
    for changes in accepted {
        assert!(control(changes).is_ok(), "{changes:?}");
    }
    assert_eq!(from_file("listen = \"nkcluster://all\"").expect_err("refused").key(), Some("password"));
    assert!(from_file("listen = \"nkcluster://all\"\nnode_token = \"t\"").is_ok());
    assert!(from_file("").is_ok());
}

#[test]
fn risky_choices_are_warnings() {
    let alone = Config::worker().warnings();
    assert!(alone[0].contains("no control node can find"), "{alone:?}");
    let mut config = Config::control();
    config.allow_default_password = true;
    config.listen = NodeUri::parse_list("nkcluster://all, nkcluster://localhost").expect("parses");
    config.check().expect("is allowed");
    assert_eq!(config.warnings().len(), 2, "{:?}", config.warnings());
}

#[test]
fn binding_is_switched_off_only_by_a_dialler_that_verifies_and_for_it() {
    assert!(from_file("cluster_addr = \"nkcluster://a;binding=off\"").is_err());
    assert!(from_file("cluster_addr = \"nkcluster://a;binding=off;tls_verify=host\"").is_ok());
    assert!(from_file("cluster_addr = \"nkcluster://a;binding=off\"\ntls_verify = true").is_ok());
    // Everybody reaches a listener behind a balancer, so it needs a secret, and it says so where TLS of its own is not bound.
    assert_eq!(from_file("listen = \"nkcluster://localhost;binding=off\"").expect_err("default").key(), Some("password"));
    assert!(
        from_file("listen = \"nkcluster://localhost;transport=ws;binding=off\"\npassword = \"p\"").expect("builds").warnings().is_empty()
    );
    let encrypted = from_file("listen = \"nkcluster://localhost;transport=wss;binding=off\"\npassword = \"p\"").expect("builds");
    assert!(encrypted.warnings()[0].contains("binding=off"), "{:?}", encrypted.warnings());
}

#[test]
fn proxies_make_a_listener_on_loopback_an_open_one() {
    let text = "listen = \"nkcluster://localhost\"\ntrusted_proxies = [\"127.0.0.1\"]";
    assert_eq!(from_file(text).expect_err("default").key(), Some("password"));
    let config =
        from_file("password = \"p\"\nlisten = \"nkcluster://localhost\"\ntrusted_proxies = \"127.0.0.1, 0.0.0.0/0\"").expect("builds");
    assert!(config.warnings()[0].contains("everybody"), "{:?}", config.warnings());
}

#[test]
fn certificate_without_key_is_refused() {
    assert_eq!(from_file("tls_certfile = \"a\"").expect_err("no key").key(), Some("tls_keyfile"));
    assert_eq!(from_file("tls_keyfile = \"a\"").expect_err("no certificate").key(), Some("tls_certfile"));
    assert!(from_file("tls_certfile = \"a\"\ntls_keyfile = \"b\"").is_ok());
}

#[test]
fn code_may_go_below_the_bounds_but_not_to_zero() {
    let quick = Config { ping_time: Duration::from_millis(20), ..Config::worker() };
    assert_eq!(quick.check(), Ok(()));
    let stuck = Config { ping_time: Duration::ZERO, ..Config::worker() };
    assert_eq!(stuck.check().expect_err("zero").key(), Some("ping_time"));
}

#[test]
fn times_of_a_url_come_before_those_of_the_node() {
    let mut config = Config::worker();
    let uri = |text: &str| text.parse::<NodeUri>().expect("parses");
    let millis = |config: &Config, text: &str| config.idle_timeout_of(&uri(text)).as_millis();
    assert_eq!(millis(&config, "nkcluster://a"), 180_000);
    assert_eq!(millis(&config, "nkcluster://a;transport=quic"), 30_000);
    config.idle_timeout = Some(Duration::from_millis(7));
    assert_eq!(millis(&config, "nkcluster://a"), 7);
    assert_eq!(millis(&config, "nkcluster://a;idle_timeout=9"), 9);
    assert_eq!(config.connect_timeout_of(&uri("nkcluster://a;connect_timeout=9")).as_millis(), 9);
    assert_eq!(config.connect_timeout_of(&uri("nkcluster://a")).as_millis(), 30_000);
}

#[test]
fn file_root_is_in_the_state_directory_unless_said() {
    let mut config = Config { state_dir: PathBuf::from("/s"), ..Config::worker() };
    assert_eq!(config.file_root(), Path::new("/s/files"));
    config.file_root = Some(PathBuf::from("/r"));
    assert_eq!(config.file_root(), Path::new("/r"));
}

#[test]
fn class_lists_take_arrays_and_commas() {
    let config = from_file("classes = \"core, files\"\ngrants = [\"*\"]").expect("builds");
    assert!(config.classes.contains("files") && !config.classes.contains("file"));
    assert_eq!(config.grants, ClassList::All);
    assert!(from_file("classes = []").expect("builds").classes.is_empty());
}

proptest! {
    #[test]
    fn no_broken_file_shows_its_password(before in "[ a-z\"'\\[{=,#]{0,6}", after in "[ a-z\"'\\]}=,#\\\\]{0,6}") {
        if let Err(error) = from_file(&format!("password = {before}hunter2{after}\n")) {
            let text = format!("{error} {error:?}");
            prop_assert!(!text.contains("hunter2"), "{}", text);
        }
    }

    #[test]
    fn no_file_makes_us_panic(text in "([a-z_]{1,12} = [-\"a-z0-9*;:/=,\\[\\]]{0,24}\n){0,6}") {
        drop(from_file(&text));
    }

    #[test]
    fn no_value_makes_us_panic(key in proptest::sample::select(Config::keys().collect::<Vec<_>>()), value in "\\PC{0,40}") {
        drop(Layers::new().flag("state_dir", "x").and_then(|layers| layers.flag(key, value)).and_then(Layers::build));
    }
}

//! `keygen`.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::{Ran, command};

fn keygen(arguments: &[&str]) -> Ran {
    let mut command = command(env!("CARGO_BIN_EXE_nkcluster"));
    command.arg("keygen").args(arguments);
    Ran::of(command, "")
}

fn is_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn a_fresh_secret_is_64_hexadecimal_digits() {
    let (first, second) = (keygen(&[]), keygen(&[]));
    assert!(is_key(first.text().trim_end()), "{first:?}");
    assert_ne!(first.stdout, second.stdout);
    assert!(is_key(keygen(&["--json"]).json()["password"].as_str().expect("a text")));
}

#[test]
fn each_role_gets_a_secret() {
    let keys = keygen(&["--roles", "--json"]).json();
    let mut values: Vec<_> =
        ["worker_password", "admin_password", "control_password"].map(|name| keys[name].as_str().expect("a text").to_owned()).into();
    assert!(values.iter().all(|value| is_key(value)));
    values.dedup();
    assert_eq!(values.len(), 3);
    assert_eq!(keygen(&["--roles"]).text().lines().count(), 3);
}

#[test]
fn a_file_is_private_and_never_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    let name = path.display().to_string();
    assert_eq!(keygen(&["--out", &name]).text(), format!("{name} is written\n"));
    let secret = std::fs::read_to_string(&path).expect("reads");
    assert!(is_key(secret.trim_end()));
    assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
    keygen(&["--out", &name]).fails(1, "io_error").naming(&[&name]);
    assert_eq!(std::fs::read_to_string(&path).expect("reads"), secret);
}

#[test]
fn the_control_key_depends_on_secret_and_cluster_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control");
    std::fs::write(&path, "a secret of the control nodes\n").expect("writes");
    let path = path.display().to_string();
    let key = |cluster: &str| -> Value {
        keygen(&["--control-key", "--password-file", &path, "--cluster-name", cluster, "--json"]).json()["control_key"].clone()
    };
    assert!(is_key(key("one").as_str().expect("a text")));
    assert_eq!(key("one"), key("one"));
    assert_ne!(key("one"), key("two"));
    keygen(&["--control-key"]).fails(2, "invalid_usage").naming(&["--password-file"]);
}

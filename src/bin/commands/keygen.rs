//! Secrets and keys, made here without a cluster.

use std::fs::OpenOptions;
use std::io::Write;
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nkcluster::proto::auth::{ControlKey, NodeToken, Role, SaltedPassword};
use nkcluster::types::Secret;
use rand::RngExt as _;
use serde_json::{Map, Value};

use super::password;
use crate::cli::{Global, KeygenArgs};
use crate::failure::{Failure, Outcome};
use crate::output::Form;

/// Named secrets, as keys of a configuration file.
type Keys = Vec<(&'static str, Secret)>;

pub(super) async fn run(args: KeygenArgs, global: &Global, form: Form) -> Outcome {
    let keys = if args.control_key {
        let salted = salted(global, Role::Control).await?;
        vec![("control_key", Secret::new(hex(&ControlKey::derive(&salted).public())))]
    } else if let Some(node) = &args.node_token {
        let salted = salted(global, Role::Worker).await?;
        vec![("node_token", NodeToken::issue(&salted, &global.cluster_name, node).to_hex())]
    } else if args.roles {
        ["worker_password", "admin_password", "control_password"].map(|name| (name, fresh())).into()
    } else {
        vec![("password", fresh())]
    };
    let text = text_of(&keys);
    match &args.out {
        Some(path) => {
            write(path, &text)?;
            form.print(&serde_json::json!({ "file": path }), || format!("{} is written", path.display()))
        }
        None => form.print(&document(&keys), || text),
    }
}

/// 256 random bits of the operating system's generator, in hex.
fn fresh() -> Secret {
    Secret::new(hex(&rand::rng().random::<[u8; 32]>()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn salted(global: &Global, role: Role) -> Outcome<SaltedPassword> {
    let wanted =
        || Failure::usage("invalid_usage", format!("the secret of the role {role} is needed: --password-file or NKCLUSTER_PASSWORD"));
    let password = password(global)?.ok_or_else(wanted)?;
    let name = global.cluster_name.clone();
    let rounds = NonZero::new(global.pbkdf2_iters).ok_or_else(|| Failure::usage("invalid_usage", "--pbkdf2-iters: expected 1 or more"))?;
    let derived = tokio::task::spawn_blocking(move || SaltedPassword::derive(&password, &name, role, rounds)).await;
    derived.map_err(|error| Failure::new("internal", format!("the key was not derived: {error}")))
}

/// One value stands alone, so that it can be a password file; several stand as lines of a configuration file.
fn text_of(keys: &Keys) -> String {
    match keys.as_slice() {
        [(_, secret)] => secret.expose().to_owned(),
        keys => keys.iter().map(|(name, secret)| format!("{name} = \"{}\"", secret.expose())).collect::<Vec<_>>().join("\n"),
    }
}

fn document(keys: &Keys) -> Value {
    let fields = keys.iter().map(|(name, secret)| ((*name).to_owned(), Value::from(secret.expose())));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// A new file that only its owner reads. An existing one is never touched: other nodes may know its secret.
fn write(path: &Path, text: &str) -> Outcome {
    let failed = |error: std::io::Error| Failure::io(format_args!("cannot write {}", path.display()), &error);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_256_bits_and_is_never_the_same() {
        assert_eq!(fresh().expose().len(), 64);
        assert_ne!(fresh(), fresh());
    }

    #[test]
    fn several_secrets_are_lines_of_a_configuration() {
        let keys = vec![("worker_password", Secret::new("a")), ("admin_password", Secret::new("b"))];
        assert_eq!(text_of(&keys), "worker_password = \"a\"\nadmin_password = \"b\"");
        assert_eq!(document(&keys), serde_json::json!({ "worker_password": "a", "admin_password": "b" }));
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        write(&path, "first").expect("is new");
        assert!(write(&path, "second").is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "first\n");
    }
}

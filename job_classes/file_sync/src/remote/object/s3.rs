//! Opens a remote of the type `s3`, with the settings that rclone has for it.

use std::sync::Arc;
use std::time::Duration;

use opendal::Operator;
use opendal::services::S3;

use super::{Account, CONTROL_TIMEOUT, DATA_TIMEOUT, ObjectTree, Timeouts};
use crate::path::EntryPath;
use crate::remote::{Access, ObjectAccess, Opened, RemoteError, Request};

/// Region of a provider that has none, as rclone takes it.
const DEFAULT_REGION: &str = "us-east-1";
/// Settings that rclone has and that change nothing here: what they are about is decided otherwise, or not done.
const IGNORED: &[&str] =
    &["description", "no_check_bucket", "chunk_size", "upload_cutoff", "upload_concurrency", "list_version", "disable_checksum"];

pub(in crate::remote) fn open(request: &Request<'_>) -> Result<Opened, RemoteError> {
    let wrong = |why: String| RemoteError::Setting { remote: request.shown.to_owned(), why };
    let (bucket, prefix) = request.path.trim_start_matches('/').split_once('/').unwrap_or((request.path.trim_start_matches('/'), ""));
    if bucket.is_empty() {
        return Err(wrong("the path begins with the name of a bucket".to_owned()));
    }
    let prefix = EntryPath::parse(prefix.trim_end_matches('/')).map_err(|error| wrong(error.to_string()))?;
    let mut builder = S3::default().bucket(bucket).disable_ec2_metadata();
    let (mut provider, mut endpoint, mut region) = ("AWS", None, None);
    let (mut from_environment, mut is_path_style, mut has_key) = (false, None, false);
    let mut timeouts = Timeouts { control: CONTROL_TIMEOUT, data: DATA_TIMEOUT };
    for (key, value) in request.settings.iter().filter(|(_, value)| !value.is_empty()) {
        let is_true = || value.parse::<bool>().map_err(|_| wrong(format!("`{key}` is `true` or `false`")));
        match key.as_str() {
            "provider" => provider = value,
            "endpoint" => endpoint = Some(value.as_str()),
            "region" => region = Some(value.as_str()),
            "access_key_id" => {
                builder = builder.access_key_id(value);
                has_key = true;
            }
            "secret_access_key" => builder = builder.secret_access_key(value),
            "session_token" => builder = builder.session_token(value),
            "env_auth" => from_environment = is_true()?,
            "force_path_style" => is_path_style = Some(is_true()?),
            "storage_class" => builder = builder.default_storage_class(value),
            "acl" => builder = builder.default_acl(value),
            "server_side_encryption" => builder = builder.server_side_encryption(value),
            "sse_kms_key_id" => builder = builder.server_side_encryption_aws_kms_key_id(value),
            "timeout" => {
                let limit = seconds(value).ok_or_else(|| wrong("`timeout` is a time such as `30s` or `5m`".to_owned()))?;
                timeouts = Timeouts { control: limit, data: limit };
            }
            ignored if IGNORED.contains(&ignored) => {}
            // A setting that is misspelt, or asks for what is not done here, must not pass in silence.
            _ => return Err(wrong(format!("there is no setting `{key}` of the type `s3`"))),
        }
    }
    let region = region.unwrap_or(DEFAULT_REGION);
    builder = builder.region(region);
    builder = match endpoint {
        Some(endpoint) if endpoint.contains("://") => builder.endpoint(endpoint),
        Some(endpoint) => builder.endpoint(&format!("https://{endpoint}")),
        None if provider == "AWS" => builder.endpoint(&format!("https://s3.{region}.amazonaws.com")),
        None => return Err(wrong(format!("the provider {provider:?} needs an `endpoint`"))),
    };
    if !is_path_style.unwrap_or(provider != "AWS") {
        builder = builder.enable_virtual_host_style();
    }
    if !from_environment {
        builder = builder.disable_config_load();
        if !has_key {
            builder = builder.skip_signature();
        }
    }
    // Idempotent; the constructor that would do it at start is left out, as it needs one.
    opendal::install_default();
    let operator = Operator::new(builder).map_err(|error| wrong(error.message().to_owned()))?;
    let whole = Arc::new(ObjectTree::new(operator, EntryPath::root(), timeouts));
    let tree = Arc::new(whole.below(&prefix));
    let account = Account { kind: "s3", settings: request.settings.clone(), container: bucket.to_owned() };
    let path = if prefix.is_root() { bucket.to_owned() } else { format!("{bucket}/{prefix}") };
    let access = Access::Object(ObjectAccess { tree: tree.clone(), whole, prefix, account: Arc::new(account) });
    Ok(Opened { storage: tree, access, path })
}

/// Reads `30s`, `5m`, `1h`, or a number of seconds.
fn seconds(text: &str) -> Option<Duration> {
    let (number, unit) = match text.chars().last()? {
        's' => (&text[..text.len() - 1], 1),
        'm' => (&text[..text.len() - 1], 60),
        'h' => (&text[..text.len() - 1], 3600),
        _ => (text, 1),
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use crate::remote::{Remote, RemoteConfig};

    fn open(text: &str) -> Result<Remote, String> {
        Remote::open(text, &RemoteConfig::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_or_misspelt_is_said_without_secrets() {
        for (text, part) in [
            (":s3,provider=Other:bucket", "endpoint"),
            (":s3,access_key_id=a:", "bucket"),
            (":s3,enpoint=x,secret_access_key=hush:bucket", "enpoint"),
            (":s3,env_auth=perhaps:bucket", "env_auth"),
            (":s3,timeout=soon:bucket", "timeout"),
            (":s3:bucket/../x", ".."),
        ] {
            let error = open(text).expect_err(text);
            assert!(error.contains(part) && !error.contains("hush"), "{text}: {error}");
        }
    }

    #[test]
    fn a_remote_is_found_again_by_another_node() {
        let text = r#":s3,access_key_id=a,endpoint="http://127.0.0.1:9",provider=Other,secret_access_key=hush:bucket/some/prefix/"#;
        let remote = open(text).expect("opened");
        assert_eq!(open(&remote.portable()).expect("opened").portable(), remote.portable());
        assert!(remote.portable().ends_with(":bucket/some/prefix") && !remote.to_string().contains("hush"));
        assert!(remote.local_path().is_none());
    }
}

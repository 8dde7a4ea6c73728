//! Certificates and keys: from the files of the `tls_*` options, or a self-signed one that the node makes at its first start.
//!
//! The own certificate lives in `tls/cert.pem` and `tls/key.pem` of the state directory. Both are written into a fresh directory that is then renamed to
//! `tls`: there is never half a pair, and of two processes that start at once one wins and the other uses what it finds.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorCode, Result};
use crate::transport::TlsOptions;
use crate::transport::target::machine_name;
use crate::types::Secret;

/// Largest PEM file that is read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The chain, own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
    /// Where it comes from, for errors.
    pub origin: String,
}

/// The certificate of `tls_certfile` and `tls_keyfile`, if one is configured.
///
/// # Errors
/// `invalid_config`, naming option and file.
pub fn configured(options: &TlsOptions) -> Result<Option<Certificate>> {
    let Some(certfile) = &options.certfile else {
        return match &options.keyfile {
            None => Ok(None),
            Some(_) => Err(invalid("tls_keyfile is set, but tls_certfile is not")),
        };
    };
    let chain = read_chain("tls_certfile", certfile)?;
    let (option, keyfile) = match &options.keyfile {
        Some(keyfile) => ("tls_keyfile", keyfile),
        None => ("tls_certfile", certfile),
    };
    let key = read_key(option, keyfile, options.password.as_ref())?;
    let origin = format!("tls_certfile {} and {option} {}", certfile.display(), keyfile.display());
    Ok(Some(Certificate { chain, key, origin }))
}

/// The node's own certificate, made at the first call; without a state directory it lives in memory only.
///
/// # Errors
/// `invalid_config` if the files cannot be read or written, or are damaged.
pub fn own(state_dir: Option<&Path>) -> Result<Certificate> {
    let Some(state_dir) = state_dir else {
        let (chain, key) = generate()?;
        return parse_pair(chain.as_bytes(), key.as_bytes()).ok_or_else(|| invalid("a new certificate cannot be read back"));
    };
    let dir = state_dir.join("tls");
    if !dir.join("cert.pem").exists() {
        create(state_dir, &dir).map_err(|error| invalid(format!("cannot write a certificate to {}: {error}", dir.display())))?;
    }
    let chain = read_chain("the node's own certificate", &dir.join("cert.pem"))?;
    let key = read_key("the node's own key", &dir.join("key.pem"), None)?;
    Ok(Certificate { chain, key, origin: format!("the node's own certificate in {}", dir.display()) })
}

/// Reads all certificates of a PEM file, at least one; `option` names it in errors.
///
/// # Errors
/// `invalid_config`, naming option and file.
pub fn read_chain(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(option, path)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(in_file(option, path, "has no certificate (PEM, `BEGIN CERTIFICATE`)")),
        Err(error) => Err(in_file(option, path, error)),
    }
}

fn read_key(option: &str, path: &Path, password: Option<&Secret>) -> Result<PrivateKeyDer<'static>> {
    let bytes = read(option, path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| in_file(option, path, "is not a PEM file"))?;
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(in_file(option, path, "has a key in an old encrypted format; convert it with `openssl pkcs8 -topk8`"));
    }
    const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
    const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
    let Some(start) = text.find(BEGIN) else {
        return PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| in_file(option, path, format!("has no usable private key: {error}")));
    };
    let password = password.ok_or_else(|| in_file(option, path, "is encrypted: set tls_password"))?;
    let end = text[start..].find(END).ok_or_else(|| in_file(option, path, "is cut off"))?;
    let (_, document) = SecretDocument::from_pem(&text[start..start + end + END.len()])
        .map_err(|error| in_file(option, path, format!("is damaged: {error}")))?;
    let encrypted =
        EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|error| in_file(option, path, format!("is damaged: {error}")))?;
    let key = encrypted
        .decrypt(password.expose())
        .map_err(|_| in_file(option, path, "cannot be decrypted: tls_password is wrong, or the cipher is not supported"))?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

fn read(option: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let read = || -> io::Result<Zeroizing<Vec<u8>>> {
        let file = fs::File::open(path)?;
        let mut bytes = Zeroizing::new(Vec::new());
        let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        match read as u64 > FILE_BYTES_MAX {
            true => Err(io::Error::other("the file is too large")),
            false => Ok(bytes),
        }
    };
    read().map_err(|error| in_file(option, path, error))
}

/// Certificate and key of a new pair, as PEM.
fn generate() -> Result<(String, Zeroizing<String>)> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let machine = machine_name();
    if machine.is_ascii() && !machine.is_empty() && !names.contains(&machine) {
        names.push(machine);
    }
    let failed = |error: rcgen::Error| Error::new(ErrorCode::Internal, format!("cannot make a certificate: {error}"));
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "nkcluster");
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

fn parse_pair(chain: &[u8], key: &[u8]) -> Option<Certificate> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    Some(Certificate { chain, key, origin: "the node's own certificate".to_owned() })
}

fn create(state_dir: &Path, dir: &Path) -> io::Result<()> {
    let (chain, key) = generate().map_err(io::Error::other)?;
    fs::create_dir_all(state_dir)?;
    let fresh = state_dir.join(format!("tls.{:016x}", rand::random::<u64>()));
    DirBuilder::new().mode(0o700).create(&fresh)?;
    let written = write(&fresh.join("key.pem"), key.as_bytes())
        .and_then(|()| write(&fresh.join("cert.pem"), chain.as_bytes()))
        .and_then(|()| fs::rename(&fresh, dir));
    if let Err(error) = written {
        // What is left is of no use; that it cannot be removed is less important than why it could not be written.
        let _ = fs::remove_dir_all(&fresh);
        // Renaming fails where another process was first; then its pair is ours.
        let another_was_first = dir.join("cert.pem").exists();
        return if another_was_first { Ok(()) } else { Err(error) };
    }
    fs::File::open(state_dir)?.sync_all()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn in_file(option: &str, path: &Path, reason: impl std::fmt::Display) -> Error {
    invalid(format!("{option} {}: {reason}", path.display()))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidConfig, message)
}

//! A real S3 server in this process, with faults that can be switched on.
//!
//! s3s-fs looks at a condition and then writes, without holding anything in between, so that two conditional creates may both succeed. Its changes
//! therefore go one by one here; without that a test of conditions would prove nothing.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hyper::header::{HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;

const ACCESS_KEY: &str = "ak";
const SECRET_KEY: &str = "sk";
/// The one bucket.
pub(crate) const BUCKET: &str = "bucket";

/// What goes wrong.
#[derive(Default)]
pub(crate) struct Faults {
    /// So many further requests are answered with 503.
    pub(crate) unavailable: AtomicUsize,
    /// No request is answered.
    pub(crate) hangs: AtomicBool,
    /// Conditions are not seen.
    pub(crate) ignores_conditions: AtomicBool,
    /// Each request: method and path with query.
    requests: Mutex<Vec<String>>,
    gate: tokio::sync::Mutex<()>,
}

/// The server; it ends with its runtime.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    port: u16,
    has_keys: bool,
    pub(crate) faults: Arc<Faults>,
}

impl Server {
    /// One that wants its keys.
    pub(crate) async fn start() -> Self {
        Self::start_with(true).await
    }

    /// One that takes requests from anybody. Headers that are taken away, as for [`Faults::ignores_conditions`], would make a signature wrong.
    pub(crate) async fn start_open() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(has_keys: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join(BUCKET)).expect("made");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).expect("a file system"));
        if has_keys {
            builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        }
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let faults = Arc::new(Faults::default());
        let shared = faults.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (service, faults) = (service.clone(), shared.clone());
                tokio::spawn(async move {
                    let answer = hyper::service::service_fn(move |request| answer(service.clone(), faults.clone(), request));
                    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { directory, port, has_keys, faults }
    }

    /// A remote of this server, with further settings such as `timeout=1s,`.
    pub(crate) fn remote_with(&self, settings: &str, path: &str) -> String {
        let keys = if self.has_keys { format!("access_key_id={ACCESS_KEY},secret_access_key={SECRET_KEY},") } else { String::new() };
        let port = self.port;
        format!(":s3,provider=Other,{keys}{settings}endpoint=\"http://127.0.0.1:{port}\":{BUCKET}/{path}")
    }

    pub(crate) fn remote(&self, path: &str) -> String {
        self.remote_with("", path)
    }

    /// Where an object lies on disk.
    pub(crate) fn on_disk(&self, key: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(key)
    }

    /// Requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.faults.requests.lock().expect("no panic"))
    }
}

async fn answer(service: S3Service, faults: Arc<Faults>, request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
    let shown = format!("{} {}", request.method(), request.uri());
    faults.requests.lock().expect("no panic").push(shown);
    if faults.hangs.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let is_one_less = |left: usize| left.checked_sub(1);
    if faults.unavailable.fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_one_less).is_ok() {
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE));
    }
    let mut request = request.map(Body::from);
    if faults.ignores_conditions.load(Ordering::SeqCst) {
        request.headers_mut().remove(IF_MATCH);
        request.headers_mut().remove(IF_NONE_MATCH);
    }
    let is_change = matches!(*request.method(), Method::PUT | Method::POST | Method::DELETE);
    let _one_by_one = if is_change { Some(faults.gate.lock().await) } else { None };
    Ok(service.call(request).await.unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR)))
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert("retry-after", HeaderValue::from_static("0"));
    response
}

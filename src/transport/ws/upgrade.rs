//! The HTTP upgrade, by which a connection becomes a WebSocket (RFC 6455 §4).
//!
//! Who may come in is decided by [`Rules::judge`], who is good enough by [`Request::verify`]; around them a head is read and one is written.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::handshake::client::{self, Response as Answer, generate_key, generate_request};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::handshake::machine::TryParse;
use tokio_tungstenite::tungstenite::handshake::server::{self, create_response, write_response};
use tokio_tungstenite::tungstenite::http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE, USER_AGENT,
};
use tokio_tungstenite::tungstenite::http::{self, StatusCode};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Stream;
use crate::error::{Error, ErrorCode, Result};
use crate::transport::head::{self, Head, HeadFault};
use crate::transport::target::machine_name;
use crate::types::{Host, NodeUri, Transport};

/// Name of our protocol in upgrades.
const PROTOCOL: &str = "nkcluster";

/// What a listener demands of an upgrade.
#[derive(Debug)]
pub(in crate::transport) struct Rules {
    path: String,
    protocol: String,
    /// The same, as it stands in an answer.
    chosen: HeaderValue,
    origins: Arc<[String]>,
}

/// Why a listener refuses, as it is told to the peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: &'static str,
}

impl Rules {
    /// Those of a listener: path and sub-protocol of its URL, and the origins that its configuration allows.
    ///
    /// # Errors
    /// `invalid_config` if the sub-protocol cannot stand in an answer.
    pub(in crate::transport) fn new(uri: &NodeUri, origins: &Arc<[String]>) -> Result<Self> {
        let (text, value) = protocol(uri)?;
        Ok(Self { path: uri.path().to_owned(), protocol: text.to_owned(), chosen: value, origins: Arc::clone(origins) })
    }

    /// The answer to a request.
    pub(super) fn judge(&self, request: &server::Request) -> Result<server::Response, Refusal> {
        let refused = |status, reason| Err(Refusal { status, reason });
        if request.uri().path() != self.path {
            return refused(StatusCode::NOT_FOUND, "there is nothing at this path");
        }
        let headers = request.headers();
        let is_allowed =
            |origin: &HeaderValue| self.origins.iter().any(|allowed| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes()));
        if !headers.get_all(ORIGIN).iter().all(is_allowed) {
            return refused(StatusCode::FORBIDDEN, "this origin is not allowed");
        }
        let Ok(mut response) = create_response(request) else {
            return refused(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket of version 13");
        };
        if !has_token(headers, SEC_WEBSOCKET_PROTOCOL, |token| token == self.protocol) {
            return refused(StatusCode::BAD_REQUEST, "the sub-protocol is missing");
        }
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, self.chosen.clone());
        Ok(response)
    }
}

/// What a dialler asks for.
#[derive(Debug)]
pub(in crate::transport) struct Request {
    pub(super) bytes: Vec<u8>,
    accept_key: String,
    protocol: String,
}

impl Request {
    /// For a URL.
    ///
    /// # Errors
    /// `invalid_config` if an option cannot stand in a request.
    pub(in crate::transport) fn new(uri: &NodeUri) -> Result<Self> {
        let host = match (&uri.options().host, uri.host()) {
            (Some(host), _) => host.clone(),
            (None, Host::Node) => machine_name(),
            (None, host) => host.to_string(),
        };
        // Where HTTP has its own port the name stands alone, as some balancers compare it.
        let host = match (uri.effective_transport(), uri.effective_port()) {
            (Transport::Ws, 80) | (Transport::Wss, 443) => host,
            _ if uri.options().host.is_some() => host,
            (_, port) => format!("{host}:{port}"),
        };
        let (protocol, value) = protocol(uri)?;
        let request = http::Request::builder()
            .uri(uri.path())
            .header(HOST, host)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", generate_key())
            .header(SEC_WEBSOCKET_PROTOCOL, value)
            .header(USER_AGENT, concat!("nkcluster/", env!("CARGO_PKG_VERSION")))
            .body(());
        let wrong =
            |reason: String| Error::new(ErrorCode::InvalidConfig, format!("{uri}: path or host cannot stand in an HTTP request: {reason}"));
        let request: client::Request = request.map_err(|error| wrong(error.to_string()))?;
        let (bytes, key) = generate_request(request).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { bytes, accept_key: derive_accept_key(key.as_bytes()), protocol: protocol.to_owned() })
    }

    /// Whether the answer is one to this request, and a yes.
    pub(super) fn verify(&self, answer: &Answer) -> Result<()> {
        let wrong = |what: &str| Err(Error::new(ErrorCode::ProtocolError, format!("the answer to the WebSocket upgrade {what}")));
        let (status, headers) = (answer.status(), answer.headers());
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::new(ErrorCode::NoConnections, format!("the server refused the WebSocket upgrade: {status}")));
        }
        if !has_token(headers, UPGRADE, |token| token.eq_ignore_ascii_case("websocket"))
            || !has_token(headers, CONNECTION, |token| token.eq_ignore_ascii_case("upgrade"))
        {
            return wrong("does not upgrade");
        }
        if headers.get(SEC_WEBSOCKET_ACCEPT).is_none_or(|key| key != self.accept_key.as_str()) {
            return wrong("has the wrong key, perhaps an old one that was cached");
        }
        let mut protocols = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        if protocols.next().is_none_or(|protocol| protocol != self.protocol.as_str()) || protocols.next().is_some() {
            return wrong("does not choose our sub-protocol");
        }
        if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
            return wrong("has an extension that was not asked for");
        }
        Ok(())
    }
}

/// The upgrade of a listener. The caller bounds the time.
///
/// # Errors
/// `protocol_error` if the peer asked for something else, `connection_failed` if it has gone.
pub(in crate::transport) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, rules: &Rules) -> Result<Stream<S>> {
    let refusal = match head::read(&mut stream, b"GET ").await {
        Err(fault @ (HeadFault::Closed | HeadFault::Io(_))) => return Err(failed(ErrorCode::ConnectionFailed, &fault)),
        Err(HeadFault::NotHttp) => Refusal { status: StatusCode::BAD_REQUEST, reason: "this is a WebSocket" },
        Err(HeadFault::TooLarge) => Refusal { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason: "the request is too large" },
        // Who has sent more already has not waited for the answer.
        Ok(Head { bytes, rest }) if rest.is_empty() => match parse(&bytes).map(|request| rules.judge(&request)) {
            None => Refusal { status: StatusCode::BAD_REQUEST, reason: "the request cannot be read" },
            Some(Err(refusal)) => refusal,
            Some(Ok(response)) => {
                let mut bytes = Vec::new();
                write_response(&mut bytes, &response).map_err(|error| failed(ErrorCode::Internal, &error))?;
                write(&mut stream, &bytes).await?;
                return Ok(Stream::new(stream, Role::Server, Vec::new()).await);
            }
        },
        Ok(_) => Refusal { status: StatusCode::BAD_REQUEST, reason: "bytes behind the request" },
    };
    let Refusal { status, reason } = refusal;
    let length = reason.len() + 1;
    let text = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{reason}\n"
    );
    // It is refused whether it hears that or not.
    if write(&mut stream, text.as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
    Err(Error::new(ErrorCode::ProtocolError, format!("a WebSocket upgrade was refused: {status}, {reason}")))
}

/// The upgrade of a dialler. The caller bounds the time.
///
/// # Errors
/// `no_connections` with the status if the server refused, `protocol_error` if its answer is none, `connection_failed` if it has gone.
pub(in crate::transport) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &Request) -> Result<Stream<S>> {
    write(&mut stream, &request.bytes).await?;
    let Head { bytes, rest } = head::read(&mut stream, b"HTTP/1.").await.map_err(|fault| match fault {
        HeadFault::Closed | HeadFault::Io(_) => failed(ErrorCode::ConnectionFailed, &fault),
        HeadFault::NotHttp | HeadFault::TooLarge => failed(ErrorCode::ProtocolError, &fault),
    })?;
    let unreadable = || Error::new(ErrorCode::ProtocolError, "the answer to the WebSocket upgrade cannot be read");
    request.verify(&parse(&bytes).ok_or_else(unreadable)?)?;
    Ok(Stream::new(stream, Role::Client, rest).await)
}

/// The sub-protocol of a URL, as text and as the value of a header: a token of HTTP (RFC 9110 §5.6.2).
fn protocol(uri: &NodeUri) -> Result<(&str, HeaderValue)> {
    let text = uri.options().ws_proto.as_deref().unwrap_or(PROTOCOL);
    let is_token = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    match HeaderValue::from_str(text) {
        Ok(value) if is_token => Ok((text, value)),
        _ => Err(Error::new(ErrorCode::InvalidConfig, format!("{uri}: ws_proto: expected a name such as `{PROTOCOL}`"))),
    }
}

/// A whole head, read as a request or as an answer.
fn parse<T: TryParse>(head: &[u8]) -> Option<T> {
    T::try_parse(head).ok().flatten().map(|(_, parsed)| parsed)
}

/// Whether one of the words of a header, which may stand there several times, is the right one.
fn has_token(headers: &HeaderMap, name: HeaderName, is_right: impl Fn(&str) -> bool) -> bool {
    let values = headers.get_all(name);
    let mut tokens = values.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',').map(str::trim));
    tokens.any(is_right)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let write = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    write.await.map_err(|error| failed(ErrorCode::ConnectionFailed, &error))
}

fn failed(code: ErrorCode, reason: &dyn std::fmt::Display) -> Error {
    Error::new(code, format!("WebSocket upgrade: {reason}"))
}

//! What a dialler demands of the listener's certificate: `tls_verify`.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// The verifier of one dialler. Signatures of the TLS handshake are checked in every mode.
#[derive(Debug)]
pub(super) struct ServerCheck {
    provider: Arc<CryptoProvider>,
    demand: Demand,
    depth: Option<u8>,
}

#[derive(Debug)]
pub(super) enum Demand {
    /// `false`: any certificate; the channel binding of the handshake above makes that safe.
    Any,
    /// `true`: a chain to a certificate that we trust.
    Chain(Arc<RootCertStore>),
    /// `host`: the chain, and the name of the host.
    Host(Arc<WebPkiServerVerifier>),
}

impl ServerCheck {
    pub(super) fn new(provider: Arc<CryptoProvider>, demand: Demand, depth: Option<u8>) -> Self {
        Self { provider, demand, depth }
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if matches!(self.demand, Demand::Any) {
            return Ok(ServerCertVerified::assertion());
        }
        if self.depth.is_some_and(|depth| intermediates.len() > usize::from(depth)) {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        match &self.demand {
            Demand::Any => Ok(ServerCertVerified::assertion()),
            Demand::Chain(roots) => {
                let certificate = ParsedCertificate::try_from(end_entity)?;
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
                Ok(ServerCertVerified::assertion())
            }
            Demand::Host(verifier) => verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

//! TLS on both sides, by rustls with ring.
//!
//! Owns the reading of certificates and keys, and the certificate that a running listener serves. Promises that a
//! renewed certificate is used by the next connection without a restart, and that HTTP/2 is offered by ALPN. A key is
//! held by rustls only; it is never printed.

use std::fmt;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use parking_lot::RwLock;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate in the text.
    #[error("no certificate found: expected PEM with BEGIN CERTIFICATE, leaf first")]
    NoCertificate,
    /// No usable private key in the text.
    #[error("no private key found: expected PEM with BEGIN PRIVATE KEY (or RSA, or EC)")]
    NoKey,
    /// rustls refuses them.
    #[error("the certificate or its key cannot be used: {0}")]
    Refused(#[from] rustls::Error),
}

/// The certificate a listener serves; clones serve the same one.
#[derive(Clone)]
pub struct Identity(Arc<RwLock<Arc<ServerConfig>>>);

impl Identity {
    /// Reads a certificate chain (leaf first) and its private key from PEM.
    ///
    /// # Errors
    /// Where either is missing, malformed, or does not fit the other.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(server_config(chain, key)?)))))
    }

    /// Serves another certificate from the next connection on.
    ///
    /// # Errors
    /// As [`Identity::from_pem`]; the old certificate then stays.
    pub fn replace(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let config = Arc::new(server_config(chain, key)?);
        *self.0.write() = config;
        Ok(())
    }

    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.0.read().clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// What is trusted when connecting to upstreams: the public web's roots, or instead of them `roots` as PEM (a private
/// CA).
///
/// # Errors
/// Where `roots` is there and holds no certificate that can be used.
pub fn client_config(roots: Option<&[u8]>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let Some(pem) = roots else { return Ok(builder.with_webpki_roots().with_no_client_auth()) };
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem)? {
        store.add(certificate)?;
    }
    Ok(builder.with_root_certificates(store).with_no_client_auth())
}

fn server_config(chain: &[u8], key: &[u8]) -> Result<ServerConfig, TlsError> {
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates(chain)?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.ok().filter(|found| !found.is_empty()).ok_or(TlsError::NoCertificate)
}

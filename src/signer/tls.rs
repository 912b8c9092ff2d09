//! Mutual TLS between a coordinator and its cosigners.
//!
//! Promises: TLS 1.3 only; both sides show a certificate that the configured authority has signed; a cosigner talks to
//! nobody whose certificate does not name one of its coordinators, and a coordinator to nobody whose certificate does not
//! name the cosigner that it means, wherever that is reached. The names in certificates are the names of the
//! configuration, not of machines. No public authority is trusted. Neither side resumes sessions: each handshake is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::verify_server_name;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// The largest certificate or key file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The files of one side. All are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of this side, then its issuers but for the authority.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// The authority that signs both sides' certificates.
    pub ca_file: PathBuf,
}

/// Why there is no TLS. Names the file and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}", path = .path.display())]
pub struct TlsError {
    path: PathBuf,
    what: String,
}

/// What a cosigner listens with.
///
/// # Errors
/// [`TlsError`].
pub fn server(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let Parts { chain, key, roots } = read(files)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let verifier = verifier.map_err(at(&files.ca_file))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(at(&files.cert_file))?;
    let config = config.with_client_cert_verifier(verifier).with_single_cert(chain, key);
    let mut config = config.map_err(at(&files.cert_file))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a coordinator connects with.
///
/// # Errors
/// [`TlsError`].
pub fn client(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    let Parts { chain, key, roots } = read(files)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(at(&files.cert_file))?;
    let config = config.with_root_certificates(roots).with_client_auth_cert(chain, key);
    let mut config = config.map_err(at(&files.cert_file))?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Which of these names a verified certificate is for.
#[must_use]
pub fn name_of<'a>(certificate: &CertificateDer<'_>, names: &'a [String]) -> Option<&'a str> {
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    let is_for = |name: &&String| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    };
    names.iter().find(is_for).map(String::as_str)
}

/// Whether a name can stand in a certificate: a DNS name.
#[must_use]
pub fn is_name(text: &str) -> bool {
    matches!(ServerName::try_from(text), Ok(ServerName::DnsName(_)))
}

struct Parts {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
}

fn read(files: &TlsFiles) -> Result<Parts, TlsError> {
    let chain = certificates(&files.cert_file)?;
    let text = bytes(&files.key_file)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError {
        path: files.key_file.clone(),
        what: "holds no private key in PEM; give the file that was written beside the certificate".to_owned(),
    })?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.ca_file)? {
        roots.add(authority).map_err(at(&files.ca_file))?;
    }
    Ok(Parts { chain, key, roots })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = bytes(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or_else(|| TlsError {
        path: path.to_owned(),
        what: "holds no certificate in PEM; give the path of one".to_owned(),
    })
}

fn bytes(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsError> {
    use std::io::Read;
    let cannot = |what: String| TlsError { path: path.to_owned(), what };
    let file = std::fs::File::open(path).map_err(|error| cannot(format!("cannot be read: {error}")))?;
    let mut text = zeroize::Zeroizing::new(Vec::new());
    let read = file.take(FILE_BYTES_MAX.saturating_add(1)).read_to_end(&mut text);
    match read {
        Ok(length) if u64::try_from(length).is_ok_and(|length| length <= FILE_BYTES_MAX) => Ok(text),
        Ok(_) => Err(cannot(format!("is larger than {FILE_BYTES_MAX} bytes"))),
        Err(error) => Err(cannot(format!("cannot be read: {error}"))),
    }
}

fn at<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> TlsError {
    let path = path.to_owned();
    move |error| TlsError { path: path.clone(), what: error.to_string() }
}

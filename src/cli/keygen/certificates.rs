//! `turnpike keygen --certificates`: the certificates by which a proxy and its cosigners know each other.
//!
//! The only file that names rcgen. Makes an authority, a certificate and key for each name, and forgets the authority's
//! key: nobody can issue another certificate under it, and who adds a machine makes all of them anew. Promises: nothing is
//! overwritten; where anything fails, no file is left behind; keys are readable by their owner only.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::Serialize;
use zeroize::Zeroizing;

use super::Written;
use crate::clock::{Clock, SystemClock};
use crate::signer::keystore::{KeystoreError, write_new};
use crate::signer::tls::is_name;

/// For how long they are good. An authority nobody can use again need not be short-lived.
const YEARS: i32 = 10;
/// The most certificates of one authority.
const NAMES_MAX: usize = 16;
const AUTHORITY: &str = "ca.pem";

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificates {
    /// The authority's certificate, for every machine.
    pub ca: PathBuf,
    /// What each machine gets besides.
    pub machines: Vec<Machine>,
}

/// One machine's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Its name, in its certificate.
    pub name: String,
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why none were made.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A name.
    #[error("{0:?} cannot stand in a certificate: write a name of letters, digits and hyphens, such as cosigner-2")]
    Name(String),
    /// The names together.
    #[error("{0} names; write one for the proxy and one for each cosigner, each once, at most {NAMES_MAX}")]
    Count(usize),
    /// A file.
    #[error(transparent)]
    File(#[from] KeystoreError),
    /// The directory.
    #[error("{path}: cannot be made a directory: {source}", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The library: never seen.
    #[error("the certificates cannot be made: {0}")]
    Library(#[from] rcgen::Error),
}

/// Makes and writes them: `ca.pem`, and for each name `NAME.pem` and `NAME.key`.
///
/// # Errors
/// [`CertificatesError`]; no file is left behind then.
pub fn make(names: &[String], out: &Path) -> Result<Certificates, CertificatesError> {
    let mut different: Vec<_> = names.iter().collect();
    different.sort_unstable();
    different.dedup();
    if !(2..=NAMES_MAX).contains(&names.len()) || different.len() != names.len() {
        return Err(CertificatesError::Count(names.len()));
    }
    if let Some(name) = names.iter().find(|name| !is_name(name) || name.contains('.') || *name == "ca") {
        return Err(CertificatesError::Name(name.clone()));
    }
    std::fs::create_dir_all(out).map_err(|source| CertificatesError::Directory { path: out.to_owned(), source })?;
    let machine = |name: &String| Machine {
        name: name.clone(),
        cert: out.join(format!("{name}.pem")),
        key: out.join(format!("{name}.key")),
    };
    let made = Certificates { ca: out.join(AUTHORITY), machines: names.iter().map(machine).collect() };
    write(&made)?;
    Ok(made)
}

fn write(made: &Certificates) -> Result<(), CertificatesError> {
    let key = KeyPair::generate()?;
    let mut params = params("turnpike cosigners", Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let mut written = Written::default();
    let mut file = |path: &Path, text: &str| -> Result<(), KeystoreError> {
        write_new(path, text)?;
        written.0.push(path.to_owned());
        Ok(())
    };
    file(&made.ca, &authority.pem())?;
    for Machine { name, cert, key } in &made.machines {
        let own = KeyPair::generate()?;
        let certificate = leaf(name)?.signed_by(&own, &issuer)?;
        file(cert, &certificate.pem())?;
        file(key, &Zeroizing::new(own.serialize_pem()))?;
    }
    written.0.clear();
    Ok(())
}

/// Good on either side: a coordinator's may become a cosigner's, and which names may ask each cosigner's own
/// configuration says.
fn leaf(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(name, vec![name.to_owned()])?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(name: &str, subject: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    const YEAR_SECONDS: i64 = 31_556_952;
    let mut params = CertificateParams::new(subject)?;
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    params.distinguished_name = distinguished;
    let year = 1970_i64.saturating_add(SystemClock.now().seconds() / YEAR_SECONDS);
    let year = i32::try_from(year).unwrap_or(i32::MAX / 2);
    // A machine whose clock is somewhat behind takes them too.
    params.not_before = rcgen::date_time_ymd(year.saturating_sub(1), 1, 1);
    params.not_after = rcgen::date_time_ymd(year.saturating_add(YEARS), 1, 1);
    Ok(params)
}

impl std::fmt::Display for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Made an authority and {} certificates. The authority's key is gone.\n", self.machines.len())?;
        writeln!(f, "  for every machine   {}", self.ca.display())?;
        for Machine { name, cert, key } in &self.machines {
            writeln!(f, "  for {name:<15} {}\n{:22}{}", cert.display(), "", key.display())?;
        }
        f.write_str(
            "\nNext: give each machine its own key and no other one, and delete the rest here. Which of these names may\n\
             ask a cosigner, its coordinators: says.",
        )
    }
}

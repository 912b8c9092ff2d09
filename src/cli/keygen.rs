//! `turnpike keygen`: makes a 2-of-3 key and writes its three encrypted share files.
//!
//! A key is on one curve: ed25519 for Solana, secp256k1 for EVM networks. Whoever takes payments on both makes two.
//!
//! Promises: nothing is overwritten; where anything fails, no share is left behind; every pair of shares has signed a
//! test message before the first file is written, and each file has been opened again before the command says that it
//! is done; passphrases are never shown.

pub mod certificates;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::signer::keystore::{
    self, Curve, Ed25519, Kdf, KeyShare, KeystoreError, PASSPHRASE_CHARS_MIN, Passphrase, SHARES, Secp256k1,
};
use crate::signer::quorum::OpenError;
use crate::signer::{ecdsa, frost};
use crate::x402::Key;
use crate::x402::evm::Address;

/// Environment variables that may hold the passphrases, in the order of the shares.
pub const PASSPHRASE_VARIABLES: [&str; SHARES] =
    ["TURNPIKE_PASSPHRASE_1", "TURNPIKE_PASSPHRASE_2", "TURNPIKE_PASSPHRASE_3"];

/// Makes a new 2-of-3 signing key and writes its three encrypted share files.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  turnpike keygen --out shares --generate-passphrases passphrases\n  turnpike keygen --curve secp256k1 --out shares --generate-passphrases passphrases\n\nThe second makes the key for EVM networks; the files of both may lie in one directory."
)]
pub struct Args {
    /// What the key is for: ed25519 for Solana, secp256k1 for EVM networks.
    #[arg(long, value_enum, default_value_t = CurveName::Ed25519)]
    pub curve: CurveName,
    /// Where the shares are written: share-1.json, -2.json and -3.json, for secp256k1 evm-share-1.json and so on.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// A file that holds a share's passphrase; give it three times, in the order of the shares. Without it the
    /// passphrases are taken from TURNPIKE_PASSPHRASE_1, _2 and _3.
    #[arg(long = "passphrase-file", value_name = "FILE", conflicts_with = "generate_passphrases")]
    pub passphrase_files: Vec<PathBuf>,
    /// Makes the passphrases and writes them to passphrase-1.txt, -2.txt and -3.txt (evm-passphrase-1.txt and so on) in
    /// this directory, which must not be the one of the shares.
    #[arg(long, value_name = "DIR")]
    pub generate_passphrases: Option<PathBuf>,
}

/// A curve, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CurveName {
    /// Solana's.
    Ed25519,
    /// That of EVM networks.
    Secp256k1,
}

impl CurveName {
    /// What the names of the key's files begin with, so that both keys' files may lie in one directory.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Ed25519 => "",
            Self::Secp256k1 => "evm-",
        }
    }
}

/// The group's address on its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum GroupAddress {
    /// The Solana address to fund.
    Solana(Key),
    /// The receiver authorizer on EVM networks.
    Evm(Address),
}

impl fmt::Display for GroupAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Solana(key) => key.fmt(f),
            Self::Evm(address) => address.fmt(f),
        }
    }
}

/// What was made. Its text is for people; serialized it is for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The group's address.
    pub address: GroupAddress,
    /// The share files.
    pub shares: Vec<PathBuf>,
    /// The passphrase files that were written; empty where the passphrases were given.
    pub passphrases: Vec<PathBuf>,
}

/// Why no key was made.
#[derive(Debug, thiserror::Error)]
pub enum KeygenError {
    /// Files.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    /// The key.
    #[error(transparent)]
    Key(#[from] OpenError),
    /// The passphrases are not there.
    #[error(
        "no passphrase for share {0}: give --passphrase-file {SHARES} times, or set TURNPIKE_PASSPHRASE_1, _2 and _3, \
         or have them made with --generate-passphrases DIR"
    )]
    NoPassphrase(usize),
    /// Too many or too few.
    #[error("{0} passphrase files were given; give one for each of the {SHARES} shares")]
    PassphraseCount(usize),
    /// Too easily guessed.
    #[error("the passphrase of share {0} is shorter than {PASSPHRASE_CHARS_MIN} characters; choose a longer one")]
    ShortPassphrase(usize),
    /// One secret would open two shares.
    #[error("shares {0} and {1} have the same passphrase; whoever learns it holds the key, so give each its own")]
    SamePassphrase(usize, usize),
    /// A share beside its passphrase is not encrypted.
    #[error("{path}: holds the shares; have the passphrases written to another directory", path = .0.display())]
    SameDirectory(PathBuf),
    /// The directory cannot be made.
    #[error("{path}: cannot be made a directory: {source}", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Runs the command: makes the key, tests it, writes the files. Prints nothing.
///
/// # Errors
/// [`KeygenError`]; no share is left behind then.
pub fn run(args: &Args) -> Result<Report, KeygenError> {
    run_with(args, Kdf::STANDARD, |name| std::env::var(name).ok())
}

/// [`run`] with another cost of the passphrases and another environment, for tests.
///
/// # Errors
/// As [`run`].
pub fn run_with(args: &Args, kdf: Kdf, variable: impl Fn(&str) -> Option<String>) -> Result<Report, KeygenError> {
    let prefix = args.curve.prefix();
    let paths = numbered(&args.out, prefix, "share", "json");
    directory(&args.out)?;
    let generated = match &args.generate_passphrases {
        Some(target) => {
            directory(target)?;
            if same_directory(target, &args.out) {
                return Err(KeygenError::SameDirectory(target.clone()));
            }
            numbered(target, prefix, "passphrase", "txt").to_vec()
        }
        None => Vec::new(),
    };
    if let Some(path) = paths.iter().chain(&generated).find(|path| path.symlink_metadata().is_ok()) {
        return Err(KeystoreError::Exists(path.clone()).into());
    }
    let passphrases = passphrases(args, variable)?;
    let mut written = Written::default();
    let address = match args.curve {
        CurveName::Ed25519 => {
            let shares = frost::generate()?;
            let address = frost::prove(&shares)?;
            write::<Ed25519>(&mut written, &shares, &paths, &generated, &passphrases, kdf)?;
            GroupAddress::Solana(address)
        }
        CurveName::Secp256k1 => {
            let shares = ecdsa::generate()?;
            let address = ecdsa::prove(&shares)?;
            write::<Secp256k1>(&mut written, &shares, &paths, &generated, &passphrases, kdf)?;
            GroupAddress::Evm(address)
        }
    };
    written.0.clear();
    Ok(Report { address, shares: paths.to_vec(), passphrases: generated })
}

/// Writes the files, and opens each share again.
fn write<C: Curve>(
    written: &mut Written,
    shares: &[KeyShare<C>; SHARES],
    paths: &[PathBuf; SHARES],
    generated: &[PathBuf],
    passphrases: &[Passphrase],
    kdf: Kdf,
) -> Result<(), KeygenError> {
    for (path, passphrase) in generated.iter().zip(passphrases) {
        passphrase.write_new(path)?;
        written.0.push(path.clone());
    }
    for ((path, share), passphrase) in paths.iter().zip(shares).zip(passphrases) {
        keystore::create(path, share, passphrase, kdf)?;
        written.0.push(path.clone());
        keystore::open::<C>(path, passphrase)?;
    }
    Ok(())
}

/// The files written so far; removed again unless all goes well.
#[derive(Default)]
struct Written(Vec<PathBuf>);

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn passphrases(args: &Args, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Passphrase>, KeygenError> {
    if args.generate_passphrases.is_some() {
        return Ok((0..SHARES).map(|_| Passphrase::generate()).collect::<Result<_, _>>()?);
    }
    let given: Vec<Passphrase> = match args.passphrase_files.len() {
        0 => (1..)
            .zip(PASSPHRASE_VARIABLES)
            .map(|(number, name)| variable(name).map(Passphrase::new).ok_or(KeygenError::NoPassphrase(number)))
            .collect::<Result<_, _>>()?,
        SHARES => args.passphrase_files.iter().map(|path| Passphrase::read(path)).collect::<Result<_, _>>()?,
        count => return Err(KeygenError::PassphraseCount(count)),
    };
    for (number, passphrase) in (1..).zip(&given) {
        if !passphrase.is_long_enough() {
            return Err(KeygenError::ShortPassphrase(number));
        }
        for (earlier, other) in (1..number).zip(&given) {
            if other == passphrase {
                return Err(KeygenError::SamePassphrase(earlier, number));
            }
        }
    }
    Ok(given)
}

fn numbered(directory: &Path, prefix: &str, stem: &str, extension: &str) -> [PathBuf; SHARES] {
    [1, 2, 3].map(|number| directory.join(format!("{prefix}{stem}-{number}.{extension}")))
}

fn directory(path: &Path) -> Result<(), KeygenError> {
    std::fs::create_dir_all(path).map_err(|source| KeygenError::Directory { path: path.to_owned(), source })
}

fn same_directory(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Made a key of three shares; any two of them sign. Each pair has signed a test message, and every"
        )?;
        writeln!(f, "file has been opened again.\n")?;
        writeln!(f, "  address      {}", self.address)?;
        for path in &self.shares {
            writeln!(f, "  share        {}", path.display())?;
        }
        for path in &self.passphrases {
            writeln!(f, "  passphrase   {}", path.display())?;
        }
        match self.address {
            GroupAddress::Solana(_) => f.write_str(NEXT_ON_SOLANA)?,
            GroupAddress::Evm(_) => f.write_str(NEXT_ON_EVM)?,
        }
        f.write_str(KEEP_APART)
    }
}

const NEXT_ON_SOLANA: &str = "
Next:
  1. Send SOL to the address. It pays transaction fees and lends each open channel its rent, about
     0.0047 SOL, which comes back when the channel is closed: 0.1 SOL carries 20 open channels.
     Send it no tokens: payments go to pay_to, never to this address.
  2. Make sure that pay_to has a token account for each asset that you take: the channel program
     hands a payment that finds no account to its own treasury, for good.
";

const NEXT_ON_EVM: &str = "
Next:
  1. Send nothing to the address. It is the receiver authorizer of your channels on every EVM network:
     it signs claims and refunds, which others send, and holds no money.
  2. Keep this key for as long as a channel is open: a channel's authorizer cannot be changed, and what
     it has not claimed goes back to the payer.
";

const KEEP_APART: &str =
    "  3. Keep each share apart from the others and from its passphrase, and one of the three offline.
     Two lost shares are a lost key.";

//! `turnpike keygen`: makes a 2-of-3 key and writes its three encrypted share files.
//!
//! Promises: nothing is overwritten; where anything fails, no share is left behind; every pair of shares has signed a
//! test message before the first file is written, and each file has been opened again before the command says that it
//! is done; passphrases are never shown.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::signer::frost::{self, OpenError};
use crate::signer::keystore::{self, Ed25519, Kdf, KeystoreError, PASSPHRASE_CHARS_MIN, Passphrase, SHARES};
use crate::x402::Key;

/// Environment variables that may hold the passphrases, in the order of the shares.
pub const PASSPHRASE_VARIABLES: [&str; SHARES] =
    ["TURNPIKE_PASSPHRASE_1", "TURNPIKE_PASSPHRASE_2", "TURNPIKE_PASSPHRASE_3"];

/// Makes a new 2-of-3 signing key and writes its three encrypted share files.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where share-1.json, share-2.json and share-3.json are written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// A file that holds a share's passphrase; give it three times, in the order of the shares. Without it the
    /// passphrases are taken from TURNPIKE_PASSPHRASE_1, _2 and _3.
    #[arg(long = "passphrase-file", value_name = "FILE", conflicts_with = "generate_passphrases")]
    pub passphrase_files: Vec<PathBuf>,
    /// Makes the passphrases and writes them to passphrase-1.txt, -2.txt and -3.txt in this directory, which must not
    /// be the one of the shares.
    #[arg(long, value_name = "DIR")]
    pub generate_passphrases: Option<PathBuf>,
}

/// What was made. Its text is for people; serialized it is for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The group's public key: the Solana address to fund.
    pub address: Key,
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
    let paths = numbered(&args.out, "share", "json");
    directory(&args.out)?;
    let generated = match &args.generate_passphrases {
        Some(target) => {
            directory(target)?;
            if same_directory(target, &args.out) {
                return Err(KeygenError::SameDirectory(target.clone()));
            }
            numbered(target, "passphrase", "txt").to_vec()
        }
        None => Vec::new(),
    };
    if let Some(path) = paths.iter().chain(&generated).find(|path| path.symlink_metadata().is_ok()) {
        return Err(KeystoreError::Exists(path.clone()).into());
    }
    let passphrases = passphrases(args, variable)?;
    let shares = frost::generate()?;
    let address = frost::prove(&shares)?;

    let mut written = Written::default();
    for (path, passphrase) in generated.iter().zip(&passphrases) {
        passphrase.write_new(path)?;
        written.0.push(path.clone());
    }
    for ((path, share), passphrase) in paths.iter().zip(&shares).zip(&passphrases) {
        keystore::create(path, share, passphrase, kdf)?;
        written.0.push(path.clone());
        keystore::open::<Ed25519>(path, passphrase)?;
    }
    written.0.clear();
    Ok(Report { address, shares: paths.to_vec(), passphrases: generated })
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

fn numbered(directory: &Path, stem: &str, extension: &str) -> [PathBuf; SHARES] {
    [1, 2, 3].map(|number| directory.join(format!("{stem}-{number}.{extension}")))
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
        writeln!(f, "\nNext:")?;
        writeln!(
            f,
            "  1. Send SOL to the address. It pays transaction fees and lends each open channel its rent, about"
        )?;
        writeln!(f, "     0.0047 SOL, which comes back when the channel is closed: 0.1 SOL carries 20 open channels.")?;
        writeln!(f, "     Send it no tokens: payments go to pay_to, never to this address.")?;
        writeln!(
            f,
            "  2. Make sure that pay_to has a token account for each asset that you take: the channel program"
        )?;
        writeln!(f, "     hands a payment that finds no account to its own treasury, for good.")?;
        writeln!(
            f,
            "  3. Keep each share apart from the others and from its passphrase, and one of the three offline."
        )?;
        write!(f, "     Two lost shares are a lost key.")
    }
}

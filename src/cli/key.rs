//! `turnpike key`: looks at a share file, changes its passphrase.
//!
//! Promises: looking needs no passphrase and shows nothing secret; a changed passphrase is in the file whole or not at all.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::Failure;
use super::output::Output;
use crate::signer::ecdsa;
use crate::signer::keystore::{
    self, AnyPublicPart, Curve, Ed25519, Kdf, PASSPHRASE_CHARS_MIN, Passphrase, PublicPart, Secp256k1,
};

/// Looks at a share file, or changes its passphrase.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  turnpike key show share-1.json\n  turnpike key passphrase share-1.json --passphrase-file old --new-passphrase-file new"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the key's address and which share a file holds, as the file says; no passphrase is needed
    Show(ShowArgs),
    /// Encrypt a share under another passphrase
    Passphrase(PassphraseArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The share file.
    share: PathBuf,
    /// The result as JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct PassphraseArgs {
    /// The share file.
    share: PathBuf,
    /// A file that holds the passphrase that opens it now. Without it, TURNPIKE_PASSPHRASE is taken.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// A file that holds the new passphrase. Without it, TURNPIKE_NEW_PASSPHRASE is taken.
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

/// What a share file says of itself.
#[derive(Serialize)]
struct Shown {
    address: String,
    public_key: String,
    curve: &'static str,
    scheme: &'static str,
    share: u16,
    generation: u32,
    rehearsal: bool,
}

/// Runs `turnpike key`.
///
/// # Errors
/// [`Failure`], which says what to do.
pub fn run(args: &Args, output: &mut Output) -> Result<(), Failure> {
    match &args.command {
        Command::Show(args) => show(args, output),
        Command::Passphrase(args) => change(args, output),
    }
}

fn show(args: &ShowArgs, output: &mut Output) -> Result<(), Failure> {
    let shown = match keystore::peek(&args.share).map_err(Failure::unusable)? {
        AnyPublicPart::Ed25519(part) => Shown::of(part.group.to_string(), &part),
        AnyPublicPart::Secp256k1(part) => {
            let address = ecdsa::address_of(&part.group);
            let address = address.ok_or_else(|| {
                Failure::unusable(format!(
                    "{}: its key is no point of the curve; restore it from its backup",
                    args.share.display()
                ))
            })?;
            Shown::of(address.to_string(), &part)
        }
    };
    if args.json {
        output.line(serde_json::to_string(&shown).map_err(Failure::failed)?);
        return Ok(());
    }
    let rehearsal = if shown.rehearsal { ", of a rehearsal: no signer takes it" } else { "" };
    output.line(format_args!("  address      {}", shown.address));
    output.line(format_args!("  public key   {}", shown.public_key));
    output.line(format_args!("  scheme       {}", shown.scheme));
    output.line(format_args!("  share        {} of 3, generation {}{rehearsal}", shown.share, shown.generation));
    Ok(())
}

impl Shown {
    fn of<C: Curve>(address: String, part: &PublicPart<C>) -> Self {
        Self {
            address,
            public_key: part.group.to_string(),
            curve: C::NAME,
            scheme: C::SCHEME,
            share: part.identifier,
            generation: part.generation,
            rehearsal: part.rehearsal,
        }
    }
}

fn change(args: &PassphraseArgs, output: &mut Output) -> Result<(), Failure> {
    let old = passphrase(args.passphrase_file.as_deref(), "--passphrase-file", "TURNPIKE_PASSPHRASE")?;
    let new = passphrase(args.new_passphrase_file.as_deref(), "--new-passphrase-file", "TURNPIKE_NEW_PASSPHRASE")?;
    if !new.is_long_enough() {
        return Err(Failure::unusable(format!(
            "the new passphrase is shorter than {PASSPHRASE_CHARS_MIN} characters; choose a longer one"
        )));
    }
    match keystore::peek(&args.share).map_err(Failure::unusable)? {
        AnyPublicPart::Ed25519(part) => encrypt_again::<Ed25519>(&args.share, part.rehearsal, &old, &new)?,
        AnyPublicPart::Secp256k1(part) => encrypt_again::<Secp256k1>(&args.share, part.rehearsal, &old, &new)?,
    }
    output.line(format_args!("{} opens with the new passphrase now.", args.share.display()));
    output.line("Its backups open with the old one still: make new ones, and destroy those.");
    Ok(())
}

fn encrypt_again<C: Curve>(path: &Path, rehearsal: bool, old: &Passphrase, new: &Passphrase) -> Result<(), Failure> {
    let share = keystore::open_of::<C>(path, old, rehearsal).map_err(Failure::failed)?;
    keystore::replace(path, &share, new, Kdf::STANDARD).map_err(Failure::failed)?;
    keystore::open_of::<C>(path, new, rehearsal).map_err(Failure::failed)?;
    Ok(())
}

/// A passphrase from a file, or from the environment.
///
/// # Errors
/// [`Failure`], where neither is there.
pub(super) fn passphrase(file: Option<&Path>, flag: &str, variable: &str) -> Result<Passphrase, Failure> {
    match file {
        Some(file) => Passphrase::read(file).map_err(Failure::unusable),
        None => match std::env::var(variable) {
            Ok(text) => Ok(Passphrase::new(text)),
            Err(_) => Err(Failure::unusable(format!("no passphrase: give {flag} FILE, or set {variable}"))),
        },
    }
}

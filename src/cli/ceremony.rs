//! `turnpike ceremony`: makes, renews and replaces the shares of a key between three machines.
//!
//! A participant has a directory; a courier carries the files in its `out` to the `in` of the others, and each step goes on as
//! far as what is there allows. What a ceremony promises: `signer/ceremony/desk.rs`. How operators go about it:
//! `docs/ceremonies.md`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Subcommand};
use serde::Serialize;

use super::keygen::CurveName;
use super::output::Output;
use super::{Failure, key};
use crate::signer::ceremony::Kind;
use crate::signer::ceremony::desk::{self, Stage, Standing, Start};
use crate::signer::keystore::{self, AnyPublicPart, Ed25519, Kdf, Passphrase, Secp256k1};

/// Makes, renews or replaces the shares of a key between three machines, none of which ever holds the key.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every participant runs start once, then step until it says that it is done. After each, a courier carries\nDIR/out/* to the others' DIR/in. What they carry is sealed and signed; only the code is compared by voice.\n\nExamples, for participant 1:\n  turnpike ceremony start ceremony-1 --generate --me 1 --share share-1.json --passphrase-file p1\n  turnpike ceremony step ceremony-1 --passphrase-file p1\n  turnpike ceremony step ceremony-1 --passphrase-file p1 --code 7k2m-...\n  turnpike ceremony start refresh-1 --refresh --me 1 --share share-1.json --passphrase-file p1\n  turnpike ceremony start new-3 --replace 3 --me 3 --share share-3.json --passphrase-file p3"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a ceremony: make this participant's directory and its card
    Start(StartArgs),
    /// Go on as far as the files that have come allow
    Step(StepArgs),
    /// Say how far it has come and what is waited for
    Status(StatusArgs),
}

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("kind").required(true)))]
struct StartArgs {
    /// A new directory for this ceremony. It is not to be copied or backed up.
    directory: PathBuf,
    /// Make a new key.
    #[arg(long, group = "kind")]
    generate: bool,
    /// Make the shares of a key anew; the key and its address stay.
    #[arg(long, group = "kind")]
    refresh: bool,
    /// Give the share of participant N to a new holder, or again to one that has lost it, and make all shares anew.
    #[arg(long, value_name = "N", group = "kind")]
    replace: Option<u16>,
    /// Which participant this is: 1, 2 or 3, as its share.
    #[arg(long, value_name = "N")]
    me: u16,
    /// The share that is renewed; the new one is written in its place.
    #[arg(long, value_name = "FILE")]
    share: PathBuf,
    /// The key's curve: ed25519 for Solana, secp256k1 for EVM networks. Who brings a share need not say it.
    #[arg(long, value_enum)]
    curve: Option<CurveName>,
    /// Rehearse: everything as it will be, with keys that no signer takes.
    #[arg(long)]
    rehearse: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct StepArgs {
    /// The directory of this participant.
    directory: PathBuf,
    /// The code, once all three operators have compared it by voice.
    #[arg(long)]
    code: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// The directory of this participant.
    directory: PathBuf,
    /// The result as JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// A file that holds the passphrase of this participant's share. Without it, TURNPIKE_PASSPHRASE is taken.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The result as JSON instead of text
    #[arg(long)]
    json: bool,
}

impl Common {
    fn passphrase(&self) -> Result<Passphrase, Failure> {
        key::passphrase(self.passphrase_file.as_deref(), "--passphrase-file", "TURNPIKE_PASSPHRASE")
    }
}

/// Runs `turnpike ceremony`.
///
/// # Errors
/// [`Failure`], which says what to do.
pub fn run(args: &Args, output: &mut Output) -> Result<(), Failure> {
    let (standing, directory, json) = match &args.command {
        Command::Start(args) => (start(args)?, &args.directory, args.common.json),
        Command::Step(args) => {
            let passphrase = args.common.passphrase()?;
            let standing = desk::step(&args.directory, &passphrase, Kdf::STANDARD, args.code.as_deref());
            (standing.map_err(Failure::failed)?, &args.directory, args.common.json)
        }
        Command::Status(args) => (desk::status(&args.directory).map_err(Failure::failed)?, &args.directory, args.json),
    };
    if json {
        output.line(serde_json::to_string(&Report::of(&standing)).map_err(Failure::failed)?);
    } else {
        tell(directory, &standing, output);
    }
    Ok(())
}

fn start(args: &StartArgs) -> Result<Standing, Failure> {
    let kind = match (args.generate, args.replace) {
        (true, _) => Kind::Generate,
        (false, Some(lost)) => Kind::Replace(lost),
        (false, None) => Kind::Refresh,
    };
    let curve = match kind.needs_share(args.me) {
        false => args.curve.unwrap_or(CurveName::Ed25519),
        true => match keystore::peek(&args.share).map_err(Failure::unusable)? {
            AnyPublicPart::Ed25519(_) => CurveName::Ed25519,
            AnyPublicPart::Secp256k1(_) => CurveName::Secp256k1,
        },
    };
    if args.curve.is_some_and(|said| said != curve) {
        return Err(Failure::unusable(format!("{}: is on another curve than --curve says", args.share.display())));
    }
    let passphrase = args.common.passphrase()?;
    let start = Start {
        directory: &args.directory,
        kind,
        me: args.me,
        rehearsal: args.rehearse,
        share: &args.share,
        passphrase: &passphrase,
        kdf: Kdf::STANDARD,
    };
    match curve {
        CurveName::Ed25519 => desk::start::<Ed25519>(&start),
        CurveName::Secp256k1 => desk::start::<Secp256k1>(&start),
    }
    .map_err(Failure::failed)
}

/// A standing for programs.
#[derive(Serialize)]
struct Report<'a> {
    ceremony: String,
    curve: &'a str,
    rehearsal: bool,
    participant: u16,
    share: &'a Path,
    stage: &'a Stage,
    code: Option<&'a str>,
    waiting_for: &'a [PathBuf],
    to_carry: &'a [PathBuf],
}

impl<'a> Report<'a> {
    fn of(standing: &'a Standing) -> Self {
        Self {
            ceremony: standing.ceremony.to_string(),
            curve: &standing.curve,
            rehearsal: standing.rehearsal,
            participant: standing.me,
            share: &standing.share,
            stage: &standing.stage,
            code: standing.code.as_deref(),
            waiting_for: &standing.waiting_for,
            to_carry: &standing.to_carry,
        }
    }
}

fn tell(directory: &Path, standing: &Standing, output: &mut Output) {
    let Standing { ceremony, curve, me, .. } = standing;
    let rehearsal = if standing.rehearsal { "Rehearsal: " } else { "" };
    output.line(format_args!("{rehearsal}{ceremony} on {curve}, participant {me}"));
    match &standing.stage {
        Stage::Failed(why) => {
            output.line(format_args!("\nThe ceremony is over: {why}"));
            output.line("Nothing of it is used. Begin again: all three with a new directory.");
        }
        Stage::Done { address, generation } => {
            done(standing, address, *generation, output);
            output.line("\nThe others may still wait for these:");
            list(&standing.to_carry, output);
        }
        Stage::Cards | Stage::Round(_) => going_on(directory, standing, output),
    }
}

fn done(standing: &Standing, address: &str, generation: u32, output: &mut Output) {
    output.line(
        "\nDone. Every pair of the new shares has signed a test message, and all three participants hold theirs.\n",
    );
    output.line(format_args!("  address      {address}"));
    output.line(format_args!("  share        {}, of generation {generation}", standing.share.display()));
    if standing.rehearsal {
        output.line("\nIt was a rehearsal: no signer takes this share. Delete it.");
    } else if generation > 1 {
        output.line("\nDestroy every copy and backup of the old share: two old ones still sign together. Restart what signs with");
        output.line("this share. Delete the directory when the others are done too.");
    } else {
        output.line("\nMake a backup of the share, apart from its passphrase. Delete the directory when the others are done too.");
    }
}

fn list(paths: &[PathBuf], output: &mut Output) {
    for path in paths {
        output.line(format_args!("  {}", path.display()));
    }
}

fn going_on(directory: &Path, standing: &Standing, output: &mut Output) {
    if let Some(code) = &standing.code {
        output.line(format_args!("\n  code         {code}\n"));
        output.line("Compare it with the other two by voice, letter by letter. If all three are the same:\n");
        output.line(format_args!("  turnpike ceremony step {} --code {code}", directory.display()));
        return;
    }
    output.line("\nCarry to the others' in:");
    list(&standing.to_carry, output);
    if !standing.waiting_for.is_empty() {
        output.line("\nWaiting for:");
        list(&standing.waiting_for, output);
    }
    output.line(format_args!("\nThen: turnpike ceremony step {}", directory.display()));
}

//! The command line: raw flags become one checked settings value per command, and every error says what to do.
//!
//! Exit status: 0 done; 1 it was tried and did not succeed, or a check found problems; 2 the arguments or the
//! configuration cannot be used. Tables are for people, `--json` for programs, and only results go to standard output.

pub mod admin;
pub mod audit;
pub mod bench;
pub mod ceremony;
pub mod check;
pub mod cosigner;
pub mod demo;
pub mod init;
pub mod key;
pub mod keygen;
pub mod output;
pub mod pay;
pub mod sandbox;
pub mod serve;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::output::Output;

/// Be paid per call: an x402 reverse proxy in front of your HTTP API.
#[derive(Debug, Parser)]
#[command(
    name = "turnpike",
    version,
    after_help = "Examples:\n  turnpike demo                        see all of it in one process, without funds or network\n  turnpike init --upstream http://127.0.0.1:3000\n  turnpike check turnpike.yaml\n  turnpike serve turnpike.yaml\n  turnpike pay http://127.0.0.1:8402/v1/quote -n 10"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in one process: sample API, proxy, sandbox chain, paying client
    Demo(demo::Args),
    /// Write a commented configuration file from flags or a few questions
    Init(init::Args),
    /// Check a configuration file: every problem at once
    Check(check::Args),
    /// Serve the routes of a configuration file
    Serve(serve::Args),
    /// Make a 2-of-3 signing key on this machine: three encrypted share files; or the certificates of cosigners
    Keygen(KeygenArgs),
    /// Make, renew or replace the shares of a key between three machines
    Ceremony(ceremony::Args),
    /// Look at a share file, or change its passphrase
    Key(key::Args),
    /// Hold shares of the keys on a machine of their own, and sign what its policy allows
    Cosigner(cosigner::Args),
    /// Pay for an HTTP resource (sandbox and test networks)
    Pay(pay::Args),
    /// Run the sandbox chain by itself
    Sandbox(sandbox::Args),
    /// List the channels of a running Turnpike
    Channels(admin::ChannelsArgs),
    /// List the passes that a running Turnpike has sold, or end one
    Passes(admin::PassesArgs),
    /// Settle what is due now, on a running Turnpike
    Settle(admin::SettleArgs),
    /// Verify or export the audit record
    Audit(audit::Args),
    /// Measure the proxy beside a bare one on this machine
    Bench(bench::Args),
}

/// Why a command did not succeed, and the exit status that says so.
#[derive(Debug)]
pub struct Failure {
    /// The exit status: 1 or 2.
    pub status: u8,
    /// For standard error.
    pub message: String,
}

impl Failure {
    /// It was tried and did not succeed.
    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self { status: 1, message: message.to_string() }
    }

    /// The arguments or the configuration cannot be used.
    pub fn unusable(message: impl std::fmt::Display) -> Self {
        Self { status: 2, message: message.to_string() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

/// Runs the command that `arguments` name, the program's own name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _closed = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut output = Output::standard();
    let result = match arguments.command {
        Command::Demo(args) => demo::run(args, &mut output),
        Command::Init(args) => written(|out| {
            let mut input = std::io::stdin().lock();
            let terminal: Option<&mut dyn std::io::BufRead> =
                if std::io::stdin().is_terminal() { Some(&mut input) } else { None };
            init::run(args, &environment, terminal, out)
        }),
        Command::Check(args) => written(|out| check::run(&args, &environment, out)),
        Command::Serve(args) => serve::run(args, &mut output),
        Command::Keygen(args) => made_key(&args, &mut output),
        Command::Ceremony(args) => ceremony::run(&args, &mut output),
        Command::Key(args) => key::run(&args, &mut output),
        Command::Cosigner(args) => cosigner::run(&args, &mut output),
        Command::Pay(args) => pay::run(args, &mut output),
        Command::Sandbox(args) => sandbox::run(&args, &mut output),
        Command::Channels(args) => admin::channels(&args, &mut output),
        Command::Passes(args) => admin::passes(&args, &mut output),
        Command::Settle(args) => admin::settle(&args, &mut output),
        Command::Audit(args) => audit::run(args, &mut output),
        Command::Bench(args) => bench::run(args, &mut output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                output.error(&failure.message);
            }
            ExitCode::from(failure.status)
        }
    }
}

/// `turnpike keygen`, and how its result is shown.
#[derive(Debug, clap::Args)]
struct KeygenArgs {
    #[command(flatten)]
    keygen: keygen::Args,
    /// Makes no key, but the certificates by which a proxy and its cosigners know each other, one for each of these
    /// names: NAME.pem and NAME.key in the directory of --out, and ca.pem for all of them.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with_all = ["curve", "passphrase_files", "generate_passphrases"])]
    certificates: Vec<String>,
    /// The result as JSON instead of text
    #[arg(long)]
    json: bool,
}

fn made_key(args: &KeygenArgs, output: &mut Output) -> Result<(), Failure> {
    if !args.certificates.is_empty() {
        let made = keygen::certificates::make(&args.certificates, &args.keygen.out).map_err(Failure::failed)?;
        return show(&made, args.json, output);
    }
    show(&keygen::run(&args.keygen).map_err(Failure::failed)?, args.json, output)
}

/// A result for people or for programs.
fn show<T: serde::Serialize + std::fmt::Display>(result: &T, json: bool, output: &mut Output) -> Result<(), Failure> {
    if json {
        output.line(serde_json::to_string(result).map_err(Failure::failed)?);
    } else {
        output.line(result);
    }
    Ok(())
}

/// The process's environment, as a configuration asks it.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Runs a command that writes to standard output and answers with an exit status of its own.
fn written(command: impl FnOnce(&mut dyn Write) -> std::io::Result<u8>) -> Result<(), Failure> {
    match command(&mut std::io::stdout().lock())? {
        0 => Ok(()),
        status => Err(Failure { status, message: String::new() }),
    }
}

/// A runtime for commands that wait for things.
///
/// # Errors
/// Where the operating system gives none.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

//! `turnpike audit`: what can be asked of an audit record without a running Turnpike.
//!
//! `verify` reads all of it and names the first broken place; `export` writes entries for others, once the record has
//! been verified; `accept-loss` records that ledger and record do not fit one another any more, and why. A record that is being written can
//! be verified and exported too. Exit status: 0 done, 1 the record is broken, 2 it cannot be read or asked for.

mod place;

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde_json::json;

use self::place::Place;
use super::Failure;
use super::output::{Output, Style, grouped};
use crate::audit::entry::{Fault, Line};
use crate::audit::export::{self, Filter};
use crate::audit::log::folder;
use crate::audit::log::{AuditLog, Options};
use crate::audit::segment::{self, Lines};
use crate::audit::verify::{self, Broken, Demands, Problem, Report};
use crate::audit::{Entry, Kind, Position};
use crate::clock::UnixMillis;
use crate::x402::Key;
use crate::x402::evm::Address;

/// How often a line that is still being written is read again.
const READS_MAX: usize = 20;

/// Arguments of `turnpike audit`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check every hash, link and signature of a record, and name the first broken place
    Verify(VerifyArgs),
    /// Write a record's entries as CSV or JSON Lines
    Export(ExportArgs),
    /// Record that the ledger's newest file, or the record's end, is gone for good, so that Turnpike can start again
    AcceptLoss(LossArgs),
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  turnpike audit verify turnpike.yaml            also against the ledger and the keys of its shares\n  turnpike audit verify turnpike.audit --key 7EcDhS…  --key 0x3C44…\n  turnpike audit verify /backup/audit --json\n\nA key that is read from this machine proves little to somebody who does not trust the machine: give --key then."
)]
struct VerifyArgs {
    /// The record's directory, or the configuration that names it
    #[arg(default_value = "turnpike.yaml")]
    place: PathBuf,
    /// A key whose checkpoints count: a Solana or an EVM address (again for more)
    #[arg(long = "key")]
    keys: Vec<String>,
    /// A place that the record must hold: an entry's number and hash, such as 12:9f86…
    #[arg(long)]
    holds: Option<String>,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

/// What an export is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// RFC 4180, for spreadsheets
    Csv,
    /// The lines of the record as they stand in it
    Jsonl,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  turnpike audit export turnpike.yaml --kind charge --from 2026-11-01 --to 2026-12-01 > november.csv\n  turnpike audit export turnpike.audit --format jsonl --payer 0x3C44…\n\nTimes are UTC. Entries that never took effect are left out without --void."
)]
struct ExportArgs {
    /// The record's directory, or the configuration that names it
    #[arg(default_value = "turnpike.yaml")]
    place: PathBuf,
    /// What is written
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// From this time on: 2026-11-28, 2026-11-28T22:00:00Z, or Unix seconds
    #[arg(long)]
    from: Option<String>,
    /// Before this time
    #[arg(long)]
    to: Option<String>,
    /// Only entries of this kind (again for more)
    #[arg(long = "kind")]
    kinds: Vec<String>,
    /// Only entries of this payer
    #[arg(long)]
    payer: Option<String>,
    /// With entries that a crash kept from taking effect
    #[arg(long)]
    void: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  turnpike audit accept-loss turnpike.yaml --reason \"disk of 3 May lost, no copy\"")]
struct LossArgs {
    /// The configuration
    #[arg(default_value = "turnpike.yaml")]
    config: PathBuf,
    /// What happened, for whoever reads the record
    #[arg(long)]
    reason: String,
}

/// Runs `turnpike audit`.
///
/// # Errors
/// [`Failure`].
pub fn run(args: Args, output: &mut Output) -> Result<(), Failure> {
    match args.command {
        Command::Verify(args) => verify_record(&args, output),
        Command::Export(args) => export_record(&args),
        Command::AcceptLoss(args) => accept_loss(&args, output),
    }
}

fn verify_record(args: &VerifyArgs, output: &mut Output) -> Result<(), Failure> {
    let mut place = Place::of(&args.place)?;
    for key in &args.keys {
        match (key.parse::<Key>(), key.parse::<Address>()) {
            (Ok(key), _) => place.keys.ed25519.push(key),
            (_, Ok(address)) => place.keys.secp256k1.push(address),
            _ => return Err(Failure::unusable(format_args!("--key {key} is neither a Solana nor an EVM address"))),
        }
    }
    if let Some(holds) = &args.holds {
        place.holds = Some(position(holds)?);
    }
    let demands = Demands { keys: place.keys.clone(), holds: place.holds };
    match checked(&place, &demands)? {
        Ok(report) => {
            if args.json {
                output.line(report_json(&report));
            } else {
                show(&report, &demands, output);
            }
            Ok(())
        }
        Err(broken) => {
            if args.json {
                output.line(broken_json(&broken));
            }
            Err(Failure::failed(format_args!("the record is broken at {broken}")))
        }
    }
}

fn position(text: &str) -> Result<Position, Failure> {
    let read = || {
        let (seq, hash) = text.split_once(':')?;
        Some(Position { seq: seq.parse().ok()?, hash: hash.parse().ok()? })
    };
    read().ok_or_else(|| {
        Failure::unusable(format_args!("--holds {text} is no entry's number and hash, such as 12:9f86…"))
    })
}

/// Verifies a record. One that is being written may end in the middle of a line; then it is read again.
fn checked(place: &Place, demands: &Demands) -> Result<Result<Report, Broken>, Failure> {
    for _ in 1..READS_MAX {
        match read(place, demands)? {
            Err(Broken { what: Problem::Unfinished, .. }) if place.is_written() => {}
            result => return Ok(result),
        }
    }
    read(place, demands)
}

fn read(place: &Place, demands: &Demands) -> Result<Result<Report, Broken>, Failure> {
    let shows = std::io::stderr().is_terminal();
    let mut progress = |entries: u64| {
        if shows {
            let _gone = write!(std::io::stderr(), "\r{} entries", grouped(entries.into()));
        }
    };
    let segments = numbers(place)?.into_iter().map(|number| (number, open(place, number)));
    let result = verify::verify(segments, demands, &mut progress);
    if shows {
        let _gone = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(result)
}

fn numbers(place: &Place) -> Result<Vec<u64>, Failure> {
    let at = |why: &dyn std::fmt::Display| Failure::unusable(format_args!("{}: {why}", place.directory.display()));
    let names = folder::names(&place.directory).map_err(|why| at(&why))?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();
    if numbers.is_empty() { Err(at(&"there is no audit record in this directory")) } else { Ok(numbers) }
}

fn open(place: &Place, number: u64) -> std::io::Result<BufReader<File>> {
    let file = File::open(place.directory.join(segment::name(number)))?;
    Ok(BufReader::with_capacity(256 * 1024, file))
}

fn show(report: &Report, demands: &Demands, output: &mut Output) {
    let (from, to) = (export::utc(report.times.0), export::utc(report.times.1));
    output.done(format_args!(
        "record {}: {} entries in {} segment(s), from {from} to {to}",
        report.record,
        grouped(report.entries.into()),
        report.segments
    ));
    output.done(format_args!("every hash and link is right; the last entry is {}", report.head));
    let unsigned = grouped(report.unsigned().into());
    match report.signed {
        Some((seq, when)) => output.done(format_args!(
            "signed up to entry {} on {}, by {} checkpoint(s); {unsigned} after it are chained and not signed",
            grouped(seq.into()),
            export::utc(when),
            report.checkpoints
        )),
        None if demands.keys.is_empty() => {
            output.line("  no key was given: who wrote the record is not proved (--key)")
        }
        None => output.line("  no checkpoint by the given keys: who wrote the record is not proved"),
    }
    if demands.holds.is_some() {
        output.done("it holds the entry that the ledger stands on");
    }
    for (key, count) in &report.other_keys {
        output.line(format_args!("  {count} checkpoint(s) by {key}, which is not among the given keys"));
    }
    if report.first > 1 {
        let signed =
            if report.retirement_is_signed() { "" } else { "; no signature vouches for the entry that says so" };
        output.line(format_args!("  entries before {} were retired{signed}", grouped(report.first.into())));
    }
    if !report.voided.is_empty() {
        let voided = report.voided.len();
        output.line(format_args!("  {voided} entries never took effect, because of a crash; the record says which"));
    }
    for (seq, kind) in &report.remarks {
        let remark = output.styled(Style::Bad, &format!("entry {seq} tells of a {kind} part"));
        output.line(format_args!("  {remark}"));
    }
}

fn report_json(report: &Report) -> serde_json::Value {
    json!({
        "ok": true,
        "record": report.record.to_string(),
        "segments": report.segments,
        "entries": report.entries,
        "first": report.first,
        "retired": report.retired,
        "head": { "seq": report.head.seq, "hash": report.head.hash.to_string() },
        "from": report.times.0.0,
        "to": report.times.1.0,
        "kinds": report.kinds,
        "signed": report.signed.map(|(seq, when)| json!({ "seq": seq, "time": when.0 })),
        "checkpoints": report.checkpoints,
        "unsigned": report.unsigned(),
        "otherKeys": report.other_keys,
        "voided": report.voided,
        "remarks": report.remarks,
    })
}

fn broken_json(broken: &Broken) -> serde_json::Value {
    json!({
        "ok": false,
        "segment": broken.segment,
        "line": broken.line,
        "seq": broken.seq,
        "what": broken.what.to_string(),
    })
}

fn export_record(args: &ExportArgs) -> Result<(), Failure> {
    let place = Place::of(&args.place)?;
    let filter = filter(args)?;
    // First all of it, so that nothing is written of a record that is broken further down, and what is void is known.
    let demands = Demands { keys: place.keys.clone(), holds: place.holds };
    let report = checked(&place, &demands)?
        .map_err(|broken| Failure::failed(format_args!("nothing is exported: the record is broken at {broken}")))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let segments = numbers(&place)?.into_iter().map(|number| open(&place, number));
    let written = write_entries(segments, &report, &filter, args, &mut out);
    // What is buffered is written here, so that a full disk is not taken for success.
    match written.and_then(|()| out.flush().map_err(NotWritten::Io)) {
        // A reader that has seen enough.
        Err(NotWritten::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(NotWritten::Io(error)) => Err(error.into()),
        Err(NotWritten::Changed(fault)) => Err(Failure::failed(fault)),
        Ok(()) => Ok(()),
    }
}

/// Why an export was not written to its end.
enum NotWritten {
    Io(std::io::Error),
    /// The record was intact a moment ago.
    Changed(Fault),
}

impl From<std::io::Error> for NotWritten {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Fault> for NotWritten {
    fn from(fault: Fault) -> Self {
        Self::Changed(fault)
    }
}

fn write_entries(
    segments: impl Iterator<Item = std::io::Result<BufReader<File>>>,
    report: &Report,
    filter: &Filter,
    args: &ExportArgs,
    out: &mut impl Write,
) -> Result<(), NotWritten> {
    if args.format == Format::Csv {
        out.write_all(export::heading().as_bytes())?;
    }
    for segment in segments {
        let mut lines = Lines::new(segment?);
        while let Some(raw) = lines.read()? {
            let line = Line::parse(raw.bytes)?;
            let void = report.voided.contains(&line.position.seq);
            let fields = line.fields()?;
            if (args.void || !void) && filter.admits(&line, &fields) {
                match args.format {
                    Format::Csv => out.write_all(export::row(&line, &fields, void).as_bytes())?,
                    Format::Jsonl => {
                        out.write_all(raw.bytes)?;
                        out.write_all(b"\n")?;
                    }
                }
            }
            // What came after the record was verified is for the next export, and may be half written.
            if line.position.seq >= report.head.seq {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn filter(args: &ExportArgs) -> Result<Filter, Failure> {
    let time = |name: &str, text: &Option<String>| -> Result<Option<UnixMillis>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let bad = || Failure::unusable(format_args!("--{name} {text} is no time such as 2026-11-28"));
        export::parse_utc(text).map(Some).ok_or_else(bad)
    };
    let kind = |text: &String| {
        let known = Kind::ALL.iter().find(|kind| kind.as_str() == text).copied();
        known.ok_or_else(|| {
            let all: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            Failure::unusable(format_args!("--kind {text} is not known; there are {}", all.join(", ")))
        })
    };
    Ok(Filter {
        from: time("from", &args.from)?,
        to: time("to", &args.to)?,
        kinds: args.kinds.iter().map(kind).collect::<Result<_, _>>()?,
        payer: args.payer.clone(),
    })
}

fn accept_loss(args: &LossArgs, output: &mut Output) -> Result<(), Failure> {
    let place = Place::of(&args.config)?;
    let lost = place.holds.unwrap_or_default();
    let log = AuditLog::open(&place.directory, Options::default()).map_err(Failure::failed)?;
    let entry =
        Entry::new(Kind::Loss).number("lost_seq", lost.seq).text("lost_hash", lost.hash).text("reason", &args.reason);
    let position = log.append_blocking(entry).map_err(Failure::failed)?;
    output.done(format_args!(
        "entry {} records that ledger and record parted at entry {}; Turnpike can start again",
        position.seq, lost.seq
    ));
    Ok(())
}

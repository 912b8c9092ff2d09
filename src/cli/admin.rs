//! `turnpike channels`, `turnpike passes` and `turnpike settle`: questions and orders for a running Turnpike, by its admin address.

use std::time::Duration;

use clap::Args as ClapArgs;
use http::{HeaderMap, Method, Uri};
use serde_json::Value;

use super::output::{Output, Style, grouped};
use super::{Failure, runtime};
use crate::client::http::{Http, Request};
use crate::ledger::passes::PassId;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Lists channels, largest exposure first.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  turnpike channels\n  turnpike channels --limit 1000 --json")]
pub struct ChannelsArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How many
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

/// Lists the passes that were sold, newest first, or ends one.
#[derive(Debug, ClapArgs)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "A pass is named by the SHA-256 of its token, as the list shows it; the token itself is nowhere.\n\nExamples:\n  turnpike passes\n  turnpike passes --limit 1000 --json\n  turnpike passes revoke 5f1c...e9"
)]
pub struct PassesArgs {
    #[command(subcommand)]
    action: Option<PassAction>,
    #[command(flatten)]
    admin: AdminArgs,
    /// How many
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

#[derive(Debug, clap::Subcommand)]
enum PassAction {
    /// End a pass: it takes no more calls, and nothing is given back for it
    Revoke(RevokeArgs),
}

#[derive(Debug, ClapArgs)]
struct RevokeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// The pass, as `turnpike passes` lists it
    pass: PassId,
}

/// Settles what is owed now and waits until it is done.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  turnpike settle\n  turnpike settle --json")]
pub struct SettleArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// How long an answer of the admin side is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, ClapArgs)]
struct AdminArgs {
    /// Where the running Turnpike's admin side listens
    #[arg(long, env = "TURNPIKE_ADMIN", default_value = "http://127.0.0.1:9402")]
    admin: String,
    /// The answer as JSON
    #[arg(long)]
    json: bool,
}

impl AdminArgs {
    /// Asks, and waits for the answer: a settlement of very many channels has one when it is over.
    fn ask(&self, method: Method, path: &str) -> Result<Value, Failure> {
        let uri: Uri = format!("{}{path}", self.admin.trim_end_matches('/')).parse().map_err(|_| {
            Failure::unusable(format_args!("--admin {:?} is not an address such as http://127.0.0.1:9402", self.admin))
        })?;
        let request = Request { method, uri, headers: HeaderMap::new(), body: bytes::Bytes::new() };
        runtime()?.block_on(async {
            let http = Http::waiting(ANSWER_WITHIN).map_err(Failure::failed)?;
            let response = http.send(&request, None).await.map_err(|error| {
                Failure::failed(format_args!("{error}. Is `turnpike serve` running, and is admin.listen this address?"))
            })?;
            let status = response.status();
            let body = response.bytes(ANSWER_BYTES_MAX).await.map_err(Failure::failed)?;
            if status != 200 {
                return Err(Failure::failed(format_args!("status {status}: {}", String::from_utf8_lossy(&body))));
            }
            serde_json::from_slice(&body).map_err(Failure::failed)
        })
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn number(value: &Value) -> String {
    text(value).parse().map_or_else(|_| text(value), grouped)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Runs `turnpike channels`.
///
/// # Errors
/// [`Failure`].
pub fn channels(args: &ChannelsArgs, output: &mut Output) -> Result<(), Failure> {
    let answer = args.admin.ask(Method::GET, &format!("/api/channels?limit={}", args.limit))?;
    if args.admin.json {
        output.line(&answer);
        return Ok(());
    }
    let mut rows =
        vec![["channel", "payer", "deposit", "charged", "claimed", "exposure", "status"].map(str::to_owned).to_vec()];
    for row in list(&answer["channels"]) {
        let amounts = ["deposit", "charged", "claimed", "exposure"].map(|field| number(&row[field]));
        let mut cells = vec![text(&row["channel"]), text(&row["payer"])];
        cells.extend(amounts);
        cells.push(text(&row["status"]));
        rows.push(cells);
    }
    output.table(&rows);
    let shown = list(&answer["channels"]).len();
    let summary =
        format!("{shown} of {} channels, exposure {} atomic units", answer["total"], number(&answer["exposure"]));
    let summary = output.styled(Style::Dim, &summary);
    output.line(format_args!("  {summary}"));
    Ok(())
}

/// Runs `turnpike passes`.
///
/// # Errors
/// [`Failure`].
pub fn passes(args: &PassesArgs, output: &mut Output) -> Result<(), Failure> {
    if let Some(PassAction::Revoke(args)) = &args.action {
        let pass = args.admin.ask(Method::POST, &format!("/api/passes/{}/revoke", args.pass))?;
        if args.admin.json {
            output.line(&pass);
        } else {
            let (left, calls) = (number(&pass["callsLeft"]), number(&pass["calls"]));
            output.done(format_args!("revoked; {left} of {calls} calls were left to payer {}", text(&pass["payer"])));
        }
        return Ok(());
    }
    let answer = args.admin.ask(Method::GET, &format!("/api/passes?limit={}", args.limit))?;
    if args.admin.json {
        output.line(&answer);
        return Ok(());
    }
    let mut rows = vec![["pass", "payer", "route", "left", "calls", "price", "state"].map(str::to_owned).to_vec()];
    for row in list(&answer["passes"]) {
        let mut cells = ["pass", "payer", "route"].map(|field| text(&row[field])).to_vec();
        cells.extend(["callsLeft", "calls", "price"].map(|field| number(&row[field])));
        cells.push(text(&row["state"]));
        rows.push(cells);
    }
    output.table(&rows);
    let summary = format!("{} of {} passes", list(&answer["passes"]).len(), answer["total"]);
    let summary = output.styled(Style::Dim, &summary);
    output.line(format_args!("  {summary}"));
    Ok(())
}

/// Runs `turnpike settle`.
///
/// # Errors
/// [`Failure`].
pub fn settle(args: &SettleArgs, output: &mut Output) -> Result<(), Failure> {
    let report = args.admin.ask(Method::POST, "/api/settle")?;
    if args.admin.json {
        output.line(&report);
    } else {
        for line in list(&report["lines"]) {
            output.done(text(line));
        }
    }
    match report["failures"].as_u64() {
        Some(0) => Ok(()),
        _ => Err(Failure::failed("some channels could not be settled; the lines above and the log say why")),
    }
}

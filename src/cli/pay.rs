//! `turnpike pay URL`: a paying client for trying things out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args as ClapArgs;
use ed25519_dalek::SigningKey;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::output::{Output, grouped};
use super::{Failure, runtime};
use crate::amount::Amount;
use crate::chain::svm::{SvmRpc, SvmRpcOptions};
use crate::client::channel::ClientChannel;
use crate::client::http::Request;
use crate::client::pack::ClientPass;
use crate::client::{Client, Spending};

/// What a sandbox gives a new wallet, in atomic units.
const SANDBOX_FUNDS: u64 = 5_000_000;
/// The largest answer that is printed.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Requests a resource and pays for it from a channel that it opens, fills, uses again next time, and can close.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  turnpike pay http://127.0.0.1:8402/v1/quote/btc\n  turnpike pay http://127.0.0.1:8402/v1/quote/btc -n 50 --json\n  turnpike pay http://127.0.0.1:8402/v1/quote/btc -n 50 --pack\n  turnpike pay http://127.0.0.1:8402/v1/search -X POST -d '{\"q\":\"x402\"}'\n  turnpike pay http://127.0.0.1:8402/v1/quote/btc --refund"
)]
pub struct Args {
    /// What to request
    url: Uri,
    /// How many calls to pay for
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    calls: u32,
    /// The request's method
    #[arg(short = 'X', long, default_value = "GET")]
    method: Method,
    /// The request's body
    #[arg(short, long)]
    data: Option<String>,
    /// A header of the request, as `Name: value`
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The wallet, a Solana keypair file; made where it does not exist (sandbox and test networks only)
    #[arg(long, env = "TURNPIKE_WALLET", default_value = "turnpike-wallet.json")]
    wallet: PathBuf,
    /// The network's JSON-RPC endpoint; a sandbox answers here
    #[arg(long, env = "TURNPIKE_RPC_URL", default_value = "http://127.0.0.1:8899")]
    rpc_url: String,
    /// What a new channel is filled with, in atomic units
    #[arg(long, default_value_t = 1_000_000, value_name = "UNITS")]
    deposit: u64,
    /// The most that one call may cost, in atomic units
    #[arg(long, default_value_t = 1_000_000, value_name = "UNITS")]
    max_price: u64,
    /// Buy a pack of calls where one is offered, for at most `--max-price`, and make the calls on its pass
    #[arg(long)]
    pack: bool,
    /// Close the channel afterwards (or only that, with `-n 1` and an open channel) and take back what is left
    #[arg(long)]
    refund: bool,
    /// One JSON object per line instead of text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`].
pub fn run(args: Args, output: &mut Output) -> Result<(), Failure> {
    runtime()?.block_on(pay(args, output))
}

async fn pay(args: Args, output: &mut Output) -> Result<(), Failure> {
    let request = Request {
        method: args.method.clone(),
        uri: args.url.clone(),
        headers: headers(&args.headers)?,
        body: args.data.clone().unwrap_or_default().into(),
    };
    let (key, fresh) = wallet(&args.wallet)?;
    let chain = SvmRpc::new(SvmRpcOptions::cluster(vec![args.rpc_url.clone()])).map_err(Failure::unusable)?;
    let deposit = Amount::from(args.deposit);
    let spending = Spending { call_max: Amount::from(args.max_price), deposit, deposit_max: deposit };
    let client = Client::new(key, Arc::new(chain), spending).map_err(Failure::failed)?;
    if fresh {
        let funded = fund(&args.rpc_url, &client).await;
        if !args.json {
            let note = if funded { ", which the sandbox has given 5 USDC" } else { "; fund it before it can pay" };
            output.line(format_args!("new wallet {} in {}{note}", client.address(), args.wallet.display()));
        }
    }
    let state = args.wallet.with_extension("channels.json");
    for channel in load::<ClientChannel>(&state)? {
        client.restore(channel).await;
    }
    let passes = args.wallet.with_extension("passes.json");
    for pass in load::<ClientPass>(&passes)? {
        client.restore_pass(pass).await;
    }
    let result = calls(&client, &args, &request, output).await;
    save(&state, &client.channels().await)?;
    if args.pack {
        save(&passes, &client.passes().await)?;
    }
    result?;
    if args.refund {
        let settled = client.refund(&request).await.map_err(Failure::failed)?;
        save(&state, &client.channels().await)?;
        if args.json {
            output.line(serde_json::json!({ "refund": settled }));
        } else {
            let amount = settled.amount.unwrap_or_default();
            output.line(format_args!("refunded {amount} atomic units in transaction {}", settled.transaction));
        }
    }
    Ok(())
}

async fn calls(client: &Client, args: &Args, request: &Request, output: &mut Output) -> Result<(), Failure> {
    let mut total = Amount::ZERO;
    for call in 1..=args.calls {
        let paid = if args.pack {
            client.call_on_pack(request, Amount::from(args.max_price)).await
        } else {
            client.call(request).await
        };
        let paid = paid.map_err(|error| explain(&error, client))?;
        total = total.saturating_add(paid.charged);
        let (charged, left, mut settlement) = (paid.charged, paid.calls_left, paid.settlement);
        if let Some(settlement) = &mut settlement {
            // The pass is a secret, and kept in a file of its own, at once.
            settlement.extensions.clear();
            if args.pack {
                save(&args.wallet.with_extension("passes.json"), &client.passes().await)?;
            }
        }
        let status = paid.response.status();
        let body = match paid.response.bytes(BODY_BYTES_MAX).await {
            Ok(body) => body,
            // It was paid for: the server may have kept it.
            Err(error) => match client.again(request).await {
                Ok(Some(again)) => again.response.bytes(BODY_BYTES_MAX).await.map_err(Failure::failed)?,
                Ok(None) | Err(_) => return Err(Failure::failed(error)),
            },
        };
        if args.json {
            output.line(serde_json::json!({
                "call": call, "status": status, "bytes": body.len(), "charged": charged, "callsLeft": left, "settlement": settlement,
            }));
        } else if args.calls == 1 {
            output.line(String::from_utf8_lossy(&body).trim_end());
            let left = left.map(|left| format!(", {left} calls left on the pass")).unwrap_or_default();
            output.line(format_args!("status {status}, charged {} atomic units{left}", grouped(charged.get())));
        } else if call == args.calls || call % 10 == 0 {
            output.line(format_args!("{call} calls, charged {} atomic units in all", grouped(total.get())));
        }
    }
    Ok(())
}

/// Asks a sandbox for tokens; any other chain knows no such method.
async fn fund(rpc_url: &str, client: &Client) -> bool {
    let call = serde_json::json!({
        "jsonrpc": "2.0", "id": 1, "method": "sandbox_mintTo", "params": [client.address(), SANDBOX_FUNDS],
    });
    let Ok(uri) = rpc_url.parse() else { return false };
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let request = Request { method: Method::POST, uri, headers, body: call.to_string().into() };
    let Ok(response) = client.ask(&request).await else { return false };
    let Ok(body) = response.bytes(BODY_BYTES_MAX).await else { return false };
    serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|answer| answer["result"].is_string())
}

/// The client's error, with the one remedy that a newcomer needs most.
fn explain(error: &crate::client::ClientError, client: &Client) -> Failure {
    let text = error.to_string();
    if text.contains(crate::x402::Reason::InsufficientFunds.as_str()) {
        return Failure::failed(format_args!(
            "{text}. Wallet {} holds too few tokens: fund it; on a sandbox a new wallet (--wallet) is given some",
            client.address()
        ));
    }
    Failure::failed(text)
}

fn headers(lines: &[String]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let wrong = || Failure::unusable(format_args!("--header {line:?} is not of the form `Name: value`"));
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::try_from(value.trim()).map_err(|_| wrong())?);
    }
    Ok(headers)
}

/// Reads a Solana keypair file (64 numbers: seed, then public key), or makes one.
fn wallet(path: &Path) -> Result<(SigningKey, bool), Failure> {
    let wrong = |what: &str| Failure::unusable(format_args!("{}: {what}", path.display()));
    match std::fs::read(path) {
        Ok(text) => {
            let bytes: Vec<u8> = serde_json::from_slice(&text).map_err(|_| wrong("not a Solana keypair file"))?;
            let bytes: [u8; 64] = bytes.try_into().map_err(|_| wrong("not a keypair of 64 bytes"))?;
            let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| wrong("the two halves do not fit"))?;
            Ok((key, false))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(Failure::failed)?;
            let key = SigningKey::from_bytes(&seed);
            let text = serde_json::to_string(&key.to_keypair_bytes().to_vec()).map_err(Failure::failed)?;
            write_private(path, text.as_bytes())?;
            Ok((key, true))
        }
        Err(error) => Err(wrong(&error.to_string())),
    }
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let partial = path.with_extension("partial");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(std::fs::rename(&partial, path)?)
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Failure> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            Failure::unusable(format_args!("{}: {error}; move it away to start without what is in it", path.display()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Failure::unusable(format_args!("{}: {error}", path.display()))),
    }
}

fn save(path: &Path, kept: &[impl Serialize]) -> Result<(), Failure> {
    write_private(path, serde_json::to_string_pretty(kept).map_err(Failure::failed)?.as_bytes())
}

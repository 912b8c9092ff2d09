//! `turnpike demo`: the whole of it in one process, on a sandbox chain, with books that tie out at the end.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use axum::extract::Path as Segment;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use clap::Args as ClapArgs;
use ed25519_dalek::SigningKey;
use http::Uri;
use serde_json::{Value, json};

use super::output::{Output, Style, grouped};
use super::{Failure, runtime};
use crate::amount::Amount;
use crate::app::Running;
use crate::client::http::Request;
use crate::client::{Client, Spending};
use crate::config::Config;
use crate::telemetry::{self, LogFormat};
use crate::x402::Key;

/// What the demo's client puts into its channel: one whole token.
const DEPOSIT: u64 = 1_000_000;
/// What the demo's client is given to start with: five.
const FUNDS: u64 = 5 * DEPOSIT;

/// Shows a merchant being paid: a sample API, the proxy in front of it, a sandbox chain, and an agent that pays.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  turnpike demo\n  turnpike demo --calls 500\n  turnpike demo --keep")]
pub struct Args {
    /// How many paid calls the client makes
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=900))]
    calls: u32,
    /// Leave it running afterwards, until interrupted
    #[arg(long)]
    keep: bool,
    /// The result as JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] where a step fails or the books do not tie out.
pub fn run(args: Args, output: &mut Output) -> Result<(), Failure> {
    telemetry::init_logs(LogFormat::Text, "error");
    runtime()?.block_on(show(&args, output))
}

/// Who holds how much at one moment.
struct Books {
    moment: &'static str,
    payer: u64,
    merchant: u64,
    escrow: u64,
}

impl Books {
    fn sum(&self) -> u64 {
        self.payer.saturating_add(self.merchant).saturating_add(self.escrow)
    }
}

/// The parts that the demo talks to.
struct Stage {
    running: Running,
    client: Client,
    pay_to: Key,
    channel: Option<Key>,
    books: Vec<Books>,
}

impl Stage {
    fn url(&self, path: &str) -> Result<Uri, Failure> {
        format!("http://{}{path}", self.running.address()).parse().map_err(Failure::failed)
    }

    fn balance(&self, owner: &Key) -> u64 {
        self.running.merchant().sandbox().map_or(0, |sandbox| sandbox.chain().token_balance(owner))
    }

    fn note(&mut self, moment: &'static str) {
        let escrow = self.channel.map_or(0, |channel| self.balance(&channel));
        let books =
            Books { moment, payer: self.balance(&self.client.address()), merchant: self.balance(&self.pay_to), escrow };
        self.books.push(books);
    }
}

async fn show(args: &Args, output: &mut Output) -> Result<(), Failure> {
    let mut quiet = Output::silent();
    let say = if args.json { &mut quiet } else { &mut *output };
    say.heading("Turnpike demo: an API is paid per call, and the money is settled by a 2-of-3 threshold signature");
    let mut stage = set_up(say).await?;
    let quote = Request::get(stage.url("/v1/quote/sol")?);
    let fails = Request::get(stage.url("/v1/fail")?);

    say.heading("An agent calls");
    let unpaid = stage.client.ask(&quote).await.map_err(Failure::failed)?;
    expect(unpaid.status() == 402, "the unpaid call was not answered 402")?;
    say.done("GET /v1/quote/sol without payment: 402 Payment Required, with the price and how to pay");

    let first = stage.client.call(&quote).await.map_err(Failure::failed)?;
    let mut charged = first.charged;
    stage.channel = stage.client.channels().await.first().map(|channel| channel.id);
    stage.note("after the deposit");
    say.done(format_args!(
        "it opens a channel with 1.00 USDC, sponsored by the merchant's key, and the call is served: {} USDC",
        usdc(charged.get())
    ));
    for call in 2..=args.calls {
        let paid = stage.client.call(&quote).await.map_err(Failure::failed)?;
        charged = charged.saturating_add(paid.charged);
        if call % 10 == 0 || call == args.calls {
            say.done(format_args!(
                "{call} calls paid, one signed voucher each, none on chain: {} USDC",
                usdc(charged.get())
            ));
        }
    }
    let failed = stage.client.call(&fails).await.map_err(Failure::failed)?;
    expect(failed.response.status() == 500 && failed.charged == Amount::ZERO, "the failing call was charged")?;
    say.done("the API fails with 500 on GET /v1/fail: the agent is not charged");
    stage.note("after the calls");

    say.heading("The merchant is paid");
    let settled = stage.running.merchant().settle_now().await;
    expect(settled.failures == 0, "settlement met failures")?;
    stage.note("after settlement");
    for line in &settled.lines {
        say.done(line);
    }
    let refund = stage.client.refund(&quote).await.map_err(Failure::failed)?;
    stage.note("after the refund");
    say.done(format_args!(
        "the agent asks for the rest: {} USDC come back, the channel is closed ({}…)",
        usdc(refund.amount.unwrap_or_default().parse().unwrap_or(0)),
        refund.transaction.chars().take(12).collect::<String>()
    ));
    finish(args, &stage, charged, output)?;
    if args.keep {
        keep(&stage, output).await?;
    }
    stage.running.drain().await;
    Ok(())
}

async fn set_up(say: &mut Output) -> Result<Stage, Failure> {
    let (api, _served) = sample_api().await?;
    let pay_to = Key(SigningKey::from_bytes(&seed()?).verifying_key().to_bytes());
    let text = format!(
        "upstream: http://{api}\nnetwork: sandbox\npay_to: {pay_to}\nlisten: 127.0.0.1:{}\nadmin: {{ listen: '127.0.0.1:{}' }}\n\
         sandbox: {{ rpc_listen: '127.0.0.1:{}' }}\nroutes:\n  - {{ path: '/v1/*', price: '$0.001' }}\n  - {{ path: /health, free: true }}\n",
        free_or(8402),
        free_or(9402),
        free_or(8899),
    );
    let (config, _) = Config::parse(Path::new("demo.yaml"), &text, &|_| None).map_err(Failure::failed)?;
    let running = Running::start(config).await.map_err(Failure::failed)?;
    let sandbox = running.merchant().sandbox().ok_or_else(|| Failure::failed("the demo's sandbox did not start"))?;
    let client = Client::new(
        SigningKey::from_bytes(&seed()?),
        running.merchant().chain().ok_or_else(|| Failure::failed("the demo has no chain"))?,
        Spending {
            call_max: Amount::from(DEPOSIT),
            deposit: Amount::from(DEPOSIT),
            deposit_max: Amount::from(DEPOSIT),
        },
    )
    .map_err(Failure::failed)?;
    sandbox.chain().mint_to(&client.address(), FUNDS).map_err(Failure::failed)?;
    say.done(format_args!("a sample API listens on {api}"));
    say.done(format_args!("a sandbox chain answers Solana's JSON-RPC on {}", sandbox.rpc_url()));
    say.done(format_args!(
        "three key shares are made, two of them sign: group key {}",
        running.merchant().public_key()
    ));
    say.done(format_args!("turnpike sells /v1/* for $0.001 a call on http://{}", running.address()));
    let mut stage = Stage { running, client, pay_to, channel: None, books: Vec::new() };
    stage.note("at the start");
    Ok(stage)
}

/// Checks the books and shows them.
fn finish(args: &Args, stage: &Stage, charged: Amount, output: &mut Output) -> Result<(), Failure> {
    let last = stage.books.last().ok_or_else(|| Failure::failed("no books were kept"))?;
    let tied = stage.books.iter().all(|books| books.sum() == FUNDS)
        && u128::from(last.merchant) == charged.get()
        && u128::from(FUNDS.saturating_sub(last.payer)) == charged.get()
        && last.escrow == 0;
    let admin = stage.running.merchant().admin_address();
    if args.json {
        let rows: Vec<Value> = stage
            .books
            .iter()
            .map(|b| json!({ "moment": b.moment, "payer": b.payer, "merchant": b.merchant, "escrow": b.escrow }))
            .collect();
        output.line(json!({ "calls": args.calls, "charged": charged, "books": rows, "tieOut": tied }));
    } else {
        output.heading("The books, in atomic units of USDC");
        let mut rows = vec![["", "payer", "merchant", "escrow", "sum"].map(str::to_owned).to_vec()];
        for books in &stage.books {
            let numbers = [books.payer, books.merchant, books.escrow, books.sum()];
            let mut row = vec![books.moment.to_owned()];
            row.extend(numbers.map(|n| grouped(u128::from(n))));
            rows.push(row);
        }
        output.table(&rows);
        let verdict =
            format!("charged {}, received {}, paid {}", charged, last.merchant, FUNDS.saturating_sub(last.payer));
        if tied {
            output.done(format_args!("they tie out to the atomic unit: {verdict}"));
        }
        output.heading("Where to look");
        output.line(format_args!("  metrics    http://{admin}/metrics   health  http://{admin}/health"));
        output.line("  dashboard  config/grafana/turnpike.json, alerts in config/prometheus/");
        output.line("  next       turnpike init, turnpike check, turnpike serve: README.md");
    }
    expect(tied, "the books do not tie out")
}

async fn keep(stage: &Stage, output: &mut Output) -> Result<(), Failure> {
    let address = stage.running.address();
    let hint = output.styled(Style::Bold, "It keeps running; Ctrl-C ends it.");
    output.line(format_args!("\n{hint} Try: curl -i http://{address}/v1/quote/btc"));
    Ok(tokio::signal::ctrl_c().await?)
}

fn expect(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::failed(otherwise)) }
}

fn usdc(units: u128) -> String {
    let asset = crate::amount::Asset { address: "".into(), symbol: "USDC".into(), decimals: 6 };
    asset.format_decimal(Amount::new(units))
}

fn seed() -> Result<[u8; 32], Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(Failure::failed)?;
    Ok(seed)
}

/// The port, if nobody has it; else any.
fn free_or(port: u16) -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_or(0, |_| port)
}

/// An API that knows nothing of payments.
async fn sample_api() -> Result<(SocketAddr, tokio::task::JoinHandle<()>), Failure> {
    let quote = |Segment(symbol): Segment<String>| async move {
        Json(json!({ "symbol": symbol, "price": "181.42", "source": "sample API" }))
    };
    let router = Router::new()
        .route("/v1/quote/{symbol}", get(quote))
        .route("/v1/fail", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "this always fails") }))
        .route("/health", get(|| async { "ok" }));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let served = tokio::spawn(async move {
        let _ended = axum::serve(listener, router).await;
    });
    Ok((address, served))
}

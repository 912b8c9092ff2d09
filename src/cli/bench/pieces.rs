//! The other ends of a measurement, each a process of its own: the upstream, the proxies that do nothing but pass on, or
//! little more (`floor.rs`), and a facilitator.
//!
//! The bare proxy is the yardstick: hyper's server and hyper-util's client, one current-thread runtime for each
//! processor on one port, as Turnpike has it, and nothing of what makes a proxy safe. The facilitator stands in for an
//! EVM chain, which vouchers do not ask while what is known of their channel is fresh: to it every channel is full.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::BenchError;
use super::floor::{self, Checks, Lines};
use crate::scheme::evm::eip712::{ChannelConfig, Domain as EvmDomain, channel_id};
use crate::x402::Network;

/// The upstream's answer, in bytes.
pub const ANSWER_BYTES: usize = 200;
/// What every channel holds, to the facilitator that stands in for a chain.
const BALANCE: &str = "1000000000000";
/// The longest question that it reads.
const QUESTION_BYTES_MAX: usize = 64 << 10;

/// A piece, as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Answers everything with [`ANSWER_BYTES`].
    Upstream,
    /// Passes everything on.
    Bare(SocketAddr),
    /// The same, but for a signature's check and a line in this file for each request (`floor.rs`).
    Floor(SocketAddr, PathBuf),
    /// Says that every channel of `batch-settlement` on this EVM network is full.
    Facilitator(Network),
}

impl FromStr for Piece {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "upstream" => Ok(Self::Upstream),
            Some(("bare", address)) => address.parse().map(Self::Bare).map_err(|_| format!("{address} is no address")),
            Some(("floor", rest)) => {
                let (address, file) = rest.split_once('@').ok_or("floor=ADDRESS@FILE")?;
                address.parse().map(|to| Self::Floor(to, file.into())).map_err(|_| format!("{address} is no address"))
            }
            Some(("facilitator", network)) => {
                network.parse().map(Self::Facilitator).map_err(|error| format!("{error:?}"))
            }
            _ => Err("upstream, bare=ADDRESS, floor=ADDRESS@FILE or facilitator=NETWORK".to_owned()),
        }
    }
}

impl Piece {
    /// How it is named on the command line.
    #[must_use]
    pub fn argument(&self) -> String {
        match self {
            Self::Upstream => "upstream".to_owned(),
            Self::Bare(address) => format!("bare={address}"),
            Self::Floor(address, file) => format!("floor={address}@{}", file.display()),
            Self::Facilitator(network) => format!("facilitator={network}"),
        }
    }

    /// Serves it on a free port, which `announce` is told of, until the process ends.
    ///
    /// # Errors
    /// [`BenchError`] where a socket or a thread cannot be had.
    pub fn serve(self, announce: impl FnOnce(SocketAddr)) -> Result<(), BenchError> {
        match self {
            Self::Upstream => serve(announce, || {
                |_: Request<Incoming>| async {
                    Ok::<_, BenchError>(Response::new(Full::new(Bytes::from_static(&[b'x'; ANSWER_BYTES]))))
                }
            }),
            Self::Bare(upstream) => {
                let authority: Authority = upstream.to_string().parse()?;
                serve(announce, move || pass_on(authority.clone()))
            }
            Self::Floor(upstream, file) => {
                let authority: Authority = upstream.to_string().parse()?;
                let lines = Lines::start(&file)?;
                serve(announce, move || {
                    let (pass_on, lines, checks) = (pass_on(authority.clone()), lines.clone(), Checks::new());
                    let checks = Arc::new(checks);
                    move |request: Request<Incoming>| {
                        let (lines, passes) = (lines.clone(), checks.check());
                        let answer = pass_on(floor::strip(request));
                        async move {
                            if !passes {
                                return Err("a signature of our own does not verify".into());
                            }
                            let answer = answer.await?;
                            lines.keep().await?;
                            floor::told(answer)
                        }
                    }
                })
            }
            Self::Facilitator(network) => serve(announce, move || {
                let network = network.clone();
                move |request: Request<Incoming>| {
                    let network = network.clone();
                    async move {
                        let answer = told(request, &network).await?;
                        let response = Response::builder().header("content-type", "application/json");
                        Ok::<_, BenchError>(response.body(Full::new(Bytes::from(answer.to_string())))?)
                    }
                }
            }),
        }
    }
}

fn pass_on(authority: Authority) -> impl Fn(Request<Incoming>) -> Passing + Clone {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> =
        Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
    move |mut request: Request<Incoming>| {
        let target = request.uri().path_and_query().cloned();
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority.clone());
        if let Some(uri) = target.and_then(|target| uri.path_and_query(target).build().ok()) {
            *request.uri_mut() = uri;
        }
        client.request(request)
    }
}

type Passing = hyper_util::client::legacy::ResponseFuture;

/// What the facilitator says.
async fn told(request: Request<Incoming>, network: &Network) -> Result<Value, BenchError> {
    if request.uri().path().ends_with("/supported") {
        return Ok(json!({ "kinds": [
            { "x402Version": 2, "scheme": "batch-settlement", "network": network },
        ] }));
    }
    let question = Limited::new(request.into_body(), QUESTION_BYTES_MAX).collect().await?.to_bytes();
    let question: Value = serde_json::from_slice(&question)?;
    let config: ChannelConfig = serde_json::from_value(question["paymentPayload"]["payload"]["channelConfig"].clone())?;
    let chain = network.as_str().rsplit(':').next().and_then(|id| id.parse().ok()).unwrap_or_default();
    Ok(json!({
        "isValid": true,
        "payer": config.payer,
        "extra": {
            "channelId": channel_id(&EvmDomain::batch_settlement(chain), &config),
            "balance": BALANCE,
            "totalClaimed": "0",
            "withdrawRequestedAt": 0,
            "refundNonce": "0",
        },
    }))
}

/// Serves with what `make` makes for each thread.
fn serve<S, F, B, E>(
    announce: impl FnOnce(SocketAddr),
    make: impl Fn() -> S + Send + Clone + 'static,
) -> Result<(), BenchError>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data: Send, Error: Into<BenchError>> + Send + 'static,
    E: Into<BenchError> + 'static,
{
    let first = bind(([127, 0, 0, 1], 0).into())?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..std::thread::available_parallelism()?.get() {
        listeners.push(bind(address)?);
    }
    announce(address);
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let make = make.clone();
            std::thread::spawn(move || -> Result<(), BenchError> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(accept(listener, make()))
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread of a piece panicked")??;
    }
    Ok(())
}

fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

async fn accept<S, F, B, E>(listener: std::net::TcpListener, serve: S) -> Result<(), BenchError>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data: Send, Error: Into<BenchError>> + Send + 'static,
    E: Into<BenchError> + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(serve.clone()));
        tokio::spawn(async move {
            let _gone = connection.await;
        });
    }
}

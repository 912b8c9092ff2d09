//! The upstream, and the proxy that does nothing but pass on: hyper's server and hyper-util's client, one
//! current-thread runtime for each processor on one port, as Turnpike has it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};

/// Answers everything with 200 bytes, and says what a metered call costs.
pub fn upstream() {
    serve(|| {
        |_: Request<Incoming>| async {
            let body = Full::new(Bytes::from_static(&[b'x'; 200]));
            Ok::<_, Infallible>(Response::builder().header("x-usage", "0.0042").body(body).unwrap())
        }
    });
}

/// Passes everything on to `upstream`.
pub fn proxy(upstream: SocketAddr) {
    let authority: Authority = upstream.to_string().parse().unwrap();
    serve(move || {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client: Client<_, Incoming> =
            Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let authority = authority.clone();
        move |mut request: Request<Incoming>| {
            let path = request.uri().path_and_query().unwrap().clone();
            let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority.clone()).path_and_query(path);
            *request.uri_mut() = uri.build().unwrap();
            client.request(request)
        }
    });
}

/// Serves with what `make` makes for each thread, and never returns.
fn serve<S, F, B, E>(make: impl Fn() -> S + Send + Clone + 'static)
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let first = bind(([127, 0, 0, 1], 0).into());
    let address = first.local_addr().unwrap();
    let more = (1..std::thread::available_parallelism().unwrap().get()).map(|_| bind(address));
    let listeners: Vec<_> = std::iter::once(first).chain(more).collect();
    println!("listening on {address}");
    let threads = listeners.into_iter().map(|listener| {
        let make = make.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, make()));
        })
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn bind(address: SocketAddr) -> std::net::TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.into()
}

async fn accept<S, F, B, E>(listener: std::net::TcpListener, serve: S)
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(serve.clone()));
        tokio::spawn(async move {
            let _gone = connection.await;
        });
    }
}

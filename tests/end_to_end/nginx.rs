//! nginx, as Debian packages it, behind `turnpike serve`: what it answers arrives as it was sent, and is paid for.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;

use http::{HeaderMap, HeaderName, Method};
use turnpike::amount::Amount;
use turnpike::client::http::{Http, Request, Response};
use turnpike::x402::header::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use turnpike::x402::wire::PaymentRequired;

use super::support::{Process, Turnpike, client, directory};

pub const PRICE: u64 = 1000;

/// An nginx in one process of its own, on two loopback ports: HTTP/1.1, and HTTP/2 in the clear.
pub struct Nginx {
    _process: Process,
    pub http1: String,
    pub http2: String,
}

impl Nginx {
    /// Serves the files in `directory`, as `server` (what stands in a `server` block) says.
    pub fn start(directory: &Path, server: &str) -> Self {
        let at = directory.display();
        let ports = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [http1, http2] = ports.each_ref().map(|port| port.local_addr().unwrap());
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log stderr notice;\nevents {{}}\nhttp {{\n\
             access_log off; absolute_redirect off; root {at};\n\
             client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3; uwsgi_temp_path {at}/4; \
             scgi_temp_path {at}/5;\n\
             types {{ text/plain txt; application/octet-stream bin; }}\n\
             server {{ listen {http1}; {server} }}\nserver {{ listen {http2} http2; {server} }}\n}}\n"
        );
        let file = directory.join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        drop(ports);
        let process = Process::start(Command::new("nginx").args(["-e", "stderr", "-c"]).arg(&file));
        // Said when the ports are open.
        process.wait_for("nginx to listen", |line| line.contains("event method").then_some(()));
        Self { _process: process, http1: format!("http://{http1}"), http2: format!("h2c://{http2}") }
    }
}

/// A sandbox configuration that sells all of `upstream` but `/free/`.
pub fn sells(upstream: &str) -> String {
    format!(
        "upstream: {upstream}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\nroutes:\n  \
         - {{ path: /free/*, free: true }}\n  - {{ path: /*, price: '$0.001' }}"
    )
}

type Headers<'a> = &'a [(&'a str, &'a str)];

/// What a client sees of an answer, without what each answer or each connection has for itself.
async fn seen(response: Response) -> (u16, HeaderMap, bytes::Bytes) {
    let mut headers = response.headers().clone();
    for own in ["connection", "date", "payment-response", "x-request-id"] {
        headers.remove(own);
    }
    (response.status(), headers, response.bytes(1 << 24).await.unwrap())
}

#[tokio::test]
async fn what_nginx_answers_arrives_as_it_was_sent() {
    let files = directory();
    let text: String = (0..100_000).map(|n| format!("{n}\n")).collect();
    std::fs::write(files.path().join("numbers.txt"), &text).unwrap();
    std::fs::create_dir_all(files.path().join("free")).unwrap();
    std::fs::create_dir_all(files.path().join("folder")).unwrap();
    std::fs::write(files.path().join("free/hello.txt"), "hello").unwrap();
    // Turnpike marks what was paid for as private, so the direct answers say so too.
    let nginx = Nginx::start(
        files.path(),
        "gzip on; gzip_types text/plain; gzip_proxied any; add_header Cache-Control private always;",
    );
    let place = directory();
    let turnpike = Turnpike::serve(place.path(), &sells(&nginx.http1));
    let payer = client(turnpike.rpc_url.as_ref().unwrap(), 1, 5_000_000, 1_000_000).await;

    let unpaid = payer.ask(&Request::get(turnpike.url("/numbers.txt"))).await.unwrap();
    assert_eq!(unpaid.status(), 402);
    let required: PaymentRequired = header::decode(unpaid.header(PAYMENT_REQUIRED).unwrap()).unwrap();
    assert_eq!(required.accepts[0].amount, Amount::from(PRICE));
    let free = payer.ask(&Request::get(turnpike.url("/free/hello.txt"))).await.unwrap();
    assert!(free.header(PAYMENT_RESPONSE).is_none());
    assert_eq!((free.status(), free.bytes(100).await.unwrap().as_ref()), (200, &b"hello"[..]));

    let direct = Http::new().unwrap();
    let tag = direct.send(&Request::get(format!("{}/numbers.txt", nginx.http1).parse().unwrap()), None).await.unwrap();
    let etag = String::from_utf8(tag.header("etag").unwrap().to_vec()).unwrap();
    let modified = String::from_utf8(tag.header("last-modified").unwrap().to_vec()).unwrap();
    let (get, head) = (Method::GET, Method::HEAD);
    let cases: [(&Method, &str, Headers<'_>, u16); 15] = [
        (&get, "/numbers.txt", &[], 200),
        (&head, "/numbers.txt", &[], 200),
        (&get, "/numbers.txt", &[("accept-encoding", "gzip")], 200),
        (&get, "/numbers.txt", &[("range", "bytes=0-9")], 206),
        (&get, "/numbers.txt", &[("range", "bytes=-7")], 206),
        (&get, "/numbers.txt", &[("range", "bytes=500000-")], 206),
        (&get, "/numbers.txt", &[("range", "bytes=9999999-")], 416),
        (&get, "/numbers.txt", &[("range", "bytes=0-9"), ("if-range", &etag)], 206),
        (&get, "/numbers.txt", &[("range", "bytes=0-9"), ("if-range", "\"other\"")], 200),
        (&get, "/numbers.txt", &[("if-none-match", &etag)], 304),
        (&get, "/numbers.txt", &[("if-modified-since", &modified)], 304),
        (&get, "/numbers.txt", &[("if-match", "\"other\"")], 412),
        (&get, "/folder", &[], 301),
        (&get, "/missing.txt", &[], 404),
        (&Method::POST, "/numbers.txt", &[], 405),
    ];
    let mut served = 0;
    for (method, path, headers, status) in cases {
        let mut request = Request::get(format!("{}{path}", nginx.http1).parse().unwrap());
        request.method = method.clone();
        for (name, value) in headers {
            request.headers.insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let wanted = seen(direct.send(&request, None).await.unwrap()).await;
        assert_eq!(wanted.0, status, "{request:?}");
        request.uri = turnpike.url(path);
        let paid = payer.call(&request).await.unwrap();
        let price = if status < 400 { PRICE } else { 0 };
        assert_eq!(paid.charged, Amount::from(price), "{request:?}");
        served += price;
        let got = seen(paid.response).await;
        assert!(got == wanted, "{request:?}:\n{:?}\n{:?}", (got.0, &got.1), (wanted.0, &wanted.1));
    }

    // Refused before it is read, and said so all the same.
    let mut upload = Request::get(turnpike.url("/numbers.txt"));
    upload.method = Method::POST;
    upload.body = vec![0; 4 << 20].into();
    let refused = payer.call(&upload).await.unwrap();
    assert_eq!((refused.response.status(), refused.charged), (413, Amount::ZERO));

    let report = turnpike.settle().await;
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(payer.channels().await[0].charged, Amount::from(served));
}

#[tokio::test]
async fn connections_to_nginx_are_used_again() {
    const CALLS: usize = 20;
    let files = directory();
    let nginx = Nginx::start(files.path(), "location / { return 200 $connection; }");
    let place = directory();
    let turnpike = Turnpike::serve(place.path(), &sells(&nginx.http1));
    let payer = client(turnpike.rpc_url.as_ref().unwrap(), 1, 5_000_000, 1_000_000).await;
    let mut connections = std::collections::HashSet::new();
    for _ in 0..CALLS {
        let paid = payer.call(&Request::get(turnpike.url("/"))).await.unwrap();
        connections.insert(paid.response.bytes(100).await.unwrap());
    }
    assert!(connections.len() < CALLS / 2, "{CALLS} calls took {} connections", connections.len());
}

/// Agrees to every upgrade and sends back what it hears until the other side ends it.
pub fn echo(head: &str, mut stream: std::net::TcpStream) {
    let upgrade = head.lines().find(|line| line.eq_ignore_ascii_case("upgrade: websocket"));
    if upgrade.is_none() {
        let _gone = stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let _gone =
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let _gone = stream.write_all(&line);
        line.clear();
    }
}

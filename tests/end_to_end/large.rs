//! Bodies that are larger than any memory, paid for, through `turnpike serve` and nginx: every byte arrives, and the
//! proxy's memory stays as it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;

use turnpike::client::http::Request;
use turnpike::x402::header::PAYMENT_SIGNATURE;

use super::nginx::{Nginx, sells};
use super::support::{Turnpike, client, directory};
use super::wire::Raw;

/// Not a whole number of any buffer.
const ANSWER_BYTES: u64 = 10_000_000_007;
const BODY_BYTES: usize = 1_000_000_007;
/// How much the proxy's peak memory may grow over what it was after one small call.
const GROWTH_KIB_MAX: u64 = 16 << 10;

/// Where the file has something else than zeros, and what: its own offset. Around them lies what 32 bits cannot count.
const MARKS: [u64; 5] = [0, 1 << 31, (1 << 32) - 4, 7_777_777_777, ANSWER_BYTES - 8];

/// A body that is nowhere the same for a MiB: a block whose length is prime, again and again.
fn block() -> Vec<u8> {
    (0..1_048_573_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect()
}

/// A server that takes one body and says whether it was the one that is sent here.
fn taker() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
        }
        let block = block();
        let mut buffer = vec![0; block.len()];
        let mut left = BODY_BYTES;
        let mut same = head.to_ascii_lowercase().contains(&format!("content-length: {left}\r\n"));
        while left > 0 {
            let count = left.min(block.len());
            reader.read_exact(&mut buffer[..count]).unwrap();
            same &= buffer[..count] == block[..count];
            left -= count;
        }
        let verdict = if same { "same" } else { "else" };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n{verdict}").unwrap();
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_gigabytes_down_and_one_up_need_little_memory() {
    let files = directory();
    let sparse = std::fs::File::create(files.path().join("large.bin")).unwrap();
    sparse.set_len(ANSWER_BYTES).unwrap();
    for mark in MARKS {
        sparse.write_all_at(&mark.to_le_bytes(), mark).unwrap();
    }
    std::fs::write(files.path().join("small.txt"), "small").unwrap();
    let nginx = Nginx::start(
        files.path(),
        &format!(
            "sendfile on; location /take {{ client_max_body_size 0; proxy_request_buffering off; proxy_pass http://{}; }}",
            taker()
        ),
    );
    let place = directory();
    let turnpike = Turnpike::serve(place.path(), &format!("{}\nlimits: {{ body_bytes: 1GiB }}", sells(&nginx.http1)));
    let payer = client(turnpike.rpc_url.as_ref().unwrap(), 1, 5_000_000, 1_000_000).await;
    let small = Request::get(turnpike.url("/small.txt"));
    payer.call(&small).await.unwrap();
    let payments = payer.sign_ahead(&small, 2).await.unwrap();
    let before = turnpike.process.peak_kib();

    tokio::task::block_in_place(|| download(&turnpike, &payments[0]));
    let after = turnpike.process.peak_kib();
    assert!(
        after < before + GROWTH_KIB_MAX,
        "{ANSWER_BYTES} bytes down: peak memory rose from {before} to {after} KiB"
    );

    tokio::task::block_in_place(|| upload(&turnpike, &payments[1]));
    let after = turnpike.process.peak_kib();
    assert!(after < before + GROWTH_KIB_MAX, "{BODY_BYTES} bytes up: peak memory rose from {before} to {after} KiB");

    println!("peak memory of the proxy: {before} KiB before, {after} KiB after");

    // Both were charged: the next call goes on from there.
    let paid = payer.call(&small).await.unwrap();
    let state = &paid.settlement.unwrap().extra["channelState"];
    assert_eq!(state["chargedCumulativeAmount"], "4000");
}

fn download(turnpike: &Turnpike, payment: &str) {
    let mut raw = Raw::connect(turnpike);
    raw.send(&format!(
        "GET /large.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{PAYMENT_SIGNATURE}: {payment}\r\n\r\n"
    ));
    let head = raw.head();
    assert!(
        head.starts_with("http/1.1 200") && head.contains(&format!("content-length: {ANSWER_BYTES}\r\n")),
        "{head}"
    );
    let mut buffer = vec![0; 1 << 20];
    let mut expected = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let count = raw.reader.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        let until = at + u64::try_from(count).unwrap();
        expected[..count].fill(0);
        for mark in MARKS {
            for (byte, place) in mark.to_le_bytes().into_iter().zip(mark..) {
                if (at..until).contains(&place) {
                    expected[usize::try_from(place - at).unwrap()] = byte;
                }
            }
        }
        assert!(buffer[..count] == expected[..count], "between {at} and {until} something else arrived");
        at = until;
    }
    assert_eq!(at, ANSWER_BYTES);
}

fn upload(turnpike: &Turnpike, payment: &str) {
    let mut raw = Raw::connect(turnpike);
    raw.send(&format!(
        "POST /take HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY_BYTES}\r\n{PAYMENT_SIGNATURE}: {payment}\r\n\r\n"
    ));
    let block = block();
    let mut left = BODY_BYTES;
    while left > 0 {
        let count = left.min(block.len());
        raw.writer.write_all(&block[..count]).unwrap();
        left -= count;
    }
    let head = raw.head();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(raw.exactly(4), "same");
}

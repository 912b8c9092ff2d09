//! A load of prepared requests over keep-alive connections, one at a time on each, and what it cost the process that
//! answered them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `/proc/PID/stat` counts in these (`USER_HZ`).
const TICK_MICROS: f64 = 10_000.0;

/// What one connection sends.
pub struct Load {
    path: &'static str,
    payments: Vec<String>,
    count: usize,
    /// How much later each request begins than the one before it, and how long the first waits.
    pace: Option<(Duration, Duration)>,
}

impl Load {
    /// `count` requests, with a payment each where there are payments.
    pub fn new(path: &'static str, payments: Vec<String>, count: usize) -> Self {
        Self { path, payments, count, pace: None }
    }

    /// The same, with one request begun so often, the first after a while, instead of each when the one before it is
    /// answered.
    #[allow(dead_code, reason = "not every bench paces its load")]
    pub fn paced(mut self, every: Duration, first: Duration) -> Self {
        self.pace = Some((every, first));
        self
    }

    fn request(&self, number: usize) -> String {
        let payment = match self.payments.get(number) {
            Some(payment) => format!("PAYMENT-SIGNATURE: {payment}\r\n"),
            None => String::new(),
        };
        format!("GET {} HTTP/1.1\r\nHost: bench\r\n{payment}\r\n", self.path)
    }
}

/// What one round measured.
pub struct Sample {
    pub per_second: f64,
    pub p50_micros: f64,
    pub p99_micros: f64,
    /// Processor time of the process, user and system, for each request.
    pub cpu_micros: f64,
}

/// Sends all loads at once, and expects `status` of every answer.
pub async fn run(pid: u32, address: SocketAddr, status: &'static str, loads: Vec<Load>) -> Sample {
    let mut connections = Vec::new();
    for load in loads {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        connections.push((stream, load));
    }
    let (started, before) = (Instant::now(), cpu_micros(pid));
    let tasks: Vec<_> =
        connections.into_iter().map(|(stream, load)| tokio::spawn(send(stream, load, status))).collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap());
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_micros(pid) - before);
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let count = took.len() as f64;
    Sample { per_second: count / seconds, p50_micros: at(50), p99_micros: at(99), cpu_micros: cpu / count }
}

async fn send(mut stream: TcpStream, load: Load, status: &str) -> Vec<Duration> {
    let status = format!("HTTP/1.1 {status} ");
    let mut buffer = Vec::with_capacity(16 << 10);
    let mut took = Vec::with_capacity(load.count);
    let mut due = Instant::now() + load.pace.map_or(Duration::ZERO, |(_, first)| first);
    for number in 0..load.count {
        let request = load.request(number);
        let mut started = Instant::now();
        if let Some((every, _)) = load.pace {
            // A request that is late because the one before it was answered late has waited since it was due.
            if started < due {
                tokio::time::sleep_until(due.into()).await;
                started = Instant::now();
            } else if number > 0 {
                started = due;
            }
            due += every;
        }
        stream.write_all(request.as_bytes()).await.unwrap();
        buffer.clear();
        let mut whole = usize::MAX;
        while buffer.len() < whole {
            assert!(
                stream.read_buf(&mut buffer).await.unwrap() > 0,
                "closed after {}",
                String::from_utf8_lossy(&buffer)
            );
            if whole == usize::MAX {
                whole = length(&buffer).unwrap_or(usize::MAX);
            }
        }
        took.push(started.elapsed());
        assert!(buffer.starts_with(status.as_bytes()), "{}", String::from_utf8_lossy(&buffer));
    }
    took
}

/// How long an answer is with its body, once its head is there.
fn length(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&answer[..head]).unwrap();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    Some(head + 4 + length.unwrap())
}

/// Processor time of a process so far.
fn cpu_micros(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in brackets, may hold anything; utime and stime are the 14th and 15th field of all.
    let after = stat.rsplit(')').next().unwrap();
    let ticks: f64 = after.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    ticks * TICK_MICROS
}

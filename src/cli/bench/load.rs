//! A load of prepared requests over keep-alive connections, one at a time on each, and what it cost the processes that
//! answered them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::BenchError;

/// The header field that pays with this value of `PAYMENT-SIGNATURE`.
#[must_use]
pub fn paying(value: &str) -> String {
    format!("PAYMENT-SIGNATURE: {value}\r\n")
}

/// What one connection sends.
#[derive(Clone, Debug)]
pub struct Load {
    /// Each request, as it is written.
    requests: Vec<String>,
    /// How much later each request begins than the one before it, and how long the first waits.
    pace: Option<(Duration, Duration)>,
}

impl Load {
    /// `count` requests for `path`, each with the line of a header field that pays for it, where there are such.
    #[must_use]
    pub fn new(path: &str, count: usize, payments: &[String]) -> Self {
        let request = |number| {
            let payment = payments.get(number).map_or("", String::as_str);
            format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{payment}\r\n")
        };
        Self { requests: (0..count).map(request).collect(), pace: None }
    }

    /// The same, with one request begun so often, the first after a while, instead of each when the one before it is
    /// answered.
    #[must_use]
    pub const fn paced(mut self, every: Duration, first: Duration) -> Self {
        self.pace = Some((every, first));
        self
    }
}

/// What one round measured.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Sample {
    /// Requests in a second, over all connections.
    pub per_second: f64,
    /// Microseconds from a request's first byte to its answer's last, at these shares of all requests.
    pub p50: f64,
    /// 99 percent.
    pub p99: f64,
    /// 99.9 percent.
    pub p999: f64,
    /// Microseconds of processor time of the processes, user and system, for each request.
    pub cpu: f64,
}

/// Sends all loads at once, and expects `status` of every answer.
///
/// # Errors
/// [`BenchError`] where a connection fails, or an answer has another status.
pub async fn run(pid: u32, address: SocketAddr, status: u16, loads: Vec<Load>) -> Result<Sample, BenchError> {
    let mut connections = Vec::new();
    for load in loads {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        connections.push((stream, load));
    }
    let (started, before) = (Instant::now(), cpu(pid)?);
    let tasks: Vec<_> =
        connections.into_iter().map(|(stream, load)| tokio::spawn(send(stream, load, status))).collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu(pid)?.saturating_sub(before));
    took.sort();
    let at = |share: f64| {
        let place = (took.len().saturating_sub(1) as f64 * share) as usize;
        took.get(place).map_or(0.0, |took| took.as_secs_f64() * 1e6)
    };
    let count = took.len() as f64;
    let cpu = cpu.as_secs_f64() * 1e6 / count;
    Ok(Sample { per_second: count / seconds, p50: at(0.5), p99: at(0.99), p999: at(0.999), cpu })
}

async fn send(mut stream: TcpStream, load: Load, status: u16) -> Result<Vec<Duration>, BenchError> {
    let expected = format!("HTTP/1.1 {status} ");
    let mut buffer = Vec::with_capacity(16 << 10);
    let mut took = Vec::with_capacity(load.requests.len());
    let mut due = Instant::now() + load.pace.map_or(Duration::ZERO, |(_, first)| first);
    for (number, request) in load.requests.iter().enumerate() {
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
        stream.write_all(request.as_bytes()).await?;
        buffer.clear();
        let mut whole = None;
        while whole.is_none_or(|whole| buffer.len() < whole) {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(format!("a connection was closed after {:?}", String::from_utf8_lossy(&buffer)).into());
            }
            whole = whole.or_else(|| length(&buffer));
        }
        took.push(started.elapsed());
        if !buffer.starts_with(expected.as_bytes()) {
            return Err(format!("{expected}was expected, not {:?}", String::from_utf8_lossy(&buffer)).into());
        }
    }
    Ok(took)
}

/// How long an answer is with its body, once its head is there.
fn length(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let text = std::str::from_utf8(answer.get(..head)?).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    head.checked_add(4)?.checked_add(length.unwrap_or(0))
}

/// Processor time so far of a process and those that it has started, all threads that live.
fn cpu(pid: u32) -> Result<Duration, BenchError> {
    let mut nanos: u64 = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // Its first number is the time on a processor, in nanoseconds.
        let stat = std::fs::read_to_string(task.join("schedstat"))?;
        let ran: u64 = stat.split(' ').next().unwrap_or_default().parse()?;
        nanos = nanos.saturating_add(ran);
        for child in std::fs::read_to_string(task.join("children"))?.split_whitespace() {
            let of_child = u64::try_from(cpu(child.parse()?)?.as_nanos())?;
            nanos = nanos.saturating_add(of_child);
        }
    }
    Ok(Duration::from_nanos(nanos))
}

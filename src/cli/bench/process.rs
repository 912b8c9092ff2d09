//! A process of a measurement. It ends with the run.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::BenchError;

/// How long a process may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many of a process's last lines are shown where it fails.
const LINES_MAX: usize = 20;

pub(super) struct Process {
    child: Child,
    news: Receiver<String>,
    last: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    pub(super) fn start(command: &mut Command) -> Result<Self, BenchError> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (sender, news) = channel();
        let last = Arc::default();
        if let Some(out) = child.stdout.take() {
            follow(out, sender.clone(), &last);
        }
        if let Some(err) = child.stderr.take() {
            follow(err, sender, &last);
        }
        Ok(Self { child, news, last })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that `read` makes something of.
    pub(super) fn wait_for<T>(&mut self, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.news.recv_timeout(left) {
                Ok(line) => {
                    if let Some(found) = read(&line) {
                        return Ok(found);
                    }
                }
                Err(_) => return Err(self.failed(what)),
            }
        }
    }

    /// Waits until somebody listens at an address.
    pub(super) fn wait_until_it_listens(&self, address: SocketAddr) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                return Err(self.failed("it to listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn failed(&self, what: &str) -> BenchError {
        let last: Vec<_> = self.last.lock().iter().cloned().collect();
        format!("waited in vain for {what}; the process said:\n{}", last.join("\n")).into()
    }
}

fn follow(stream: impl Read + Send + 'static, sender: Sender<String>, last: &Arc<Mutex<VecDeque<String>>>) {
    let last = Arc::clone(last);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            {
                let mut last = last.lock();
                last.push_back(line.clone());
                if last.len() > LINES_MAX {
                    last.pop_front();
                }
            }
            let _nobody_waits = sender.send(line);
        }
    });
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

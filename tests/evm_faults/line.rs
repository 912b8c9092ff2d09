//! A line between the proxy and the chain's node that holds a chosen call, before it is made or after it was answered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The transaction after so many others: it never reaches the node.
    Sending { after: usize },
    /// The node's answer to it.
    Sent { after: usize },
    /// The question for the receipt of it.
    Receipt { after: usize },
    /// Every reading of contracts.
    Reading,
}

#[derive(Default)]
struct State {
    hold: Option<Hold>,
    /// How many transactions came since the hold was set.
    sent: usize,
    held: bool,
}

/// Ends with the test's process.
pub struct Line {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Line {
    pub fn lay(to: &str) -> Self {
        let to: SocketAddr = to.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let _broken = carry(client, to, &state);
                });
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this is held, and for good.
    pub fn hold(&self, hold: Hold) {
        *self.state.lock().unwrap() = State { hold: Some(hold), ..State::default() };
    }

    /// Everything new passes again; what was held is lost.
    pub fn open(&self) {
        *self.state.lock().unwrap() = State::default();
    }

    pub fn holds(&self) -> bool {
        self.state.lock().unwrap().held
    }
}

/// Carries one call and its answer. A call that is held keeps its thread, and its client waits.
fn carry(mut client: TcpStream, to: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") {}
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let text = String::from_utf8_lossy(&body);
    let (before, after) = {
        let mut state = state.lock().unwrap();
        let number = state.sent;
        let sends = text.contains("eth_sendRawTransaction");
        state.sent += usize::from(sends);
        let (before, after) = match state.hold {
            Some(Hold::Sending { after }) => (sends && number >= after, false),
            Some(Hold::Sent { after }) => (false, sends && number >= after),
            Some(Hold::Receipt { after }) => (number > after && text.contains("eth_getTransactionReceipt"), false),
            Some(Hold::Reading) => (text.contains("eth_call"), false),
            None => (false, false),
        };
        state.held |= before;
        (before, after)
    };
    if before {
        wait_for_good(&mut client);
        return Ok(());
    }
    let mut server = TcpStream::connect(to)?;
    server.write_all(head.replacen("\r\n", "\r\nconnection: close\r\n", 1).as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    if after {
        state.lock().unwrap().held = true;
        wait_for_good(&mut client);
        return Ok(());
    }
    client.write_all(&answer)
}

/// Until the other side is gone.
fn wait_for_good(client: &mut TcpStream) {
    let mut rest = [0; 1];
    while client.read(&mut rest).is_ok_and(|read| read > 0) {}
}

//! Three machines in one process: a coordinator and two or three cosigners, over mutual TLS on loopback.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use turnpike::audit::Recorder;
use turnpike::audit::log::folder::{Directory, Folder, Tail};
use turnpike::audit::log::{AuditLog, Options};
use turnpike::cli::keygen::certificates;
use turnpike::clock::{ManualClock, UnixMillis};
use turnpike::signer::bans::BanFile;
use turnpike::signer::cosigner::policy::Limits;
use turnpike::signer::cosigner::server::{Access, Server};
use turnpike::signer::cosigner::{Cosigner, Entry, EntryRules, Settings};
use turnpike::signer::keystore::{self, Ed25519, Kdf, KeyShare, Passphrase, Secp256k1};
use turnpike::signer::remote::{CosignerSettings, Cosigners, RemoteEvmSigner, RemoteSigner};
use turnpike::signer::tls::{self, TlsFiles};
use turnpike::signer::{ecdsa, frost};
use turnpike::telemetry::Telemetry;
use turnpike::x402::Network;

use crate::evm_requests;
use crate::signer_requests;

/// Friday, 28 November 2025, 12:00 UTC.
pub const NOON: UnixMillis = UnixMillis(1_764_331_200_000);
/// How long a cosigner may take in these tests. Nothing waits for it but where one is slow.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The files of one key of each curve, made once: that of secp256k1 takes seconds.
pub fn keys() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        for (number, share) in (1..).zip(&frost::generate().unwrap()) {
            keystore::create(&file(directory.path(), "", number), share, &passphrase(), Kdf::FAST_FOR_TESTS).unwrap();
        }
        for (number, share) in (1..).zip(&ecdsa::generate().unwrap()) {
            keystore::create(&file(directory.path(), "evm-", number), share, &passphrase(), Kdf::FAST_FOR_TESTS)
                .unwrap();
        }
        directory
    });
    made.path()
}

pub fn file(directory: &Path, prefix: &str, number: u16) -> PathBuf {
    directory.join(format!("{prefix}share-{number}.json"))
}

/// What the files of shares are encrypted with.
pub const PASSPHRASE: &str = "correct horse battery";

fn passphrase() -> Passphrase {
    Passphrase::new(PASSPHRASE.to_owned())
}

pub fn share(number: u16) -> KeyShare<Ed25519> {
    keystore::open(&file(keys(), "", number), &passphrase()).unwrap()
}

pub fn evm_share(number: u16) -> KeyShare<Secp256k1> {
    keystore::open(&file(keys(), "evm-", number), &passphrase()).unwrap()
}

/// What every cosigner of these tests allows, unless a test says otherwise.
pub fn policy(limits: &Limits) -> Vec<Entry> {
    let (svm, evm) = (signer_requests::rules(), evm_requests::rules());
    vec![
        Entry {
            name: "solana-devnet USDC".to_owned(),
            network: svm.network.clone(),
            rules: EntryRules::Svm(svm),
            limits: limits.clone(),
        },
        Entry {
            name: "base-sepolia USDC".to_owned(),
            network: Network::eip155(evm.chain_id),
            rules: EntryRules::Evm(evm),
            limits: limits.clone(),
        },
    ]
}

/// An audit record on disk, which may be full.
#[derive(Debug)]
pub struct Written {
    path: PathBuf,
    full: Arc<AtomicBool>,
}

impl Written {
    pub fn at(path: PathBuf) -> Self {
        Self { path, full: Arc::default() }
    }

    /// Opens it, for one at a time.
    pub fn open(&self) -> Arc<dyn Recorder> {
        let directory = Directory::open(&self.path).unwrap();
        let folder = Disk { directory, full: Arc::clone(&self.full) };
        Arc::new(AuditLog::open_in(Arc::new(folder), Options::default()).unwrap())
    }

    pub fn fill(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// What it says of answers, in order.
    pub fn answers(&self) -> Vec<String> {
        let mut segments: Vec<_> = std::fs::read_dir(&self.path).unwrap().map(|file| file.unwrap().path()).collect();
        segments.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        segments.sort();
        let text: String = segments.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        text.lines().filter(|line| line.contains("\"outcome\":")).map(str::to_owned).collect()
    }
}

#[derive(Debug)]
struct Disk {
    directory: Directory,
    full: Arc<AtomicBool>,
}

#[derive(Debug)]
struct End {
    tail: Box<dyn Tail>,
    full: Arc<AtomicBool>,
}

impl Folder for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        self.directory.names()
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn io::BufRead + Send>> {
        self.directory.read(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Tail>> {
        Ok(Box::new(End { tail: self.directory.open(name)?, full: Arc::clone(&self.full) }))
    }

    fn cut(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.directory.cut(name, bytes)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.directory.put(name, bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.directory.sync()
    }

    fn place(&self) -> String {
        self.directory.place()
    }
}

impl Tail for End {
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            self.tail.write(at, bytes)
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.tail.sync()
    }
}

pub fn settings(number: u16, store: &Path, policy: Vec<Entry>) -> Settings {
    Settings {
        name: format!("cosigner-{number}"),
        share: Some(share(number)),
        evm_share: Some(evm_share(number)),
        policy,
        store: store.to_owned(),
        audit: None,
    }
}

/// What answers on a cosigner's port.
pub type Lie = Arc<dyn Fn(&str, &[u8]) -> (StatusCode, Vec<u8>) + Send + Sync>;

/// One machine.
pub struct Node {
    pub number: u16,
    pub address: SocketAddr,
    pub policy: Vec<Entry>,
    pub clock: Arc<ManualClock>,
    directory: PathBuf,
    cosigner: Option<Cosigner>,
    serving: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Node {
    pub fn store(&self) -> PathBuf {
        self.directory.join(format!("cosigner-{}.db", self.number))
    }

    pub fn cosigner(&self) -> &Cosigner {
        self.cosigner.as_ref().unwrap()
    }

    fn files(&self) -> TlsFiles {
        tls_files(&self.directory, &format!("cosigner-{}", self.number))
    }

    /// Cuts it off: nobody listens any more, and every connection ends.
    pub async fn cut(&mut self) {
        self.cosigner = None;
        if let Some((stop, served)) = self.serving.take() {
            let _ = stop.send(());
            let _ = served.await;
        }
    }

    /// Starts it again, with what it has on its disk.
    pub async fn start(&mut self) {
        self.cut().await;
        let clock = Arc::clone(&self.clock);
        let cosigner = Cosigner::open(settings(self.number, &self.store(), self.policy.clone()), clock).unwrap();
        self.cosigner = Some(cosigner.clone());
        let access = Access { tls: tls::server(&self.files()).unwrap(), coordinators: vec!["proxy".to_owned()] };
        let server = Server::bind(self.address).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.run(cosigner, access, async move { drop(stopped.await) }));
        self.serving = Some((stop, served));
    }

    /// Takes connections and says nothing.
    pub async fn stall(&mut self) {
        self.cut().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(async move {
            let mut open = Vec::new();
            while let Ok((tcp, _)) = listener.accept().await {
                open.push(tcp);
            }
        });
    }

    /// Answers with its certificate, but not the truth.
    pub async fn lie(&mut self, lie: Lie) {
        self.cut().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        let acceptor = TlsAcceptor::from(tls::server(&self.files()).unwrap());
        self.serve(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, lie) = (acceptor.clone(), Arc::clone(&lie));
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let lie = Arc::clone(&lie);
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let (status, answer) =
                                tokio::task::spawn_blocking(move || lie(&path, &body)).await.unwrap();
                            let mut response = Response::new(Full::new(Bytes::from(answer)));
                            *response.status_mut() = status;
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
    }

    fn serve(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                _ = stopped => {}
            }
        });
        self.serving = Some((stop, served));
    }
}

pub fn tls_files(directory: &Path, name: &str) -> TlsFiles {
    TlsFiles {
        cert_file: directory.join(format!("{name}.pem")),
        key_file: directory.join(format!("{name}.key")),
        ca_file: directory.join("ca.pem"),
    }
}

/// The coordinator and its cosigners.
pub struct World {
    pub directory: tempfile::TempDir,
    pub nodes: Vec<Node>,
    pub telemetry: Arc<Telemetry>,
    pub cosigners: Arc<Cosigners>,
}

impl World {
    /// With cosigners that hold the shares of these numbers.
    pub async fn new(numbers: &[u16]) -> Self {
        Self::with(numbers, &Limits::default()).await
    }

    pub async fn with(numbers: &[u16], limits: &Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut names = vec!["proxy".to_owned()];
        names.extend(numbers.iter().map(|number| format!("cosigner-{number}")));
        certificates::make(&names, directory.path()).unwrap();
        let mut nodes = Vec::new();
        for number in numbers {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut node = Node {
                number: *number,
                address: port.local_addr().unwrap(),
                policy: policy(limits),
                clock: Arc::new(ManualClock::new(NOON)),
                directory: directory.path().to_owned(),
                cosigner: None,
                serving: None,
            };
            drop(port);
            node.start().await;
            nodes.push(node);
        }
        let telemetry = Telemetry::new().unwrap();
        let cosigners = connect(directory.path(), "proxy", &nodes, &telemetry).watched().await;
        Self { directory, nodes, telemetry, cosigners }
    }

    /// The coordinator as after a restart: what a cosigner has said of itself is forgotten.
    pub async fn reconnect(&mut self) {
        self.cosigners = connect(self.directory.path(), "proxy", &self.nodes, &self.telemetry).watched().await;
    }

    pub fn signer(&self, own: Option<u16>) -> RemoteSigner {
        let (rules, cosigners) = (signer_requests::rules(), Arc::clone(&self.cosigners));
        match own {
            Some(number) => RemoteSigner::with_share(&share(number), rules, cosigners).unwrap(),
            None => RemoteSigner::coordinating(share(1).group(), rules, cosigners),
        }
    }

    pub fn evm_signer(&self, own: Option<u16>) -> RemoteEvmSigner {
        let (rules, cosigners) = (evm_requests::rules(), Arc::clone(&self.cosigners));
        match own {
            Some(number) => {
                let share = evm_share(number);
                let bans = BanFile::open(Some(self.directory.path().join("proxy.bans")), &share).unwrap();
                RemoteEvmSigner::with_share(&share, Arc::new(bans), rules, cosigners).unwrap()
            }
            None => RemoteEvmSigner::coordinating(evm_address(), rules, cosigners),
        }
    }

    pub fn faults(&self, number: u16, fault: &str) -> u64 {
        self.telemetry.cosigner_faults.with_label_values(&[&format!("cosigner-{number}"), fault]).get()
    }
}

pub fn evm_address() -> turnpike::x402::evm::Address {
    ecdsa::address_of(&evm_share(1).group()).unwrap()
}

/// A coordinator of this name, for these nodes.
pub fn connect(directory: &Path, name: &str, nodes: &[Node], telemetry: &Arc<Telemetry>) -> Cosigners {
    let settings = nodes.iter().map(|node| CosignerSettings {
        name: format!("cosigner-{}", node.number),
        address: node.address.to_string(),
        timeout: TIMEOUT,
    });
    Cosigners::new(settings.collect(), &tls_files(directory, name), Some(telemetry)).unwrap()
}

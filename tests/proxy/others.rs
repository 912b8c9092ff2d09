//! In front of a server, and behind a client, that are not ours. Where Python is not installed it is passed over, and
//! said so; nginx stands behind the whole proxy in `end_to_end/nginx.rs`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::*;
use turnpike::proxy::{Listen, tls::Identity};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).output();
    let output = output.expect("curl is needed for this test");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that prints its port.
fn python(folder: &Path) -> Option<(Killed, SocketAddr)> {
    let script = "import http.server, functools, sys\n\
                  class H(http.server.SimpleHTTPRequestHandler):\n    protocol_version = 'HTTP/1.1'\n\
                  h = functools.partial(H, directory=sys.argv[1])\n\
                  s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), h)\n\
                  print(s.server_address[1], flush=True)\n\
                  s.serve_forever()\n";
    let child = Command::new("python3")
        .args(["-c", script])
        .arg(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut child = Killed(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take()?).read_line(&mut line).ok()?;
    Some((child, format!("127.0.0.1:{}", line.trim()).parse().ok()?))
}

fn files() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    std::fs::write(folder.path().join("numbers.txt"), &text).unwrap();
    (folder, text)
}

fn with_tls(upstream: &str) -> Proxy {
    Setup::to(&[upstream])
        .with(|listen, _| {
            let tls = Some(Identity::from_pem(CERTIFICATE, KEY).unwrap());
            listen.listen.push(Listen { address: "127.0.0.1:0".parse().unwrap(), tls });
        })
        .start()
}

#[tokio::test]
async fn pythons_server_and_curl() {
    let (folder, text) = files();
    let Some((_server, address)) = python(folder.path()) else { return eprintln!("python3 is missing") };
    let proxy = with_tls(&format!("http://{address}"));
    let plain = proxy.url("/numbers.txt");
    let secure = format!("https://localhost:{}/numbers.txt", proxy.addresses[1].port());
    let certificate = folder.path().join("ca.pem");
    std::fs::write(&certificate, CERTIFICATE).unwrap();
    let certificate = certificate.to_str().unwrap().to_owned();
    tokio::task::spawn_blocking(move || {
        assert_eq!(curl(&[&plain]), text);
        assert_eq!(curl(&["--http2-prior-knowledge", &plain]), text);
        assert_eq!(curl(&["--cacert", &certificate, "--http1.1", &secure]), text);
        let version = curl(&["--cacert", &certificate, "-o", "/dev/null", "-w", "%{http_version}", &secure]);
        assert_eq!(version, "2");
        let missing = curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("{plain}.missing")]);
        assert_eq!(missing, "404");
        let head = curl(&["-I", &plain]);
        assert!(head.contains(&format!("{}", text.len())), "{head}");
    })
    .await
    .unwrap();
}

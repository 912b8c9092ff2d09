//! A screening service over the wire: what counts as an answer, how often it is asked, and what holds while it is down.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use turnpike::screening::http::{HttpScreen, HttpScreenOptions};
use turnpike::screening::{Screen, Verdict};
use turnpike::telemetry::Telemetry;
use turnpike::x402::{Account, Key};

/// A service that answers what it is told to, once it is let.
struct Service {
    url: String,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    lets: Arc<Semaphore>,
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn status(line: &str) -> String {
    format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

impl Service {
    async fn start(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/{{payer}}?x=1", listener.local_addr().unwrap());
        let (answer, asked, heads) = (Arc::new(Mutex::new(answer)), Arc::<AtomicUsize>::default(), Arc::default());
        let lets = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let service = Self { url, answer, asked, heads, lets };
        let (answer, asked, heads, lets) = (
            Arc::clone(&service.answer),
            Arc::clone(&service.asked),
            Arc::clone(&service.heads),
            Arc::clone(&service.lets),
        );
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, asked, heads) = (Arc::clone(&answer), Arc::clone(&asked), Arc::clone(&heads));
                let lets = Arc::clone(&lets);
                tokio::spawn(async move {
                    let mut head = vec![0; 4096];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    heads.lock().push(String::from_utf8_lossy(&head[..read]).into_owned());
                    asked.fetch_add(1, Ordering::SeqCst);
                    lets.acquire().await.unwrap().forget();
                    let answer = answer.lock().clone();
                    let _gone = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        service
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn says(&self, answer: String) {
        *self.answer.lock() = answer;
    }

    fn options(&self) -> HttpScreenOptions {
        HttpScreenOptions {
            url: self.url.clone(),
            headers: vec![("x-api-key".parse().unwrap(), "secret-key".parse().unwrap())],
            timeout: Duration::from_secs(20),
            keep: Duration::from_secs(3600),
            listed_at: "/result/listed".to_owned(),
            refuse_unknown: true,
        }
    }
}

fn screen(options: HttpScreenOptions) -> Arc<HttpScreen> {
    HttpScreen::new(options, Telemetry::new().unwrap()).unwrap()
}

fn payer(number: u8) -> Account {
    Account::Svm(Key([number; 32]))
}

#[tokio::test]
async fn only_a_plain_answer_is_one() {
    for (answer, verdict) in [
        (ok(r#"{"result": {"listed": false}}"#), Verdict::Clear),
        (ok(r#"{"result": {"listed": true, "other": 1}}"#), Verdict::Listed),
        (ok(r#"{"result": {"listed": []}}"#), Verdict::Clear),
        (ok(r#"{"result": {"listed": [{"category": "sanctions"}]}}"#), Verdict::Listed),
        (ok(r#"{"result": {"listed": null}}"#), Verdict::Unknown),
        (ok(r#"{"result": {"listed": "false"}}"#), Verdict::Unknown),
        (ok(r#"{"result": {}}"#), Verdict::Unknown),
        (ok(r#"{"listed": false}"#), Verdict::Unknown),
        (ok("no"), Verdict::Unknown),
        (ok(""), Verdict::Unknown),
        (ok(&format!(r#"{{"result": {{"listed": false}}, "x": "{}"}}"#, "x".repeat(300_000))), Verdict::Unknown),
        (status("404 Not Found"), Verdict::Unknown),
        (status("204 No Content"), Verdict::Unknown),
        (status("302 Found\r\nLocation: http://127.0.0.1:1/"), Verdict::Unknown),
        (status("503 Service Unavailable"), Verdict::Unknown),
        ("garbage".to_owned(), Verdict::Unknown),
    ] {
        let service = Service::start(answer.clone()).await;
        assert_eq!(screen(service.options()).screen(&payer(7)).await, verdict, "{answer}");
        let allowing = HttpScreenOptions { refuse_unknown: false, ..service.options() };
        let verdict = if verdict == Verdict::Unknown { Verdict::Clear } else { verdict };
        assert_eq!(screen(allowing).screen(&payer(7)).await, verdict, "{answer}");
        let head = service.heads.lock()[0].to_ascii_lowercase();
        assert!(head.starts_with(&format!("get /v1/{}?x=1 http/1.1", payer(7)).to_ascii_lowercase()), "{head}");
        assert!(head.contains("x-api-key: secret-key"));
    }
}

#[tokio::test]
async fn many_who_ask_about_one_payer_ask_once() {
    let service = Service::start(ok(r#"{"result": {"listed": false}}"#)).await;
    service.lets.forget_permits(Semaphore::MAX_PERMITS);
    let screen = screen(service.options());
    let ask = |number| {
        let screen = Arc::clone(&screen);
        tokio::spawn(async move { screen.screen(&payer(number)).await })
    };
    let all: Vec<_> = (0..20).map(|_| ask(7)).collect();
    while service.asked() == 0 {
        tokio::task::yield_now().await;
    }
    service.lets.add_permits(100);
    for one in all {
        assert_eq!(one.await.unwrap(), Verdict::Clear);
    }
    assert_eq!(service.asked(), 1);
    assert_eq!(ask(8).await.unwrap(), Verdict::Clear);
    assert_eq!(service.asked(), 2);
}

#[tokio::test]
async fn an_answer_holds_for_its_time_and_who_was_listed_stays_so_while_nobody_can_be_asked() {
    let service = Service::start(ok(r#"{"result": {"listed": true}}"#)).await;
    let options = HttpScreenOptions { keep: Duration::ZERO, refuse_unknown: false, ..service.options() };
    let screen = screen(options);
    for asked in 1..=3 {
        assert_eq!((screen.screen(&payer(7)).await, service.asked()), (Verdict::Listed, asked));
    }
    service.says(status("500 Oops"));
    assert_eq!(screen.screen(&payer(7)).await, Verdict::Listed);
    assert_eq!(screen.screen(&payer(8)).await, Verdict::Clear, "as the rule says");
    assert_eq!((screen.screen(&payer(8)).await, service.asked()), (Verdict::Clear, 6));
    assert_eq!((screen.screen(&payer(7)).await, service.asked()), (Verdict::Listed, 6), "three failures: left alone");
}

#[tokio::test]
async fn a_service_that_is_slow_rate_limited_or_not_there_is_unknown() {
    let service = Service::start(ok("{}")).await;
    service.lets.forget_permits(Semaphore::MAX_PERMITS);
    let slow = screen(HttpScreenOptions { timeout: Duration::from_millis(50), ..service.options() });
    assert_eq!(slow.screen(&payer(7)).await, Verdict::Unknown);

    let service = Service::start(status("429 Too Many Requests\r\nRetry-After: 30")).await;
    let limited = screen(service.options());
    assert_eq!(limited.screen(&payer(7)).await, Verdict::Unknown);
    assert_eq!((limited.screen(&payer(8)).await, service.asked()), (Verdict::Unknown, 1), "it asked to be left alone");

    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = screen(HttpScreenOptions { url: format!("http://{nowhere}/{{payer}}"), ..service.options() });
    assert_eq!(gone.screen(&payer(7)).await, Verdict::Unknown);
}

#[test]
fn what_is_no_service_is_refused_without_its_secrets() {
    let options = |url: &str| HttpScreenOptions {
        url: url.to_owned(),
        headers: Vec::new(),
        timeout: Duration::from_secs(1),
        keep: Duration::ZERO,
        listed_at: "/listed".to_owned(),
        refuse_unknown: true,
    };
    for url in ["https://a.example.com/secretsecret", "ftp://secretsecret/{payer}", "", "{payer}"] {
        let Err(error) = HttpScreen::new(options(url), Telemetry::new().unwrap()) else { panic!("{url} was taken") };
        assert!(!error.to_string().contains("secretsecret"), "{error}");
    }
}

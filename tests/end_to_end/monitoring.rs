//! Prometheus, as Debian packages it, scrapes a running proxy; every alert rule is valid and every panel of the
//! dashboard has data after a little load.

use std::io::Write;
use std::process::Command;

use http::Method;
use serde_json::Value;
use turnpike::client::http::{Http, Request};

use super::support::{Process, Turnpike, Upstream, client, directory, project};

fn uri_encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

async fn query(prometheus: &str, expression: &str) -> Vec<Value> {
    let uri = format!("{prometheus}/api/v1/query?query={}", uri_encoded(expression)).parse().unwrap();
    let response = Http::new().unwrap().send(&Request::get(uri), None).await.unwrap();
    let answer: Value = serde_json::from_slice(&response.bytes(1 << 24).await.unwrap()).unwrap();
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

#[test]
fn alert_rules_are_valid() {
    for (kind, file) in [("rules", "alerts.yml"), ("config", "prometheus.yml")] {
        let path = project("config/prometheus").join(file);
        let checked = Command::new("promtool").args(["check", kind]).arg(path).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[tokio::test]
async fn every_panel_has_data_after_a_load() {
    let upstream = Upstream::start(|head, mut stream| {
        let status = if head.starts_with("GET /v1/broken") { "500 Oops" } else { "200 OK" };
        let _gone = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    let place = directory();
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\n\
             routes: [{{ path: /v1/*, price: '$0.001' }}]",
            upstream.address
        ),
    );
    let configuration = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nscrape_configs:\n  - job_name: turnpike\n    \
         static_configs: [{{ targets: ['{}'] }}]\nrule_files: ['{}']\n",
        turnpike.admin,
        project("config/prometheus/alerts.yml").display()
    );
    std::fs::write(place.path().join("prometheus.yml"), configuration).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let prometheus = Process::start(Command::new("prometheus").current_dir(place.path()).args([
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        &format!("--web.listen-address=127.0.0.1:{port}"),
    ]));
    prometheus.wait_for("prometheus", |line| line.contains("Server is ready").then_some(()));
    let prometheus = format!("http://127.0.0.1:{port}");

    // Two rounds of load with a scrape between them, so that there is something to rate; then all that a panel asks
    // for.
    let payer = client(turnpike.rpc_url.as_ref().unwrap(), 60, 5_000_000, 100_000).await;
    let paid = Request::get(turnpike.url("/v1/a"));
    let broken = Request::get(turnpike.url("/v1/broken"));
    let mut garbage = Request::get(turnpike.url("/v1/a"));
    garbage.headers.insert("payment-signature", "garbage".parse().unwrap());
    let mut scraped = 0;
    while scraped < 3 {
        payer.ask(&paid).await.unwrap();
        payer.ask(&garbage).await.unwrap();
        payer.call(&paid).await.unwrap();
        payer.call(&broken).await.unwrap();
        turnpike.settle().await;
        let counts = query(&prometheus, "count_over_time(turnpike_build_info[1h])").await;
        scraped = counts.first().map_or(0, |c| c["value"][1].as_str().unwrap().parse().unwrap());
    }
    let dashboard: Value =
        serde_json::from_slice(&std::fs::read(project("config/grafana/turnpike.json")).unwrap()).unwrap();
    let mut panels = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap().replace("$instance", ".*");
            // A value that is not a number is no data: a rate over nothing, or a quotient of zeros.
            let data = loop {
                let data = query(&prometheus, &expression).await;
                let shown = data.iter().any(|series| series["value"][1].as_str().is_some_and(|v| v != "NaN"));
                if shown || scraped > 40 {
                    break data;
                }
                payer.call(&paid).await.unwrap();
                let counts = query(&prometheus, "count_over_time(turnpike_build_info[1h])").await;
                scraped = counts.first().map_or(0, |c| c["value"][1].as_str().unwrap().parse().unwrap());
            };
            let shown = data.iter().any(|series| series["value"][1].as_str().is_some_and(|v| v != "NaN"));
            assert!(shown, "panel {} has no data: {expression}", panel["title"]);
            panels += 1;
        }
    }
    assert!(panels >= 20, "only {panels} queries were found");
    let (status, health) = turnpike.admin(Method::GET, "/health").await;
    assert_eq!(status, 200, "{health}");
    assert_eq!(turnpike.admin(Method::GET, "/health/ready").await.0, 200);
}

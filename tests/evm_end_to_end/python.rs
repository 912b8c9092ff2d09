//! The Python reference client.

use std::process::Command;
use std::sync::Once;

use serde_json::Value;

use super::client::Payer;
use super::node::Node;
use super::support::project;
use super::world::{FUNDS, Facilitator, Shop, with_both};

with_both!(the_python_client_pays);

/// Installs it where `tests/run` does, unless that was done.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let folder = project("tests/interop");
        let run = |command: &mut Command| command.current_dir(&folder).status().is_ok_and(|status| status.success());
        if run(Command::new(".venv/bin/python").args(["-c", "import x402.mechanisms.evm.batch_settlement.client"])) {
            return;
        }
        assert!(run(Command::new("python3").args(["-m", "venv", ".venv"])), "python3 -m venv in tests/interop failed");
        let mut pip = Command::new(".venv/bin/pip");
        pip.args(["install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"]);
        assert!(run(&mut pip), "pip install of tests/interop/requirements.txt failed");
    });
}

async fn the_python_client_pays(facilitator: Facilitator) {
    install();
    let payer = Payer::new(1);
    let routes = "
  - { path: /quote, price: '$0.001' }
  - { path: /usage, price: '$0.001', metering: { header: X-Cost } }";
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, "", routes);
    let pay = |path: &str, calls: &str| {
        let run = Command::new(project("tests/interop/.venv/bin/python"))
            .arg(project("tests/interop/pay_evm.py"))
            .args([&shop.turnpike.url(path).to_string(), &shop.node.url, &payer.key().to_string(), calls])
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let answers: Vec<Value> =
            String::from_utf8(run.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        answers
    };
    let charged = |answers: &[Value]| -> Vec<(u64, String)> {
        let charge =
            |answer: &Value| answer["settlement"]["extra"]["chargedAmount"].as_str().unwrap_or_default().to_owned();
        answers.iter().map(|answer| (answer["status"].as_u64().unwrap(), charge(answer))).collect()
    };
    let answers = pay("/quote", "3");
    assert_eq!(charged(&answers), vec![(200, "1000".to_owned()); 3], "{answers:?}");
    let deposit: u64 = answers[0]["settlement"]["amount"].as_str().unwrap().parse().unwrap();
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - deposit, 0, deposit]);
    shop.settle().await;

    // A new process knows nothing of the channel but what the chain and the server tell it.
    let answers = pay("/usage", "2");
    assert_eq!(charged(&answers), vec![(200, "300".to_owned()); 2], "{answers:?}");
    shop.settle().await;
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - deposit, 3600, deposit - 3600]);
}

//! Where the Python reference client is, and what it does anew in each process.

use std::process::Command;
use std::sync::Once;

use serde_json::json;

use super::client::Payer;
use super::node::Node;
use super::support::project;
use super::world::{FUNDS, Facilitator, Reference, Script, Shop, with_both};

with_both!(a_new_process_takes_up_its_channel);

/// Starts a script of `tests/interop`.
pub fn start(name: &str, argument: &str) -> Script {
    install();
    let mut command = Command::new(project("tests/interop/.venv/bin/python"));
    Script::start(command.arg(project("tests/interop").join(name)).arg(argument), name)
}

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

/// By its own rule for how much to deposit, and with nothing known of the channel but what the chain and the server say.
async fn a_new_process_takes_up_its_channel(facilitator: Facilitator) {
    let payer = Payer::new(1);
    let routes = "
  - { path: /quote, price: '$0.001' }";
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, "", routes);
    let mut client = shop.client_of(Reference::Python, &payer, &json!({}));
    let deposit: u64 = client.pay("/quote")["settlement"]["amount"].as_str().unwrap().parse().unwrap();
    client.pay("/quote");
    shop.settle().await;
    drop(client);
    let mut another = shop.client_of(Reference::Python, &payer, &json!({}));
    let answer = another.pay("/quote");
    assert_eq!(answer["payment"]["payload"]["type"], "voucher", "{answer}");
    shop.settle().await;
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - deposit, 3000, deposit - 3000]);
}

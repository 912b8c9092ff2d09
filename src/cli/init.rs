//! `turnpike init`: writes a commented configuration, from flags or from a few questions on a terminal.
//!
//! Promises: what is written passes `turnpike check`, but for keys that are still to be made. Refuses to replace a file
//! without `--force`. Exit status: 0 where it was written, 1 where it was not.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, BufRead, ErrorKind, Write};
use std::path::PathBuf;

use crate::config::{Config, Env};
use crate::x402::Network;

const UPSTREAM: &str = "http://127.0.0.1:3000";
const NETWORK: &str = "sandbox";
const ROUTE: &str = "/v1/*=$0.001";
const FACILITATOR: &str = "local";

/// Arguments of `turnpike init`. What is left out is asked for on a terminal and has a default elsewhere.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Where to write.
    #[arg(default_value = "turnpike.yaml")]
    pub file: PathBuf,
    /// Where your API listens, such as http://127.0.0.1:3000.
    #[arg(long)]
    pub upstream: Option<String>,
    /// Where you are paid: sandbox, solana-devnet, solana, base-sepolia, base and others, or a CAIP-2 name.
    #[arg(long)]
    pub network: Option<String>,
    /// Your wallet's address; the sandbox can do without.
    #[arg(long)]
    pub pay_to: Option<String>,
    /// A JSON-RPC endpoint of the network; not for the sandbox.
    #[arg(long)]
    pub rpc_url: Option<String>,
    /// On an EVM network: local for this process, which then needs a key that pays for gas, or a facilitator's URL.
    #[arg(long)]
    pub facilitator: Option<String>,
    /// A route and its price, such as '/v1/quote/*=$0.001', 'POST /v1/search=$0.02' or '/health=free'. May be repeated.
    #[arg(long = "route", value_name = "ROUTE=PRICE")]
    pub routes: Vec<String>,
    /// Replace the file where it is there already.
    #[arg(long)]
    pub force: bool,
}

/// Writes the file. `terminal` is where answers come from, where somebody is there to give them; questions and
/// messages go to `out`.
///
/// # Errors
/// Where `terminal` or `out` fail. What is wrong with the file itself is told on `out`.
pub fn run(args: Args, env: &Env<'_>, terminal: Option<&mut dyn BufRead>, out: &mut dyn Write) -> io::Result<u8> {
    let exists = !args.force && args.file.exists();
    if exists {
        return refuse_to_replace(&args, out);
    }
    let answers = match terminal {
        Some(input) => ask_all(&args, input, out)?,
        None => Answers::of(&args),
    };
    let text = match answers.text() {
        Ok(text) => text,
        Err(why) => {
            writeln!(out, "{why}")?;
            return Ok(1);
        }
    };
    if let Err(mut problems) = Config::parse(&args.file, &text, env) {
        // The keys are made next; everything else must be right.
        let made_next = ["signer.shares[", "signer.evm_shares[", "gas_key_file"];
        problems.problems.retain(|problem| !made_next.iter().any(|key| problem.key.starts_with(key)));
        if !problems.problems.is_empty() {
            for problem in &problems.problems {
                writeln!(out, "{}: {} {}", problem.key, problem.message, problem.remedy)?;
            }
            writeln!(out, "\nNothing was written.")?;
            return Ok(1);
        }
    }
    match write_file(&args, &text) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return refuse_to_replace(&args, out),
        Err(error) => {
            writeln!(out, "{} cannot be written: {error}. Give another path.", args.file.display())?;
            return Ok(1);
        }
    }
    write_next_steps(&args, &answers, out)?;
    Ok(0)
}

fn refuse_to_replace(args: &Args, out: &mut dyn Write) -> io::Result<u8> {
    let file = args.file.display();
    writeln!(out, "{file} is there already. Give another path, or --force to replace it.")?;
    Ok(1)
}

fn write_file(args: &Args, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(&args.file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn write_next_steps(args: &Args, answers: &Answers, out: &mut dyn Write) -> io::Result<()> {
    let file = args.file.display();
    writeln!(out, "Wrote {file}. Next:")?;
    if answers.needs_gas_key() {
        writeln!(
            out,
            "  put the private key of an account that pays for gas into {GAS_KEY_FILE}, with permissions 600"
        )?;
    }
    if !answers.is_sandbox() {
        let curve = if answers.is_evm() { " --curve secp256k1" } else { "" };
        writeln!(out, "  turnpike keygen{curve} --out shares --generate-passphrases passphrases")?;
    }
    writeln!(out, "  turnpike check {file}")?;
    writeln!(out, "  turnpike serve {file}")
}

/// What the file will say.
struct Answers {
    upstream: String,
    network: String,
    pay_to: Option<String>,
    rpc_url: Option<String>,
    facilitator: Option<String>,
    routes: Vec<String>,
}

impl Answers {
    /// From the flags, with defaults.
    fn of(args: &Args) -> Self {
        Self {
            upstream: args.upstream.clone().unwrap_or_else(|| UPSTREAM.to_owned()),
            network: args.network.clone().unwrap_or_else(|| NETWORK.to_owned()),
            pay_to: args.pay_to.clone(),
            rpc_url: args.rpc_url.clone(),
            facilitator: args.facilitator.clone(),
            routes: if args.routes.is_empty() { vec![ROUTE.to_owned()] } else { args.routes.clone() },
        }
    }

    fn is_sandbox(&self) -> bool {
        self.network == NETWORK
    }

    fn is_evm(&self) -> bool {
        is_evm(&self.network)
    }

    /// Who sends transactions, where the file says it.
    fn facilitator(&self) -> Option<&str> {
        self.facilitator.as_deref().or(self.is_evm().then_some(FACILITATOR))
    }

    fn needs_gas_key(&self) -> bool {
        self.is_evm() && self.facilitator() == Some(FACILITATOR)
    }

    fn text(&self) -> Result<String, String> {
        let mut text = String::from(HEAD);
        // Writing to a String cannot fail.
        let mut line = |args: std::fmt::Arguments<'_>| {
            let _ = text.write_fmt(args);
        };
        line(format_args!("\n# Where your API listens.\nupstream: {}\n", yaml(&self.upstream)));
        line(format_args!("\n{NETWORK_COMMENT}network: {}\n", yaml(&self.network)));
        match &self.pay_to {
            Some(pay_to) => line(format_args!("\n# Your wallet's address.\npay_to: {}\n", yaml(pay_to))),
            None if self.is_sandbox() => {
                line(format_args!("\n# Your wallet's address, before you leave the sandbox.\n# pay_to: ...\n"))
            }
            None => {}
        }
        if let Some(facilitator) = self.facilitator() {
            line(format_args!("\n{FACILITATOR_COMMENT}facilitator: {}\n", yaml(facilitator)));
        }
        if let Some(rpc_url) = &self.rpc_url {
            line(format_args!("\n{RPC_COMMENT}rpc_url: {}\n", yaml(rpc_url)));
        }
        if self.needs_gas_key() {
            line(format_args!("\n{GAS_KEY_COMMENT}gas_key_file: {GAS_KEY_FILE}\n"));
        }
        line(format_args!("\n{ROUTES_COMMENT}routes:\n"));
        for route in &self.routes {
            line(format_args!("  - {}\n", route_entry(route)?));
        }
        line(format_args!("\n# A path that no route lists: deny or free.\ndefault: deny\n"));
        if self.is_evm() {
            line(format_args!("{EVM_SIGNER}"));
        } else if !self.is_sandbox() {
            line(format_args!("{SIGNER}"));
        }
        line(format_args!("{TAIL}"));
        Ok(text)
    }
}

const HEAD: &str = "\
# Turnpike: pay-per-call in front of an HTTP API.
# Check this file with `turnpike check`. Every key is explained in config/example.yaml.
";
const NETWORK_COMMENT: &str = "\
# Where you are paid: sandbox needs no funds, accounts or network; then test networks such as solana-devnet and
# base-sepolia, then solana, base and others.
";
const RPC_COMMENT: &str = "\
# A JSON-RPC endpoint, or a list of several. Keep an access key out of this file: ${NAME} stands for a variable.
";
const FACILITATOR_COMMENT: &str = "\
# Who checks what clients sign and sends it to the chain: local is this process, which pays for gas; or the URL of a
# facilitator elsewhere, which then needs no gas key here.
";
const GAS_KEY_FILE: &str = "secrets/gas.key";
const GAS_KEY_COMMENT: &str = "\
# The private key of the account that pays for gas, 64 hexadecimal digits. It can move nothing but that account's money.
";
const ROUTES_COMMENT: &str = "\
# What costs what. {name} stands for one segment, a * at the end for everything below.
";
const SIGNER: &str = "
# The key that pays fees and redeems vouchers, in shares of which two sign together. `turnpike keygen` makes them.
signer:
  shares:
    - { file: shares/share-1.json, passphrase_file: passphrases/passphrase-1.txt }
    - { file: shares/share-2.json, passphrase_file: passphrases/passphrase-2.txt }
";
const EVM_SIGNER: &str = "
# The key that redeems vouchers, in shares of which two sign together. `turnpike keygen --curve secp256k1` makes them.
signer:
  evm_shares:
    - { file: shares/evm-share-1.json, passphrase_file: passphrases/evm-passphrase-1.txt }
    - { file: shares/evm-share-2.json, passphrase_file: passphrases/evm-passphrase-2.txt }
";
const TAIL: &str = "
# Where clients connect, and where operators do.
listen: 0.0.0.0:8402
admin: { listen: 127.0.0.1:9402 }
";

/// Whether a network's name is that of an EVM network.
fn is_evm(network: &str) -> bool {
    Network::of_short_name(network).or_else(|| network.parse().ok()).is_some_and(|network| network.is_evm())
}

/// A text as a YAML scalar: JSON's quoting is YAML's.
fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `[METHOD...] PATH=PRICE` as an entry of `routes`.
fn route_entry(text: &str) -> Result<String, String> {
    let wrong = || format!("--route {text}: names no price. Write it as in '/v1/quote/*=$0.001' or '/health=free'.");
    let (before, price) = text.rsplit_once('=').ok_or_else(wrong)?;
    let mut words: Vec<&str> = before.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let path = words.pop().ok_or_else(wrong)?;
    let methods: Vec<_> = words.into_iter().map(yaml).collect();
    let methods = if methods.is_empty() { String::new() } else { format!("methods: [{}], ", methods.join(", ")) };
    let price = if price == "free" { "free: true".to_owned() } else { format!("price: {}", yaml(price)) };
    Ok(format!("{{ path: {}, {methods}{price} }}", yaml(path)))
}

/// Asks for what the flags leave out.
fn ask_all(args: &Args, input: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<Answers> {
    let mut ask = |given: &Option<String>, question: &str, default: &str| -> io::Result<String> {
        match given {
            Some(given) => Ok(given.clone()),
            None => ask(input, out, question, default),
        }
    };
    let upstream = ask(&args.upstream, "Where does your API listen?", UPSTREAM)?;
    let question = "Where do you want to be paid? (sandbox, solana-devnet, solana, base-sepolia, base)";
    let network = ask(&args.network, question, NETWORK)?;
    let optional = |answer: String| Some(answer).filter(|answer| !answer.is_empty());
    let (mut pay_to, mut rpc_url, mut facilitator) =
        (args.pay_to.clone(), args.rpc_url.clone(), args.facilitator.clone());
    if network != NETWORK {
        pay_to = optional(ask(&pay_to, "To which address does the money go?", "")?);
        if is_evm(&network) {
            let question = "Who sends transactions? (local for this process, or a facilitator's URL)";
            facilitator = optional(ask(&facilitator, question, FACILITATOR)?);
        }
        if facilitator.as_deref().is_none_or(|facilitator| facilitator == FACILITATOR) {
            rpc_url = optional(ask(&rpc_url, "Which JSON-RPC endpoint shall be used?", endpoint(&network))?);
        }
    }
    let mut routes = args.routes.clone();
    if routes.is_empty() {
        routes.push(ask(&None, "Which path costs how much?", ROUTE)?);
        while let Some(route) = optional(ask(&None, "Another one, such as /health=free? (empty for no more)", "")?) {
            routes.push(route);
        }
    }
    Ok(Answers { upstream, network, pay_to, rpc_url, facilitator, routes })
}

/// A public endpoint of a network, as a suggestion.
fn endpoint(network: &str) -> &'static str {
    match network {
        "solana" => "https://api.mainnet-beta.solana.com",
        "solana-devnet" => "https://api.devnet.solana.com",
        "solana-testnet" => "https://api.testnet.solana.com",
        "base" => "https://mainnet.base.org",
        "base-sepolia" => "https://sepolia.base.org",
        _ => "",
    }
}

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 4096;

fn ask(input: &mut dyn BufRead, out: &mut dyn Write, question: &str, default: &str) -> io::Result<String> {
    use std::io::Read;
    if default.is_empty() {
        write!(out, "{question} ")?
    } else {
        write!(out, "{question} [{default}] ")?
    }
    out.flush()?;
    let mut answer = String::new();
    input.take(ANSWER_BYTES_MAX).read_line(&mut answer)?;
    let answer = answer.trim();
    Ok(if answer.is_empty() { default } else { answer }.to_owned())
}

//! What is refused, what is said of it, and what is never said.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use turnpike::config::{Config, DEPTH_MAX, FILE_BYTES_MAX, ROUTES_MAX};
use turnpike::scheme::svm::USDC_DEVNET;

use super::{EXAMPLE, PAY_TO, env, example_directory, parse, problems};

#[test]
fn no_message_holds_a_secret() {
    const CANARY: &str = "hunter2canary";
    let directory = example_directory();
    let secret_env = |name: &str| match name {
        "EMPTY" => Some(String::new()),
        "UNSET" => None,
        "KEY" => Some(format!("{PAY_TO}{CANARY}")),
        _ => Some(CANARY.to_owned()),
    };
    let check_as = |text: &str, and_the_config: bool| {
        let (shown, fine) = match Config::parse(&directory.path().join("prod.yaml"), text, &secret_env) {
            Ok((config, warnings)) if and_the_config => (format!("{config:?} {warnings:?}"), true),
            Ok((_, warnings)) => (format!("{warnings:?}"), true),
            Err(problems) => (format!("{problems} {problems:?} {}", serde_json::to_string(&problems).unwrap()), false),
        };
        assert!(!shown.contains(CANARY), "{shown}\n{text}");
        fine
    };
    let check = |text: &str| check_as(text, true);
    assert!(check(EXAMPLE));
    // In place of every value, by a variable, alone and with something around it.
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(": ").filter(|_| !line.trim_start().starts_with('#')) else { continue };
        for value in ["${SECRET}", "\"$${SECRET\"", "x${SECRET}", "http://${SECRET}:x/#", "$0.${SECRET}", "${KEY}"] {
            // A token's symbol is read as such and then named in messages about prices.
            if key.trim() == "symbol" {
                continue;
            }
            let broken = format!("{key}: {value}");
            let mut changed = lines.clone();
            changed[i] = &broken;
            check_as(&changed.join("\n"), false);
        }
    }
    // Written out where a secret may be expected.
    for (from, to) in [
        ("${TURNPIKE_PASSPHRASE_1}", CANARY),
        ("${TURNPIKE_PASSPHRASE_1}", "hunter2canary${X}"),
        ("${TURNPIKE_PASSPHRASE_1}", "{hunter2canary: 1}"),
        ("${TURNPIKE_PASSPHRASE_1}", "[hunter2canary]"),
        ("${TURNPIKE_PASSPHRASE_1}", "!hunter2canary x"),
        ("${TURNPIKE_PASSPHRASE_1}", "&hunter2canary x"),
        ("${TURNPIKE_PASSPHRASE_1}", "*hunter2canary"),
        ("${TURNPIKE_PASSPHRASE_1}", "${hunter2canary"),
        ("https://api.devnet.solana.com", "https://rpc.example.com/hunter2canary#x"),
        ("https://api.devnet.solana.com", "https://user:hunter2canary@rpc.example.com"),
        ("https://api.devnet.solana.com", "hunter2canary"),
        ("upstream: http://127.0.0.1:3000", "upstream: http://user:hunter2canary@127.0.0.1:3000"),
        ("upstream: http://127.0.0.1:3000", "upstream: http://127.0.0.1:3000/?key=hunter2canary"),
        ("https://api.example.com", "https://hunter2canary@api.example.com"),
    ] {
        assert!(!check(&EXAMPLE.replace(from, to)), "{to} was taken");
    }
    let key =
        EXAMPLE.replace("https://api.devnet.solana.com", "https://rpc.example.com/hunter2canary?key=hunter2canary");
    assert!(check(&key));
    assert!(check(&EXAMPLE.replace("https://api.devnet.solana.com", "https://rpc.example.com/${ANY}")));
}

#[test]
fn refusals() {
    let sandbox = "upstream: http://127.0.0.1:3000\nnetwork: sandbox\nroutes: [{path: /a, price: $1}]\n";
    let solana = format!(
        "upstream: http://127.0.0.1:3000\nnetwork: solana\npay_to: {PAY_TO}\nrpc_url: http://a\nroutes: [{{path: /a, price: $1}}]\n"
    );
    let replaced = |routes: &str| format!("upstream: http://127.0.0.1:3000\nnetwork: sandbox\nroutes: {routes}\n");
    let table: Vec<(String, &str)> = vec![
        (String::new(), ":1 holds no configuration. Write one with turnpike init."),
        ("# nothing".into(), ":1 holds no configuration. Write one with turnpike init."),
        ("a: [".into(), "is not YAML: "),
        ("a: 1\n--- \nb: 2".into(), "begins a second document."),
        ("[1]".into(), ":1 is a list. Write a mapping"),
        ("x".into(), ":1 is text. Write a mapping"),
        ("? [a]\n: 1".into(), "has a key that is not text."),
        (format!("{sandbox}memo: *x"), ":4 memo: is an alias"),
        (format!("{sandbox}memo: &x y"), ":4 memo: has an anchor"),
        (format!("{sandbox}memo: !x y"), ":4 memo: has a tag"),
        (format!("{sandbox}network: solana"), ":4 network: is written twice."),
        (format!("{sandbox}memo:"), ":4 memo: has no value. Write one, or leave the key out."),
        (format!("{sandbox}memo: [a]"), ":4 memo: is a list. Write a line of text."),
        (
            format!("{sandbox}memo: ${{UNSET}}"),
            r#":4 memo: "${UNSET}" needs the environment variable UNSET, which is not set or empty. Set UNSET."#,
        ),
        (format!("{sandbox}memo: {}", "x".repeat(257)), "is longer than 256 bytes."),
        // Networks.
        ("routes: [{path: /a, price: $1}]".into(), ":1 network: is missing. Write sandbox to try things out"),
        (
            sandbox.replace("sandbox", "cosmos:hub"),
            "is neither a Solana nor an EVM network, and no other can be served",
        ),
        (
            format!("{sandbox}rpc_url: http://a"),
            ":4 rpc_url: does nothing on the sandbox, which has a chain of its own.",
        ),
        (format!("{sandbox}signer: {{}}"), ":4 signer: does nothing on the sandbox"),
        (format!("{sandbox}sandbox: {{present_as: solana}}"), "cannot be played by the sandbox."),
        (format!("{sandbox}pay_to: 11111111111111111111111111111111"), "from which nobody can spend."),
        (solana.clone(), ":1 signer: is missing."),
        (solana.replace("rpc_url: http://a\n", ""), ":1 rpc_url: is missing."),
        (format!("{solana}sandbox: {{}}"), "sandbox: does nothing without network: sandbox."),
        (format!("{solana}networks: []"), ":2 network: does nothing beside networks."),
        (
            format!("{solana}asset: {{mint: {USDC_DEVNET}, symbol: USDC, decimals: 9}}"),
            "are not the decimals of this mint",
        ),
        (
            solana.replace("network: solana", "network: solana:unknowncluster"),
            ":1 asset: is missing. The USDC of this network is not known",
        ),
        (
            format!(
                "networks:\n- {{network: solana, pay_to: {PAY_TO}, rpc_url: http://a}}\n- {{network: solana-devnet, pay_to: {PAY_TO}, rpc_url: http://a}}"
            ),
            "mixes a test network with a real one",
        ),
        (
            format!(
                "networks:\n- {{network: solana, pay_to: {PAY_TO}, rpc_url: http://a}}\n- {{network: solana, pay_to: {PAY_TO}, rpc_url: http://b}}"
            ),
            ":3 networks[1]: is the network and asset of line 2 again.",
        ),
        ("networks: [{network: sandbox}]".into(), "networks[0].network: The sandbox stands alone."),
        // Signer.
        (
            format!("{solana}signer: {{shares: [{{file: nowhere, passphrase: abc}}]}}"),
            "signer.shares[0].file: \"nowhere\" cannot be read",
        ),
        (
            format!("{solana}signer: {{shares: [{{file: nowhere, passphrase: abc}}]}}"),
            "a secret may not stand in this file",
        ),
        (format!("{solana}signer: {{shares: [{{file: nowhere}}]}}"), "signer.shares: holds 1 shares."),
        (format!("{solana}signer: {{shares: [{{file: nowhere}}]}}"), "signer.shares[0]: has no passphrase."),
        // Routes.
        (replaced("[]"), ":3 routes: holds 0 routes."),
        (replaced("[{path: /a}]"), "routes[0]: has neither a price nor free: true."),
        (replaced("[{price: $1}]"), "routes[0].path: is missing."),
        (replaced("[{path: a, price: $1}]"), "\"a\" does not begin with a slash."),
        (replaced("[{path: /a, free: false}]"), "routes[0].free: does nothing where it is false."),
        (replaced("[{path: /a, free: yes}]"), "\"yes\" is neither true nor false."),
        (replaced("[{path: /a, price: \"$0\"}]"), "\"$0\" is nothing."),
        (
            replaced("[{path: /a, price: \"$0.0000001\"}]"),
            "is finer than the smallest unit of USDC. Write at most 6 digits after the point.",
        ),
        (
            replaced("[{path: /a, price: 1 EURC}]"),
            "is in a currency that no network of this file takes. Taken here: USDC.",
        ),
        (replaced("[{path: /a, price: 0.001}]"), "names no currency. Write \"$0.001\" or \"1000 USDC-atomic\"."),
        (
            replaced("[{path: /a, price: $11}]"),
            "is above settlement.channel_exposure_max ($10), so it could never be paid.",
        ),
        (replaced("[{path: /a, price: $1, min_deposit: $0.5}]"), "is below the price."),
        (
            replaced("[{path: /a, price: $1, schemes: upto, min_deposit: $2}]"),
            "min_deposit: does nothing where nothing is paid by batch-settlement",
        ),
        (
            replaced("[{path: /a, price: $1, schemes: exact}]"),
            "\"exact\" is no way to pay a fixed price on solana-devnet. Write batch-settlement, or leave schemes out.",
        ),
        (
            replaced("[{path: /a, price: $1, schemes: exacd}]"),
            "\"exacd\" is not known here. Did you mean exact? It may be batch-settlement, exact or upto.",
        ),
        (replaced("[{path: /a, price: $1, scheme: upto}]"), "routes[0].scheme: is not a key. Did you mean schemes?"),
        (
            replaced("[{path: /a, price: $1, schemes: batch-settlement, metering: {header: X}}]"),
            "cannot be metered on Solana: there a client's voucher is for the whole price, and less cannot be charged.",
        ),
        (replaced("[{path: /a, price: $1, metering: {header: \"a b\"}}]"), "is not a header name."),
        (
            replaced("[{path: /a, price: $1, metering: {headr: X}}]"),
            "metering.headr: is not a key. Did you mean header?",
        ),
        (replaced("[{path: /a, price: $1, upstream: b}]"), "\"b\" names no upstream."),
        (
            replaced("[{path: /a, price: $1, timeout: 2m}]"),
            "is longer than max_timeout (1m), after which the client no longer waits.",
        ),
        (replaced("[{path: /a, price: $1, host: \"*.a.b\"}]"), "is not a host name or address without port."),
        (replaced("[{path: /a, price: $1, methods: [GET, GET]}]"), "is in the list already."),
        (replaced("[{path: /a, price: $1, mime_type: json}]"), "is not a media type."),
        (replaced("[{path: /a, free: true, description: x}]"), "description: does nothing on a free route"),
        // Packs.
        (
            replaced("[{path: /a, free: true, pack: {calls: 5, price: $1}}]"),
            "routes[0].pack: does nothing on a free route.",
        ),
        (
            replaced("[{path: /a, price: $1, metering: {header: X}, pack: {calls: 5, price: $2}}]"),
            "pack: does nothing on a route without a fixed price",
        ),
        (
            replaced("[{path: /a, price: $1, schemes: upto, pack: {calls: 5, price: $2}}]"),
            "pack: does nothing on a route without a fixed price",
        ),
        (replaced("[{path: /a, price: $1, pack: {}}]"), "routes[0].pack.calls: is missing."),
        (replaced("[{path: /a, price: $1, pack: {calls: 5}}]"), "routes[0].pack.price: is missing."),
        (replaced("[{path: /a, price: $1, pack: 5}]"), "Write a mapping such as {calls: 50, price: \"$0.04\"}."),
        (replaced("[{path: /a, price: $1, pack: {calls: 0, price: $2}}]"), ":3 routes[0].pack.calls: "),
        (replaced("[{path: /a, price: $1, pack: {calls: 1, price: $2}}]"), ":3 routes[0].pack.calls: "),
        (replaced("[{path: /a, price: $1, pack: {calls: 1000001, price: $2}}]"), ":3 routes[0].pack.calls: "),
        (
            replaced("[{path: /a, price: $1, pack: {calls: 5, price: \"$0\"}}]"),
            "routes[0].pack.price: \"$0\" is nothing.",
        ),
        (
            replaced("[{path: /a, price: $1, pack: {calls: 5, price: $1}}]"),
            "is not above the price of one call ($1), so a payment could mean either. Write more than $1.",
        ),
        (
            replaced("[{path: /a, price: $1, pack: {calls: 5, price: \"$5.1\"}}]"),
            "is above the price of 5 single calls ($5), so nobody would buy it. Write less.",
        ),
        (
            replaced("[{path: /a, price: $1, pack: {calls: 50, price: $11}}]"),
            "is above settlement.channel_exposure_max ($10), so it could never be paid.",
        ),
        (
            replaced("[{path: /a, price: $1, pack: {calls: 5, price: $4, expires: 59s}}]"),
            "routes[0].pack.expires: \"59s\"",
        ),
        (replaced("[{path: /a, price: $1, pack: {calls: 5, price: $4, expires: 367d}}]"), "routes[0].pack.expires: "),
        (replaced("[{path: /a, price: $1, pack: {calls: 5, price: $4, call: 5}}]"), "pack.call: is not a key."),
        (
            replaced("[{path: /a, price: $1, pack: {calls: 5, price: $4}, policy: {per_request_cap: $3}}]"),
            "has a pack that costs $4, which is above per_request_cap ($3): every request would be refused.",
        ),
        (
            replaced("\n- {path: '/a/{x}', price: $1}\n- {path: '/A/{y}/', free: true}"),
            ":5 routes[1]: matches the same requests as the route in line 4.",
        ),
        (
            format!("{}default: free", replaced("[{path: /a, price: $1, host: a.b}]")),
            "a client chooses the host that it sends",
        ),
        // Upstreams.
        (sandbox.replace("upstream: http://127.0.0.1:3000\n", ""), ":1 upstream: is missing."),
        (sandbox.replace(":3000", ":8402"), "is where Turnpike itself listens (0.0.0.0:8402)."),
        (sandbox.replace(":3000", ":3000/base"), "has a path. Write http://127.0.0.1:3000: requests keep"),
        (sandbox.replace("http:", "ftp:"), "is neither an http nor an https URL."),
        (
            sandbox.replace("http:", "h2c:").replace(":3000", ":3000/base"),
            "has a path. Write h2c://127.0.0.1:3000: requests",
        ),
        (format!("{sandbox}public_url: h2c://a"), "is neither an http nor an https URL."),
        (format!("{sandbox}upstreams: {{b: http://b}}"), ":4 upstreams.b: does nothing: no route names it."),
        (
            format!("upstreams: {{b: http://b}}\n{}", replaced("[{path: /a, price: $1, upstream: b}]")),
            ":2 upstream: does nothing where every route names its own upstream.",
        ),
        (
            sandbox.replace("http://127.0.0.1:3000", "[http://a, http://a]"),
            ":1 upstream[1]: \"http://a\" is in the list already.",
        ),
        // The rest.
        (format!("{sandbox}listen: 127.0.0.1:9402"), "admin.listen: (127.0.0.1:9402) has the port of listen"),
        (format!("{sandbox}withdraw_delay: 1500ms"), "is shorter than 15m."),
        (format!("{sandbox}withdraw_delay: 900500ms"), "is not a whole number of seconds."),
        (format!("{sandbox}max_timeout: 0s"), "is shorter than 1s."),
        (format!("{sandbox}queue: {{waiters: 0, wait: 1s}}"), "queue.wait: does nothing where no request may wait"),
        (format!("{sandbox}queue: {{waiters: -1}}"), "\"-1\" is not a whole number. Write 0 to 1024."),
        (format!("{sandbox}queue: {{wait: 1s, gap_wait: 2s}}"), "queue.gap_wait: \"2s\" is longer than 1s."),
        (format!("{sandbox}limits: {{header_bytes: 1}}"), "is out of range. Write 16384 to 1048576 bytes."),
        (format!("{sandbox}settlement: {{batch_channels: 5}}"), "is out of range. Write 1 to 4."),
        (format!("{sandbox}settlement: {{batches_in_flight: 0}}"), "is out of range. Write 1 to 64."),
        (
            format!("{sandbox}settlement: {{max_age: 20h, close_margin: 5h}}"),
            "together are longer than withdraw_delay (1d).",
        ),
        (format!("{sandbox}settlement: {{interval: 10m, max_age: 5m}}"), "interval (10m) is longer than max_age (5m)"),
        (format!("{sandbox}settlement: {{exposure_max: $5}}"), "channel_exposure_max is above exposure_max ($5)."),
        (format!("{sandbox}settlement: {{min_amount: $20}}"), "is above channel_exposure_max ($10)"),
        (format!("{sandbox}cors: {{origins: [\"*\", https://a.b]}}"), "holds \"*\" beside other origins"),
        (format!("{sandbox}cors: {{origins: https://A.b/}}"), "is not an origin. Write https://a.b."),
        (format!("{sandbox}log: {{level: loud}}"), "Write error, warn, info, debug or trace."),
        (format!("{sandbox}facilitator: remote"), "\"remote\" is not known here. Write local."),
        (format!("{sandbox}facilitator: https://x.example.com"), "can only serve EVM networks: on Solana"),
        (format!("{sandbox}tls: {{cert_file: nowhere, key_file: .}}"), "tls.cert_file: \"nowhere\" cannot be read"),
        (format!("{sandbox}public_url: https://a.b/?c"), "has a query."),
    ];
    for (text, want) in table {
        let told = problems(&text);
        assert!(told.iter().any(|line| line.contains(want)), "wanted: {want}\n{}\n{text}", told.join("\n"));
    }
}

#[test]
fn a_mistake_in_a_meter_is_told_once_with_its_remedy() {
    let head = "upstream: http://127.0.0.1:3000\nnetwork: sandbox\n";
    let metered = |metering: &str| format!("{head}routes: [{{path: /a, price: $1, metering: {metering}}}]\n");
    let table = [
        (metered("{}"), "routes[0].metering: does not say what is reported. Write header: X-Charge"),
        (metered("{json: /a}"), "metering.unit_price: is missing. Write what one of them costs"),
        (metered("{response_bytes: true}"), "metering.unit_price: is missing."),
        (
            metered("{response_bytes: false, unit_price: $1}"),
            "metering.response_bytes: does nothing where it is false.",
        ),
        (metered("{header: X, json: /a, unit_price: $1}"), "metering.json: stands beside another count."),
        (metered("{header: X, per: 10}"), "metering.per: does nothing without unit_price."),
        (metered("{header: X, unit_price: $1, per: 7}"), "metering.per: \"7\" is not known here."),
        (metered("{header: X, unit_price: 1}"), "metering.unit_price: \"1\" names no currency."),
        (metered("{header: X, unit_price: $0}"), "metering.unit_price: \"$0\" is nothing."),
        (
            metered("{header: X, unit_price: 1 EURC}"),
            "metering.unit_price: \"1 EURC\" is not in the currency of the price",
        ),
        (metered("{header: X, unit_price: $1.2345678901234567891}"), "has more than 18 digits."),
        (metered("{header: X, body_wait: 1s}"), "metering.body_wait: does nothing where the report is in a header."),
        (
            metered("{json: usage.total, unit_price: $1}"),
            "\"usage.total\" is not a JSON pointer. Did you mean /usage/total?",
        ),
        (metered("{json: /a, unit_price: $1, body_wait: 2m}"), "is longer than max_timeout (1m)"),
        (metered("{json: /a, unit_price: $1, body_bytes_max: 5MiB}"), "is out of range. Write 1 to 4194304 bytes."),
        (metered("{header: X, minimum: $2}"), "metering.minimum: \"$2\" is above the price."),
        (metered("{header: X, missing: charge_minimum}"), "needs a minimum, and there is none."),
        (
            metered("{header: X, missing: charge_all}"),
            "Write charge_maximum, charge_minimum, charge_nothing or refuse.",
        ),
        (metered("{sum: []}"), "metering.sum: holds 0 counts. Write 1 to 16."),
        (metered("{sum: [{json: /a}]}"), "metering.sum[0].unit_price: is missing."),
        (metered("{sum: [{json: /a, unit_price: $1}], header: X}"), "metering.header: does nothing beside sum."),
        (metered("{json: a b, unit_price: $1, body_wait: 1s}"), "is not a JSON pointer."),
    ];
    for (text, want) in table {
        let told = problems(&text);
        assert!(told.len() == 1 && told[0].contains(want), "wanted: {want}\n{}\n{text}", told.join("\n"));
    }
}

#[test]
fn limits_hold() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prod.yaml");
    let load = |text: &[u8]| {
        fs::write(&path, text).unwrap();
        Config::load(&path, &env).unwrap_err()
    };
    let size = usize::try_from(FILE_BYTES_MAX).unwrap();
    let told = load(&vec![b'#'; size + 1]);
    assert!(told.unreadable && told.to_string().contains("is larger than 1048576 bytes"), "{told}");
    assert!(!load(&vec![b'#'; size]).unreadable);
    assert!(load(b"a: \xff").to_string().contains("is not UTF-8 text (at byte 3)"));
    assert!(Config::load(&PathBuf::from("/nowhere/at/all"), &env).unwrap_err().unreadable);
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("\n- - - - - - - - - - - - - - - - - - - - - - - -", "")] {
        let deep = format!("upstream: {}x{}", open.repeat(DEPTH_MAX + 1), close.repeat(DEPTH_MAX + 1));
        assert!(parse(&deep).is_err(), "{deep}");
    }
    let deep = "[".repeat(100_000);
    assert!(parse(&deep).is_err());
    let head = "upstream: http://127.0.0.1:3000\nnetwork: sandbox\nroutes:\n";
    let routes: String = (0..ROUTES_MAX).map(|i| format!("- {{path: /r/{i}, price: $1}}\n")).collect();
    assert_eq!(parse(&format!("{head}{routes}")).unwrap().routes.len(), ROUTES_MAX);
    let told = problems(&format!("{head}{routes}- {{path: /x, price: $1}}"));
    assert!(told[0].contains("holds 10001 routes"), "{told:?}");
    let wrong: String = (0..2000).map(|i| format!("- {{path: /r/{i}, price: 1}}\n")).collect();
    let told = parse(&format!("{head}{wrong}")).unwrap_err();
    assert_eq!((told.problems.len(), told.more), (500, 1500));
}

/// The example with pieces of text put into it.
fn mangled() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\n".to_owned()),
        "[-:?{}\\[\\],&*!|>'\"%@`#$ \t\n0-9a-z]{1,6}",
        any::<char>().prop_map(String::from),
        prop::sample::select(vec!["${", "}", "*a", "&a", "!t", "? ", "- ", ": ", "---", "...", "|", ">", "\u{feff}"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), 0_usize..20, piece), 1..6).prop_map(|edits| {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, cut, piece) in edits {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, piece.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_yaml_like_text_panics(text in "[-:?{}\\[\\],&*!|>'\"%@`#$ \n0-9a-z]{0,120}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mangled_file_panics_and_every_refusal_says_what_to_do(text in mangled()) {
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.problems.is_empty());
            for problem in &problems.problems {
                prop_assert!(problem.line.is_some() && !problem.message.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
                prop_assert!(!problem.message.contains('\n') && !problem.remedy.contains('\n') && !problem.key.contains('\n'));
            }
        }
    }
}

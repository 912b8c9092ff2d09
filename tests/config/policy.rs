//! `policy`, at the top and in routes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use turnpike::amount::Amount;
use turnpike::config::Config;
use turnpike::gate::policy::Policy;
use turnpike::gate::policy::calendar::{DAY_MINUTES, Days};
use turnpike::gate::policy::rate::Rate;
use turnpike::x402::Account;

use super::{MINIMAL, PAY_TO, parse, parse_in, problems};

const EVM: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";

/// The minimal file with a policy, and with one in its first route.
fn text(top: &str, route: &str) -> String {
    let route = if route.is_empty() { String::new() } else { format!(", policy: {route}") };
    let top = if top.is_empty() { String::new() } else { format!("policy: {top}\n") };
    format!(
        "upstream: http://127.0.0.1:3000\nnetwork: sandbox\nroutes:\n  - {{ path: /v1/*, price: \"$0.001\"{route} }}\n  \
         - {{ path: /v2/*, price: \"$0.001\", methods: [POST, GET], host: Api.example.com }}\n  \
         - {{ path: /health, free: true }}\n{top}"
    )
}

fn policies(top: &str, route: &str) -> [Option<Arc<Policy>>; 3] {
    let config = parse(&text(top, route)).unwrap_or_else(|problems| panic!("{top} {route}: {problems}"));
    let policies: Vec<_> = config.routes.iter().map(|route| route.policy.clone()).collect();
    policies.try_into().unwrap()
}

/// Both routes' policy, which stands at the top.
fn policy(top: &str) -> Arc<Policy> {
    let [first, second, free] = policies(top, "");
    assert!(first == second && free.is_none());
    first.unwrap()
}

#[test]
fn without_a_policy_no_route_has_one() {
    assert!(parse(MINIMAL).unwrap().routes.iter().all(|route| route.policy.is_none()));
}

#[test]
fn every_rule_is_read() {
    let read = policy("{ daily_limit: \"$50\", time_zone: Europe/Berlin }").daily_limit.clone().unwrap();
    assert_eq!(
        (read.max, &*read.scope, read.zone.to_string()),
        (50_000_000_u64.into(), "", "Europe/Berlin".to_owned())
    );
    assert_eq!(policy("{ per_request_cap: 1 USDC }").per_request_cap, Some(Amount::new(1_000_000)));
    for (text, count, seconds) in
        [("1/s", 1, 1), ("600/m", 600, 60), ("5/h", 5, 3600), ("1000000/d", 1_000_000, 86_400)]
    {
        let read = policy(&format!("{{ rate_limit: {text} }}")).rate_limit.clone().unwrap();
        assert_eq!((Some(read.rate), &*read.scope), (Rate::new(count, Duration::from_secs(seconds)), ""));
    }
    let payer = Account::parse(PAY_TO).unwrap();
    assert_eq!(policy(&format!("{{ allowlist: [{PAY_TO}] }}")).allowlist, Some([payer].into_iter().collect()));
    assert_eq!(policy(&format!("{{ blocklist: {PAY_TO} }}")).blocklist, Some([payer].into_iter().collect()));
    assert_eq!(policy("{ payer_exposure_max: $5 }").payer_exposure_max, Some(Amount::new(5_000_000)));
    let blocked = policy(
        "{ block_patterns: [{ path: /v1/Int*, header: 'User-Agent: *Bot*' }, { payer: 0XDEAD*, host: '*.A' }] }",
    );
    let shown = format!("{:?}", blocked.block_patterns);
    for part in ["\"/v1/int*\"", "\"user-agent\"", "\"*bot*\"", "\"0xdead*\"", "\"*.a\""] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let config = parse(&text("{ shadow: true, rate_limit: 1/s }", "")).unwrap();
    assert!(config.policy.shadow && !parse(&text("{ shadow: false, rate_limit: 1/s }", "")).unwrap().policy.shadow);
}

#[test]
fn time_windows_are_read() {
    let windows = |text: &str| policy(&format!("{{ time_zone: UTC, time_window: {text} }}")).time_window.clone();
    let office = windows(
        "{ days: [mon..fri], from: \"08:00\", to: \"18:00\", time_zone: Europe/Berlin }, rate_limit: 1/s, daily_limit: $1",
    );
    let [office] = &office[..] else { panic!("one") };
    assert_eq!(
        (office.days, office.from, office.to, office.zone.to_string().as_str()),
        (Days::span(0, 4), 480, 1080, "Europe/Berlin")
    );
    let two = windows("[{ days: [sat..mon, Wed] }, { from: \"22:00\", to: \"06:30\" }]");
    let [days, night] = &two[..] else { panic!("two") };
    let weekend = Days::span(5, 0).and(Days::span(2, 2));
    assert_eq!((days.days, days.from, days.to), (weekend, 0, DAY_MINUTES));
    assert_eq!((night.days, night.from, night.to, night.zone.to_string().as_str()), (Days::ALL, 1320, 390, "UTC"));
    assert_eq!(windows("{ from: \"12:00\" }")[0].to, DAY_MINUTES);
    assert_eq!(windows("{ to: \"24:00\", days: sun }")[0].to, DAY_MINUTES);
}

#[test]
fn a_routes_rules_take_the_place_of_those_at_the_top() {
    let top = "{ daily_limit: $50, rate_limit: 10/s, time_zone: Asia/Tokyo, payer_exposure_max: $3 }";
    let [first, second, free] = policies(top, "{ daily_limit: $5, rate_limit: off }");
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(free.is_none(), "nobody pays for a free route");
    assert_eq!(second, policy(top));
    let daily = first.daily_limit.clone().unwrap();
    assert_eq!(
        (daily.max, &*daily.scope, daily.zone.to_string().as_str()),
        (5_000_000_u64.into(), "/v1/*", "Asia/Tokyo")
    );
    assert_eq!((&first.rate_limit, first.payer_exposure_max), (&None, Some(Amount::new(3_000_000))));
    let [first, second, _] = policies("", "{ daily_limit: $5, time_zone: UTC }");
    assert!(first.is_some() && second.is_none());
    // A route's own sums are found again by what tells it from others, in whatever order that is written.
    let other = text("", "").replace("host: Api.example.com", "host: api.example.com, policy: { rate_limit: 1/s }");
    let other = parse(&other).unwrap().routes[1].policy.clone().unwrap();
    assert_eq!(&*other.rate_limit.clone().unwrap().scope, "GET,POST api.example.com/v2/*");
}

#[test]
fn screening_is_read() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("sanctions.txt"), "# nobody\n").unwrap();
    fs::write(directory.path().join("token"), "canary\n").unwrap();
    let service =
        "{ url: \"https://screening.example.com/v1/{payer}?x=1\", bearer_token_file: token, unavailable: refuse }";
    let config = parse_in(
        directory.path(),
        &text(&format!("{{ screening: {{ file: sanctions.txt, service: {service} }} }}"), ""),
    )
    .unwrap();
    assert!(config.routes[..2].iter().all(|route| route.policy.as_ref().is_some_and(|policy| policy.screened)));
    let screening = config.policy.screening.clone().unwrap();
    assert_eq!(screening.file, Some(directory.path().join("sanctions.txt")));
    let read = screening.service.unwrap();
    assert_eq!(
        (read.listed_at.as_str(), read.timeout.as_secs(), read.cache.as_secs(), read.refuse_unknown),
        ("/listed", 2, 3600, true)
    );
    assert_eq!(read.url.uri().to_string(), "https://screening.example.com/v1/{payer}?x=1");
    assert_eq!(read.headers[0].1, "Bearer canary");
    assert!(!format!("{config:?}").contains("canary"));
    let warned = |service: &str| {
        let text = text(&format!("{{ screening: {{ service: {service} }} }}"), "");
        let warnings = Config::parse(&directory.path().join("x.yaml"), &text, &|_| None).unwrap().1;
        warnings.iter().map(|warning| warning.0.to_string()).collect::<String>()
    };
    let plain = "{ url: \"http://10.0.0.1/{payer}\", listed_at: /a/b, cache: 1m, timeout: 50ms, unavailable: allow";
    assert_eq!(warned(&format!("{plain} }}")), "");
    assert!(warned(&format!("{plain}, bearer_token_file: token }}")).contains("is not encrypted"));
}

#[test]
fn mistakes_are_told_with_line_and_remedy() {
    let many = format!("{{ allowlist: [{}] }}", [PAY_TO; 2].join(", "));
    for (top, route, want) in [
        ("{ daily_limt: $5 }", "", r#":7 policy.daily_limt: is not a key. Did you mean daily_limit?"#),
        (
            "{ daily_limit: 50 }",
            "",
            r#":7 policy.daily_limit: "50" names no currency. Write "$50" or "50000000 USDC-atomic"."#,
        ),
        ("{ daily_limit: \"$0\" }", "", r#":7 policy.daily_limit: "$0" is nothing. Write an amount above zero."#),
        (
            "{ daily_limit: off }",
            "",
            ":7 policy.daily_limit: is off where there is nothing to switch off. Leave it out.",
        ),
        (
            "{ rate_limit: 1/s }",
            "{ daily_limit: off }",
            ":4 routes[0].policy.daily_limit: is off where there is nothing to switch off. Leave it out.",
        ),
        (
            "{ rate_limit: 10 }",
            "",
            r#":7 policy.rate_limit: "10" is not a rate. Write 1 to 1000000 and /s, /m, /h or /d, such as 10/s."#,
        ),
        ("{ rate_limit: 0/s }", "", r#"policy.rate_limit: "0/s" is not a rate."#),
        ("{ rate_limit: 1000001/s }", "", r#""1000001/s" is not a rate."#),
        ("{ rate_limit: +1/s }", "", r#""+1/s" is not a rate."#),
        (
            "{ rate_limit: 1/s, time_zone: UTC }",
            "",
            ":7 policy.time_zone: does nothing: there is no daily_limit, and no time_window without its own. Leave it out.",
        ),
        ("{ daily_limit: $5 }", "{ time_zone: UTC }", ":4 routes[0].policy.time_zone: does nothing"),
        (
            "{ daily_limit: $5, time_zone: Berlin }",
            "",
            r#"policy.time_zone: "Berlin" is not a known time zone. Did you mean Europe/Berlin?"#,
        ),
        ("{ daily_limit: $5, time_zone: CEST }", "", r#""CEST" is not a known time zone."#),
        (
            "{ time_window: { from: \"8:00\" } }",
            "",
            r#"policy.time_window.from: "8:00" is no time of day. Write hours and minutes, "00:00" to "23:59"."#,
        ),
        ("{ time_window: { from: \"24:00\" } }", "", r#""24:00" is no time of day"#),
        (
            "{ time_window: { to: \"24:01\" } }",
            "",
            r#""24:01" is no time of day. Write hours and minutes, "00:00" to "24:00"."#,
        ),
        ("{ time_window: { from: \"08:60\" } }", "", r#""08:60" is no time of day"#),
        (
            "{ time_window: { from: \"08:00\", to: \"08:00\" } }",
            "",
            "policy.time_window: begins when it ends. Leave from and to out for whole days.",
        ),
        ("{ time_window: {} }", "", "policy.time_window: is always open."),
        (
            "{ time_window: { days: [monday] } }",
            "",
            r#"policy.time_window.days[0]: "monday" is no day. Write mon, tue, wed, thu, fri, sat or sun, or two of them as in mon..fri."#,
        ),
        ("{ time_window: { days: [] } }", "", "policy.time_window.days: holds no day."),
        ("{ time_window: [] }", "", "policy.time_window: holds 0 windows. Write 1 to 16."),
        ("{ allowlist: [] }", "", "policy.allowlist: holds 0 addresses. Write 1 to 10000, or leave it out."),
        (
            &many,
            "",
            "policy.allowlist[1]: \"7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV\" is in the list already. Keep one of the two.",
        ),
        (
            "{ blocklist: [bob] }",
            "",
            r#"policy.blocklist[0]: "bob" is neither a Solana nor an EVM address. Write a payer's wallet address."#,
        ),
        (
            &format!("{{ blocklist: [\"{EVM}\"] }}"),
            "",
            "is an address on an EVM network, where nobody pays here. Leave it out.",
        ),
        (
            &format!("{{ blocklist: [\"{}\"] }}", EVM.replace("3C44", "3c44")),
            "",
            "has a wrong character: its checksum does not fit. Copy the address again.",
        ),
        (
            "{ block_patterns: [{}] }",
            "",
            "policy.block_patterns[0]: has neither payer, path, host nor header. Write at least one.",
        ),
        (
            "{ block_patterns: { path: v1 } }",
            "",
            "policy.block_patterns.path: \"v1\" begins with neither a slash nor *.",
        ),
        ("{ block_patterns: { path: /%61 } }", "", "has a query, a fragment or an escape."),
        ("{ block_patterns: { path: \"*\" } }", "", "matches everything."),
        (
            "{ block_patterns: { host: \"a:80\" } }",
            "",
            "\"a:80\" is no host. Write a host without port, such as *.example.com.",
        ),
        (
            "{ block_patterns: { header: bot } }",
            "",
            r#"policy.block_patterns.header: "bot" names no header. Write its name, a colon and a pattern: "user-agent: *bot*"."#,
        ),
        ("{ block_patterns: { header: \"a b: c\" } }", "", "names no header."),
        (
            "{ per_request_cap: 999 USDC-atomic }",
            "",
            ":4 routes[0]: costs up to $0.001, which is above per_request_cap ($0.000999): every request would be refused. Lower the price, or raise the limit here or in policy at the top.",
        ),
        (
            "",
            "{ daily_limit: 999 USDC-atomic }",
            ":4 routes[0]: costs up to $0.001, which is above daily_limit ($0.000999)",
        ),
        ("{ payer_exposure_max: 999 USDC-atomic }", "", "which is above payer_exposure_max ($0.000999)"),
        (
            "{ rate_limit: 1/s }",
            "{ shadow: true }",
            ":4 routes[0].policy.shadow: does nothing in a route: it holds on all of them. Write it in policy at the top.",
        ),
        ("", "{ screening: { file: x } }", ":4 routes[0].policy.screening: does nothing in a route"),
        (
            "{ shadow: true }",
            "",
            ":7 policy.shadow: does nothing: there is no rule that it could hold for. Write a rule.",
        ),
        (
            "{ screening: {} }",
            "",
            "policy.screening: has neither file nor service. Write one of them, or leave screening out.",
        ),
        ("{ screening: { file: nowhere } }", "", "policy.screening.file: \"nowhere\" cannot be read"),
        (
            "{ screening: { service: { url: \"https://a/{payer}\" } } }",
            "",
            "policy.screening.service.unavailable: is missing. Write what happens while the service cannot be asked: refuse or allow.",
        ),
        (
            "{ screening: { service: { url: \"https://a/b\", unavailable: allow } } }",
            "",
            "does not have {payer} in it once, for the payer's address.",
        ),
        (
            "{ screening: { service: { url: \"https://{payer}/\", unavailable: allow } } }",
            "",
            "has {payer} in its host.",
        ),
        (
            "{ screening: { service: { url: \"https://a/{payer}\", unavailable: maybe } } }",
            "",
            r#""maybe" is not known here. Write refuse or allow."#,
        ),
        (
            "{ screening: { service: { url: \"https://a/{payer}\", listed_at: x, unavailable: allow } } }",
            "",
            r#""x" is not a JSON pointer"#,
        ),
        (
            "{ screening: { service: { url: \"https://a/{payer}\", cache: 2d, unavailable: allow } } }",
            "",
            r#""2d" is longer than 1d."#,
        ),
    ] {
        let told = problems(&text(top, route));
        assert!(told.iter().any(|line| line.contains(want)), "{top} {route}\n{want}\n{told:#?}");
    }
    let free = text("", "").replace("free: true", "free: true, policy: { rate_limit: 1/s }");
    let want = ":6 routes[2].policy: does nothing on a free route, which nobody pays for. Leave it out, or give the route a price.";
    assert_eq!(problems(&free), [want]);
    assert!(parse_in(Path::new(""), &text("", "")).is_ok());
}

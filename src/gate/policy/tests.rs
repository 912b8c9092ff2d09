use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use proptest::prelude::*;

use super::calendar::Days;
use super::glob::Glob;
use super::*;

const SOLANA: &str = "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV";
const EVM: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";

fn account(text: &str) -> Account {
    Account::parse(text).unwrap()
}

fn list(texts: &[&str]) -> Option<Accounts> {
    Some(texts.iter().map(|text| account(text)).collect())
}

fn at(text: &str) -> UnixMillis {
    UnixMillis(text.parse::<Timestamp>().unwrap().as_millisecond())
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    map
}

fn request<'a>(path: &'a str, host: Option<&'a str>, headers: &'a HeaderMap) -> RequestFacts<'a> {
    RequestFacts { path, host, headers, now: at("2026-03-02T12:00:00Z") }
}

fn glob(text: &str) -> Option<Glob> {
    Some(Glob::parse(text).unwrap())
}

fn patterns(patterns: Vec<BlockPattern>) -> Policy {
    let block_patterns = patterns.into_iter().map(BlockPattern::prepared).collect();
    Policy { block_patterns, ..Policy::default() }
}

fn rule<T>(judged: Result<T, Finding>) -> Option<Rule> {
    judged.err().map(|finding| finding.rule)
}

#[test]
fn a_pattern_blocks_every_spelling_of_what_it_names() {
    let bot = (HeaderName::from_static("user-agent"), Glob::parse("*Bot*").unwrap());
    let policy = patterns(vec![
        BlockPattern { path: glob("/v1/Internal/*"), ..BlockPattern::default() },
        BlockPattern { host: glob("*.Test"), ..BlockPattern::default() },
        BlockPattern { header: Some(bot), ..BlockPattern::default() },
        BlockPattern { path: glob("/v2/*"), host: glob("old.example.com"), ..BlockPattern::default() },
        BlockPattern { path: glob("/v3/"), ..BlockPattern::default() },
    ]);
    let none = headers(&[]);
    for (path, host, lines, blocked) in [
        ("/v1/internal/a", None, &[][..], Some(0)),
        ("/V1/INTERNAL/a", None, &[], Some(0)),
        ("/v1/%69nternal/a/", None, &[], Some(0)),
        ("/v1/internal/a/b/c", None, &[], Some(0)),
        ("/v1/internal", None, &[], Some(0)),
        ("/v1/internal/", None, &[], Some(0)),
        ("/v1/internals", None, &[], None),
        ("/v1/a", Some("a.test"), &[], Some(1)),
        ("/v1/a", Some("A.TEST.:8402"), &[], Some(1)),
        ("/v1/a", Some("a.test.com"), &[], None),
        ("/v1/a", None, &[("user-agent", "a RoBOT")], Some(2)),
        ("/v1/a", None, &[("user-agent", "a"), ("user-agent", "bot")], Some(2)),
        ("/v1/a", None, &[("x-agent", "bot")], None),
        ("/v3/a", None, &[], None),
        ("/v3", None, &[], Some(4)),
        ("/v2/a", Some("old.example.com:80"), &[], Some(3)),
        ("/v2/a", Some("new.example.com"), &[], None),
        ("/v1/a", Some("old.example.com"), &[], None),
        ("/v2/a", None, &[], None),
    ] {
        let lines = headers(lines);
        let judged = policy.on_request(&request(path, host, &lines));
        let note = judged.err().map(|finding| finding.note.unwrap());
        assert_eq!(note, blocked.map(|at| format!("block_patterns[{at}]")), "{path} {host:?} {lines:?}");
    }
    assert_eq!(Policy::default().on_request(&request("/v1/internal/a", None, &none)), Ok(Armed::default()));
}

#[test]
fn a_pattern_with_a_payer_blocks_that_payer_where_the_rest_fits() {
    let policy = patterns(vec![
        BlockPattern { payer: glob("0x3c44*"), path: glob("/v1/*"), ..BlockPattern::default() },
        BlockPattern { payer: glob("7Ec*"), host: glob("a.test"), ..BlockPattern::default() },
    ]);
    let none = headers(&[]);
    for (path, host, payer, blocked) in [
        ("/v1/a", None, EVM, true),
        ("/v2/a", None, EVM, false),
        ("/v1/a", None, SOLANA, false),
        ("/v2/a", Some("a.test"), SOLANA, true),
        ("/v1/a", Some("a.test"), EVM, true),
        ("/v2/a", Some("b.test"), SOLANA, false),
    ] {
        let armed = policy.on_request(&request(path, host, &none)).unwrap();
        let judged = rule(policy.on_payer(&account(payer), Amount::ZERO, armed));
        assert_eq!(judged, blocked.then_some(Rule::BlockPatterns), "{path} {host:?} {payer}");
    }
}

#[test]
fn outside_of_every_window_it_is_told_when_the_next_one_opens() {
    let window = |days, from: u16, to: u16| Window { days, from: from * 60, to: to * 60, zone: Zone::default() };
    let time_window = Arc::from([window(Days::span(0, 4), 8, 12), window(Days::span(0, 6), 20, 22)]);
    let policy = Policy { time_window, ..Policy::default() };
    let none = headers(&[]);
    // 6 March 2026 was a Friday.
    for (time, wait) in [
        ("2026-03-06T08:00:00Z", None),
        ("2026-03-06T11:59:59.999Z", None),
        ("2026-03-06T12:00:00Z", Some(8 * 3600)),
        ("2026-03-06T21:59:59Z", None),
        ("2026-03-06T22:00:00Z", Some(22 * 3600)),
        ("2026-03-09T07:00:00Z", Some(3600)),
    ] {
        let facts = RequestFacts { now: at(time), ..request("/", None, &none) };
        let finding = policy.on_request(&facts).err();
        let wait = wait.map(Duration::from_secs);
        assert_eq!(finding.as_ref().map(|finding| finding.rule), wait.map(|_| Rule::TimeWindow), "{time}");
        assert_eq!(finding.and_then(|finding| finding.retry_after), wait, "{time}");
    }
    let blocked = BlockPattern { path: glob("/v1/*"), ..BlockPattern::default() };
    let both = Policy { time_window: policy.time_window, ..patterns(vec![blocked]) };
    let facts = RequestFacts { now: at("2026-03-06T12:00:00Z"), ..request("/v1/a", None, &none) };
    assert_eq!(rule(both.on_request(&facts)), Some(Rule::BlockPatterns), "patterns come first");
}

#[test]
fn payers_are_judged_in_order_of_precedence() {
    let all = Policy {
        blocklist: list(&[SOLANA]),
        allowlist: list(&[SOLANA]),
        per_request_cap: Some(Amount::new(10)),
        ..patterns(vec![BlockPattern { payer: glob("*LtV"), ..BlockPattern::default() }])
    };
    let without = |change: fn(&mut Policy)| {
        let mut policy = all.clone();
        change(&mut policy);
        policy
    };
    let none = headers(&[]);
    for (policy, payer, amount, found) in [
        (all.clone(), SOLANA, 11, Some(Rule::Blocklist)),
        (all.clone(), EVM, 11, Some(Rule::Allowlist)),
        (without(|policy| policy.blocklist = None), SOLANA, 11, Some(Rule::BlockPatterns)),
        (
            without(|policy| (policy.blocklist, policy.block_patterns) = (None, Arc::from([]))),
            SOLANA,
            11,
            Some(Rule::PerRequestCap),
        ),
        (without(|policy| (policy.blocklist, policy.block_patterns) = (None, Arc::from([]))), SOLANA, 10, None),
        (without(|policy| policy.allowlist = None), EVM, 10, None),
        (Policy { allowlist: list(&[EVM]), ..Policy::default() }, EVM, u128::MAX, None),
        (Policy { blocklist: list(&[EVM]), ..Policy::default() }, SOLANA, u128::MAX, None),
        (Policy::default(), SOLANA, u128::MAX, None),
    ] {
        let armed = policy.on_request(&request("/v1/a", None, &none)).unwrap();
        assert_eq!(rule(policy.on_payer(&account(payer), Amount::new(amount), armed)), found, "{policy:?} {payer}");
    }
}

#[test]
fn every_rule_has_its_name_and_code() {
    let names: HashSet<_> = Rule::ALL.iter().map(|rule| rule.as_str()).collect();
    assert_eq!(names.len(), Rule::ALL.len());
    for rule in Rule::ALL {
        assert_eq!(rule.reason().as_str(), format!("policy_{rule}"));
    }
}

proptest! {
    #[test]
    fn no_request_panics(path in ".{0,60}", host in ".{0,30}", value in "[ -~é]{0,30}", pattern in "[a-z/*.]{1,12}") {
        prop_assume!(Glob::parse(&pattern).is_ok());
        let one = |pattern: BlockPattern| patterns(vec![pattern]);
        let (name, lines) = (HeaderName::from_static("x-a"), headers(&[("x-a", &value)]));
        for policy in [
            one(BlockPattern { path: glob(&pattern), ..BlockPattern::default() }),
            one(BlockPattern { host: glob(&pattern), ..BlockPattern::default() }),
            one(BlockPattern { header: glob(&pattern).map(|glob| (name.clone(), glob)), ..BlockPattern::default() }),
        ] {
            let _ = policy.on_request(&request(&path, Some(&host), &lines));
        }
    }
}

//! Tables of matches, and properties against a slow matcher that tries every pattern.

use proptest::prelude::*;

use super::super::pattern::Segment;
use super::super::{Pricing, Route};
use super::*;

fn route(host: Option<&str>, methods: &[Method], path: &str) -> Route {
    Route {
        name: path.into(),
        host: host.map(Into::into),
        methods: methods.to_vec(),
        path: path.into(),
        pricing: Pricing::Free,
        upstream: None,
        timeout: None,
        description: None,
        mime_type: None,
        policy: None,
        scope: path.into(),
        pack: None,
    }
}

fn table(paths: &[&str]) -> RouteTable {
    RouteTable::build(paths.iter().map(|path| route(None, &[], path)).collect(), Unlisted::Deny).unwrap()
}

/// What is matched, in words.
fn told(found: Match<'_>) -> String {
    match found {
        Match::Matched(route) => format!("{}{}", route.host.as_deref().unwrap_or(""), route.name),
        Match::NotListed(Unlisted::Deny) => "denied".into(),
        Match::NotListed(Unlisted::Free) => "free".into(),
        Match::MethodNotAllowed { allow } => format!("only {}", allow.to_str().unwrap()),
        Match::BadPath(why) => format!("bad: {why:?}"),
    }
}

#[test]
fn the_most_specific_pattern_wins() {
    let table = table(&[
        "/v1/quote/*",
        "/v1/{id}",
        "/v1/*",
        "/v1/quote/{pair}",
        "/v1/quote/btc",
        "/health",
        "/a/{x}/c",
        "/a/b/*",
        "/%3Cx%3E/{p}",
    ]);
    for (path, want) in [
        ("/v1/quote", "/v1/quote/*"),
        ("/v1/quote/", "/v1/quote/*"),
        ("/v1/quote/x/y", "/v1/quote/*"),
        ("/v1/quote/eth", "/v1/quote/{pair}"),
        ("/v1/quote/btc", "/v1/quote/btc"),
        ("/v1/quote/btc/", "/v1/quote/btc"),
        ("/v1/quote/btc/x", "/v1/quote/*"),
        ("/v1/other", "/v1/{id}"),
        ("/v1/other/deep", "/v1/*"),
        ("/v1", "/v1/*"),
        ("/v1/", "/v1/*"),
        ("/V1/QUOTE/BTC", "/v1/quote/btc"),
        ("/v1/quot%65/b%54c", "/v1/quote/btc"),
        ("/health", "/health"),
        ("/health/x", "denied"),
        ("/<x>/1", "/%3Cx%3E/{p}"),
        ("/%3cX%3e/<p>", "/%3Cx%3E/{p}"),
        ("/<y>/1", "denied"),
        ("/a/b/c", "/a/b/*"),
        ("/a/z/c", "/a/{x}/c"),
        ("/a/z/d", "denied"),
        ("/", "denied"),
        ("/v1//quote", "bad: EmptySegment"),
        ("/v1/quote%2fbtc", "bad: Separator"),
    ] {
        assert_eq!(told(table.find(None, &Method::GET, path)), want, "{path}");
    }
}

#[test]
fn a_star_alone_is_every_path() {
    let table = table(&["*"]);
    for path in ["/", "/a", "/a/b"] {
        assert_eq!(told(table.find(None, &Method::GET, path)), "*", "{path}");
    }
}

#[test]
fn methods_belong_to_the_pattern() {
    let routes = vec![
        route(None, &[Method::POST, Method::PUT], "/v1/search"),
        route(None, &[], "/v1/*"),
        route(None, &[Method::GET], "/both"),
        route(None, &[], "/both"),
    ];
    let table = RouteTable::build(routes, Unlisted::Free).unwrap();
    assert_eq!(told(table.find(None, &Method::POST, "/v1/search")), "/v1/search");
    assert_eq!(told(table.find(None, &Method::GET, "/v1/search")), "only POST, PUT");
    assert_eq!(told(table.find(None, &Method::GET, "/v1/search/x")), "/v1/*");
    let Match::Matched(get) = table.find(None, &Method::GET, "/both") else { panic!("listed") };
    assert_eq!(get.methods, [Method::GET]);
    let Match::Matched(delete) = table.find(None, &Method::DELETE, "/both") else { panic!("listed") };
    assert!(delete.methods.is_empty());
    assert_eq!(told(table.find(None, &Method::GET, "/else")), "free");
}

#[test]
fn the_own_host_comes_first() {
    let routes = vec![
        route(Some("API.example.com"), &[], "/v1/*"),
        route(None, &[], "/v1/quote"),
        route(None, &[], "/other"),
        route(Some("[::1]"), &[], "/v1/*"),
    ];
    let table = RouteTable::build(routes, Unlisted::Deny).unwrap();
    let long = "x".repeat(300);
    let find = |host, path| told(table.find(host, &Method::GET, path));
    for host in ["api.example.com", "Api.Example.COM:8402", "api.example.com."] {
        assert_eq!(find(Some(host), "/v1/quote"), "API.example.com/v1/*", "{host}");
    }
    assert_eq!(find(Some("[::1]:80"), "/v1/quote"), "[::1]/v1/*");
    assert_eq!(find(Some("else.example.com"), "/v1/quote"), "/v1/quote");
    assert_eq!(find(Some(&long), "/v1/quote"), "/v1/quote");
    assert_eq!(find(None, "/v1/quote"), "/v1/quote");
    assert_eq!(find(Some("api.example.com"), "/other"), "/other");
}

#[test]
fn the_same_route_twice_is_refused() {
    let twice = |a: Route, b: Route| RouteTable::build(vec![route(None, &[], "/x"), a, b], Unlisted::Deny).map(|_| ());
    let same = Err(TableError::SameTwice { first: 1, second: 2 });
    assert_eq!(twice(route(None, &[], "/v1/{a}"), route(None, &[], "/v1/{b}/")), same);
    let (get, both) = ([Method::GET], [Method::POST, Method::GET]);
    assert_eq!(twice(route(None, &get, "/a"), route(None, &both, "/A")), same);
    assert_eq!(twice(route(Some("h"), &[], "/a"), route(Some("H."), &[], "/a")), same);
    assert_eq!(twice(route(Some("h"), &[], "/a"), route(None, &[], "/a")), Ok(()));
    assert_eq!(twice(route(None, &get, "/a"), route(None, &[], "/a")), Ok(()));
    let bad = RouteTable::build(vec![route(None, &[], "x")], Unlisted::Deny).map(|_| ());
    assert_eq!(bad, Err(TableError::Pattern { index: 0, why: PatternError::NotAbsolute }));
}

/// How well each segment of `pattern` fits `path`, best first; `None` where it does not match.
fn rank(pattern: &Pattern, path: &[&str]) -> Option<Vec<u8>> {
    if path.len() < pattern.segments.len() || (path.len() > pattern.segments.len() && !pattern.open) {
        return None;
    }
    let mut ranks = Vec::new();
    for (segment, part) in pattern.segments.iter().zip(path) {
        ranks.push(match segment {
            Segment::Text(text) if text.as_ref() == *part => 0,
            Segment::Text(_) => return None,
            Segment::Any => 1,
        });
    }
    ranks.push(if pattern.open { 3 } else { 2 });
    Some(ranks)
}

fn paths() -> impl Strategy<Value = Vec<String>> {
    prop::collection::btree_set("(/([abc]|\\{p\\})){0,1}(/([abc]|\\{q\\})){0,1}(/([abc]|\\{r\\})){0,1}(/\\*)?", 1..12)
        .prop_map(|set| {
            let mut seen = std::collections::HashSet::new();
            let rooted = set.into_iter().map(|path| if path.is_empty() { "/".to_owned() } else { path });
            rooted.filter(|path| seen.insert(Pattern::parse(path).unwrap())).collect::<Vec<_>>()
        })
        .prop_shuffle()
}

proptest! {
    #[test]
    fn matches_what_trying_every_pattern_matches(paths in paths(), asked in prop::collection::vec("[abcd]", 0..5)) {
        let routes = paths.iter().map(|path| route(None, &[], path)).collect();
        let table = RouteTable::build(routes, Unlisted::Deny).unwrap();
        let segments: Vec<&str> = asked.iter().map(String::as_str).collect();
        let best = paths
            .iter()
            .filter_map(|path| Some((rank(&Pattern::parse(path).unwrap(), &segments)?, path)))
            .min()
            .map_or("denied", |(_, path)| path);
        prop_assert_eq!(told(table.find(None, &Method::GET, &format!("/{}", asked.join("/")))), best);
    }

    #[test]
    fn the_order_of_routes_does_not_matter(paths in paths(), asked in "(/[abcdAB]){0,5}/?") {
        let build = |paths: &[String]| {
            RouteTable::build(paths.iter().map(|path| route(None, &[], path)).collect(), Unlisted::Deny).unwrap()
        };
        let reversed: Vec<String> = paths.iter().rev().cloned().collect();
        let (one, other) = (build(&paths), build(&reversed));
        prop_assert_eq!(told(one.find(None, &Method::GET, &asked)), told(other.find(None, &Method::GET, &asked)));
    }

    #[test]
    fn no_request_panics(host in "[a-z.:\\[\\]é]{0,20}", path in "/?[/a-c%2f.é;]{0,40}") {
        let table = table(&["/a/{x}/*", "/b", "/{y}"]);
        let _ = table.find(Some(&host), &Method::GET, &path);
    }
}

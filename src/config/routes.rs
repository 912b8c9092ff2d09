//! Reading `routes`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::money::Assets;
use super::network::shown;
use super::reader::{Complaint, Map, Value};
use super::route::{NetworkPrice, RouteConfig, RoutePricing};
use super::schemes::{self, Kind};
use super::server::{or, within_client};
use super::{Family, NetworkConfig, ROUTES_MAX, Scheme, Unlisted, metering, pack, policy, value};
use crate::amount::Amount;
use crate::gate::route::pattern::parse_host;
use crate::gate::route::{Claim, Pattern, conflicts};

const DESCRIPTION_BYTES_MAX: usize = 500;
const MIME_TYPE_BYTES_MAX: usize = 100;
const METHODS: [(&str, Method); 7] = [
    ("GET", Method::GET),
    ("HEAD", Method::HEAD),
    ("POST", Method::POST),
    ("PUT", Method::PUT),
    ("DELETE", Method::DELETE),
    ("PATCH", Method::PATCH),
    ("OPTIONS", Method::OPTIONS),
];

/// What a route's keys are checked against.
pub(super) struct Surroundings<'a> {
    pub assets: &'a Assets<'a>,
    /// The names in `upstreams`.
    pub upstreams: &'a BTreeSet<String>,
    pub max_timeout: Duration,
    pub memo: Option<Arc<str>>,
    /// The signer's limit, where there is one.
    pub deposit_max: Option<Amount>,
    /// Where it could be read.
    pub channel_exposure_max: Option<Amount>,
    pub default: Unlisted,
    /// What the top says of policy, and what it is checked against.
    pub policy: &'a policy::Top,
    pub policing: policy::Around<'a>,
}

/// Reads all routes; `None` where anything is wrong.
pub(super) fn read(root: &mut Map<'_, '_>, around: &Surroundings<'_>) -> Option<Vec<RouteConfig>> {
    let value = root.require("routes", "Write a list such as [{path: /v1/*, price: \"$0.001\"}].")?;
    let items = value.items("a list of mappings, each with path and price")?;
    if items.is_empty() || items.len() > ROUTES_MAX {
        value.problem(format!("holds {} routes.", items.len()), format!("Write 1 to {ROUTES_MAX}."));
        return None;
    }
    let mut routes = Vec::with_capacity(items.len());
    let mut patterns = Vec::with_capacity(items.len());
    for item in &items {
        let read = item.map("a mapping such as {path: /v1/*, price: \"$0.001\"}", |map| route(map, around));
        if let Some((pattern, route)) = read.flatten() {
            patterns.push((pattern, item));
            routes.push(route);
        }
    }
    let claims: Vec<_> = routes
        .iter()
        .zip(&patterns)
        .map(|(route, (pattern, _))| Claim { host: route.host.as_deref(), pattern, methods: &route.methods })
        .collect();
    let twice = conflicts(&claims);
    for &(first, second) in &twice {
        if let (Some(first), Some((_, item))) = (routes.get(first), patterns.get(second)) {
            let what = format!("matches the same requests as the route in line {}.", first.line);
            item.problem(what, "Keep one of the two, or limit them to different methods or hosts.");
        }
    }
    if routes.len() == items.len() && routes.iter().all(|route| route.pricing == RoutePricing::Free) {
        value.warn("are all free, so nothing is ever charged.", "Give a route a price.");
    }
    (twice.is_empty() && routes.len() == items.len()).then_some(routes)
}

fn route(map: &mut Map<'_, '_>, around: &Surroundings<'_>) -> Option<(Pattern, RouteConfig)> {
    let path =
        map.require("path", "Write a path such as /v1/quote, /v1/items/{id} or /v1/*.").and_then(|value| path(&value));
    let host_value = map.take("host");
    let host = or(host_value.clone(), None, |value| host(value).map(Some));
    let methods = or(map.take("methods"), Vec::new(), methods);
    let upstream = or(map.take("upstream"), None, |value| upstream(value, around).map(Some));
    let timeout_value = map.take("timeout");
    let (min, max) = (Duration::from_millis(10), Duration::from_secs(3600));
    let timeout = or(timeout_value.clone(), None, |value| value.duration(min, max).map(Some));
    let pricing = pricing(map, around);
    let description = text_for_challenge(map, "description", DESCRIPTION_BYTES_MAX, &pricing);
    let mime_type = text_for_challenge(map, "mime_type", MIME_TYPE_BYTES_MAX, &pricing);
    let priced = pricing.as_ref().is_some_and(|pricing| *pricing != RoutePricing::Free);
    if let (true, Some(value), Some(Some(time))) = (priced, &timeout_value, timeout) {
        within_client(value, time, around.max_timeout)?;
    }
    if let (true, Some(value), Unlisted::Free) = (priced, &host_value, around.default) {
        value.problem(
            "limits a priced route to a host while default is free: a client chooses the host that it sends, and with another it would pay nothing.",
            "Leave host out, or write default: deny and list the free routes.",
        );
    }
    let scope = path.as_ref().map(|(_, path)| scope(methods.as_deref(), host.as_ref(), path)).unwrap_or_default();
    let pack = pack::read(map, pricing.as_ref(), around);
    let told = (pricing.as_ref(), pack.as_ref().and_then(Option::as_ref));
    let policy = around.policy.of_route(map, around.policing, &scope, told);
    let (pattern, path) = path?;
    let route = RouteConfig {
        line: map.whole.line,
        host: host?,
        methods: methods?,
        path,
        pricing: pricing?,
        upstream: upstream?,
        timeout: timeout?,
        description: description?,
        mime_type: mime_type?,
        max_timeout_seconds: around.max_timeout.as_secs(),
        memo: around.memo.clone(),
        policy: policy?,
        scope: scope.into(),
        pack: pack?,
    };
    Some((pattern, route))
}

/// Names a route's own limits: what tells it from all others, so that what was spent is found again after a restart.
fn scope(methods: Option<&[Method]>, host: Option<&Option<Arc<str>>>, path: &str) -> String {
    let mut methods: Vec<_> = methods.unwrap_or_default().iter().map(Method::as_str).collect();
    methods.sort_unstable();
    let host = host.and_then(|host| host.as_deref()).unwrap_or_default();
    format!("{} {host}{path}", methods.join(",")).trim_start().to_owned()
}

fn path(value: &Value<'_, '_>) -> Option<(Pattern, Arc<str>)> {
    value.parse("a path such as /v1/*", |text| {
        let remedy = "Write a path such as /v1/quote, /v1/items/{id} or /v1/*.";
        let pattern = Pattern::parse(text).map_err(|why| Complaint::new(why.to_string(), remedy))?;
        Ok((pattern, text.into()))
    })
}

fn host(value: &Value<'_, '_>) -> Option<Arc<str>> {
    value.parse("a host name", |text| {
        let remedy = "Write one exact host such as api.example.com.";
        parse_host(text).map(Arc::from).map_err(|why| Complaint::new(why.to_string(), remedy))
    })
}

fn methods(value: &Value<'_, '_>) -> Option<Vec<Method>> {
    let names = METHODS.map(|(name, _)| name);
    let items = value.one_or_many();
    if items.is_empty() {
        value.problem("holds no method.", "Write at least one, or leave the key out for all.");
        return None;
    }
    let mut methods = Vec::new();
    let mut whole = true;
    for item in items {
        let method = item.parse("a method such as GET", |text| {
            let found = METHODS.iter().find(|(name, _)| *name == text).map(|(_, method)| method.clone());
            found.ok_or_else(|| {
                let complaint = Complaint::new("is not a method", format!("Write {}.", value::or_list(&names)));
                nearest_method(text, &names)
                    .map_or(complaint.clone(), |near| complaint.suggest(format!("Did you mean {near}?")))
            })
        });
        match method {
            Some(method) if methods.contains(&method) => {
                item.reject(Complaint::new("is in the list already", "Keep one of the two."));
                whole = false;
            }
            Some(method) => methods.push(method),
            None => whole = false,
        }
    }
    whole.then_some(methods)
}

fn nearest_method<'a>(text: &str, names: &[&'a str]) -> Option<&'a str> {
    let text = text.to_uppercase();
    let close = |name: &&&str| text.len() <= 10 && strsim::damerau_levenshtein(&text, name) <= 1;
    names.iter().find(close).copied()
}

fn upstream(value: &Value<'_, '_>, around: &Surroundings<'_>) -> Option<Arc<str>> {
    value.parse("a name from upstreams", |text| {
        if around.upstreams.contains(text) {
            return Ok(text.into());
        }
        let names: Vec<&str> = around.upstreams.iter().map(String::as_str).collect();
        if names.is_empty() {
            return Err(Complaint::new("names no upstream", "Write upstreams: {name: url}, and the name here."));
        }
        let remedy = format!("The names are {}.", names.join(", "));
        let complaint = Complaint::new("is not a name from upstreams", remedy);
        let near = value::nearest(text, &names);
        Err(near.map_or(complaint.clone(), |near| complaint.suggest(format!("Did you mean {near}?"))))
    })
}

/// `description` or `mime_type`, which only a challenge shows.
fn text_for_challenge(
    map: &mut Map<'_, '_>,
    key: &'static str,
    bytes_max: usize,
    pricing: &Option<RoutePricing>,
) -> Option<Option<Arc<str>>> {
    if *pricing == Some(RoutePricing::Free) {
        map.inert(key, "on a free route, which is never challenged", "Leave it out.");
        return Some(None);
    }
    let Some(value) = map.take(key) else { return Some(None) };
    let text = value.line(bytes_max)?;
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    let media = text.split(';').next().and_then(|media| media.trim_end().split_once('/'));
    if key == "mime_type" && !media.is_some_and(|(kind, sub)| plain(kind) && plain(sub)) {
        value.reject(Complaint::new("is not a media type", "Write one such as application/json."));
        return None;
    }
    Some(Some(text.into()))
}

fn pricing(map: &mut Map<'_, '_>, around: &Surroundings<'_>) -> Option<RoutePricing> {
    let (price, free) = (map.take("price"), map.take("free"));
    let (has_price, has_free) = (map.has("price"), map.has("free"));
    match (price, free) {
        (_, Some(free)) => {
            let free_value = free.boolean();
            if free_value == Some(false) {
                free.problem("does nothing where it is false.", "Leave it out, and write a price.");
            }
            if has_price {
                free.problem("stands beside price.", "Keep one of the two.");
            }
            let remedy = "Leave it out, or give the route a price.";
            for key in ["schemes", "metering", "min_deposit"] {
                map.inert(key, "on a free route", remedy);
            }
            (free_value == Some(true)).then_some(RoutePricing::Free)
        }
        (Some(price), None) => paid(map, &price, around),
        (None, None) => {
            if !has_price && !has_free {
                map.whole.problem("has neither a price nor free: true.", "Write price: \"$0.001\", or free: true.");
            }
            for key in ["schemes", "metering", "min_deposit"] {
                map.take(key);
            }
            None
        }
    }
}

/// A price on one of its networks, by one scheme.
struct Way<'a> {
    network: &'a NetworkConfig,
    amount: Amount,
    scheme: Scheme,
}

fn paid(map: &mut Map<'_, '_>, price: &Value<'_, '_>, around: &Surroundings<'_>) -> Option<RoutePricing> {
    let metering_value = map.take("metering");
    let schemes_value = map.take("schemes");
    let named = or(schemes_value.clone(), None, |value| schemes::read(value).map(Some));
    let kind = match (&metering_value, &named) {
        (Some(_), _) => Kind::Metered,
        (None, Some(Some(named))) if named.as_slice() == [Scheme::Upto] => Kind::Whole,
        (None, _) => Kind::Fixed,
    };
    let amounts = around.assets.price(price);
    let meter = or(metering_value, None, |value| {
        metering::read(value, around.assets, amounts.as_deref(), around.max_timeout).map(Some)
    });
    let ways = match (&named, &amounts) {
        (Some(None), Some(amounts)) => ways_of_networks(price, amounts, kind),
        (Some(Some(named)), Some(amounts)) => ways_named(schemes_value.as_ref().unwrap_or(price), named, amounts, kind),
        _ => None,
    };
    let deposits = min_deposits(map, ways.as_deref(), amounts.as_deref(), around);
    let (ways, deposits) = (ways?, deposits?);
    check_price(price, &ways, around)?;
    let deposit = |way: &Way<'_>| {
        let here = |(network, _): &&(&NetworkConfig, Amount)| std::ptr::eq(*network, way.network);
        deposits.iter().find(here).map(|(_, deposit)| *deposit).filter(|_| way.scheme == Scheme::BatchSettlement)
    };
    let price = |way: &Way<'_>| NetworkPrice {
        network: way.network.network.clone(),
        asset: Arc::clone(&way.network.asset),
        scheme: way.scheme,
        amount: way.amount,
        min_deposit: deposit(way),
    };
    let prices = ways.iter().map(price).collect();
    Some(match kind {
        Kind::Fixed => RoutePricing::Fixed(prices),
        Kind::Metered | Kind::Whole => RoutePricing::Metered { prices, meter: meter? },
    })
}

/// How a price is paid where its route names no scheme: as its networks say.
fn ways_of_networks<'a>(
    price: &Value<'_, '_>,
    amounts: &[(&'a NetworkConfig, Amount)],
    kind: Kind,
) -> Option<Vec<Way<'a>>> {
    let mut ways = Vec::new();
    let mut whole = true;
    for &(network, amount) in amounts {
        let possible = schemes::possible(&network.family, kind);
        let wanted = match &network.family {
            Family::Evm(evm) => evm.schemes.as_slice(),
            Family::Svm(_) => possible,
        };
        let fitting: Vec<_> = wanted.iter().copied().filter(|scheme| possible.contains(scheme)).collect();
        if fitting.is_empty() {
            let (here, names, wanted) = (shown(&network.network), schemes::names(possible), schemes::names(wanted));
            let what = format!("on {here} {} is paid by {names}, and the network has only {wanted}", kind.as_str());
            price.reject(Complaint::new(
                format!("cannot be paid: {what}"),
                "Write schemes here, or one more for the network.",
            ));
            whole = false;
        }
        ways.extend(fitting.into_iter().map(|scheme| Way { network, amount, scheme }));
    }
    whole.then_some(ways)
}

/// How a price is paid by the schemes that its route names. Each has to serve on one of the networks, and each network
/// has to have one.
fn ways_named<'a>(
    value: &Value<'_, '_>,
    named: &[Scheme],
    amounts: &[(&'a NetworkConfig, Amount)],
    kind: Kind,
) -> Option<Vec<Way<'a>>> {
    let mut ways: Vec<Way<'a>> = Vec::new();
    let mut whole = true;
    for &(network, amount) in amounts {
        let possible = schemes::possible(&network.family, kind);
        let fitting: Vec<_> = named.iter().copied().filter(|scheme| possible.contains(scheme)).collect();
        if fitting.is_empty() {
            value.reject(unfitting(network, named, kind));
            whole = false;
        }
        ways.extend(fitting.into_iter().map(|scheme| Way { network, amount, scheme }));
    }
    if !whole {
        return None;
    }
    for scheme in named.iter().filter(|scheme| ways.iter().all(|way| way.scheme != **scheme)) {
        let what = format!("holds {}, by which {} is paid on none of its networks.", scheme.as_str(), kind.as_str());
        value.problem(what, "Leave it out.");
        whole = false;
    }
    whole.then_some(ways)
}

/// Why none of the named schemes serves on a network.
fn unfitting(network: &NetworkConfig, named: &[Scheme], kind: Kind) -> Complaint {
    match (&network.family, kind) {
        (Family::Svm(_), Kind::Metered) if named.contains(&Scheme::BatchSettlement) => Complaint::new(
            "cannot be metered on Solana: there a client's voucher is for the whole price, and less cannot be charged",
            "Write schemes: upto or leave schemes out; or leave metering out.",
        ),
        (Family::Evm(_), Kind::Whole) => Complaint::new(
            format!("would always charge the whole price on {}, as nothing is metered", shown(&network.network)),
            "Write exact, or metering.",
        ),
        _ => {
            let possible = schemes::names(schemes::possible(&network.family, kind));
            let here = shown(&network.network);
            let what = format!("is no way to pay {} on {here}", kind.as_str());
            Complaint::new(what, format!("Write {possible}, or leave schemes out."))
        }
    }
}

/// Proposed first deposits, by network; none where the key is not written.
fn min_deposits<'a>(
    map: &mut Map<'_, '_>,
    ways: Option<&[Way<'_>]>,
    amounts: Option<&[(&NetworkConfig, Amount)]>,
    around: &Surroundings<'a>,
) -> Option<Vec<(&'a NetworkConfig, Amount)>> {
    if ways.is_some_and(|ways| ways.iter().all(|way| way.scheme != Scheme::BatchSettlement)) {
        map.inert("min_deposit", "where nothing is paid by batch-settlement, from a balance", "Leave it out.");
        return Some(Vec::new());
    }
    let Some(value) = map.take("min_deposit") else { return Some(Vec::new()) };
    let deposits = around.assets.price(&value)?;
    let highest = deposits.iter().map(|(_, deposit)| *deposit).max()?;
    if let Some(max) = around.deposit_max.filter(|max| highest > *max) {
        let what = format!("is above signer.deposit_max ({}), so it would be refused", around.assets.show(max));
        value.reject(Complaint::new(what, "Lower it, or raise the limit."));
        return None;
    }
    let amounts = amounts?;
    let alike = deposits.len() == amounts.len();
    let covers =
        |((_, deposit), (_, amount)): (&(&NetworkConfig, Amount), &(&NetworkConfig, Amount))| deposit >= amount;
    if !alike {
        value.reject(Complaint::new("is not in the currency of the price", "Write both in the same currency."));
        return None;
    }
    if !deposits.iter().zip(amounts).all(covers) {
        value.reject(Complaint::new("is below the price", "Write at least the price."));
        return None;
    }
    Some(deposits)
}

/// Refuses a price that could never be paid. What is paid without a channel has no limit of channels.
fn check_price(value: &Value<'_, '_>, ways: &[Way<'_>], around: &Surroundings<'_>) -> Option<()> {
    for way in ways {
        let in_channel = way.scheme == Scheme::BatchSettlement;
        let deposited = in_channel || matches!(way.network.family, Family::Svm(_));
        let limits = [
            ("signer.deposit_max", around.deposit_max.filter(|_| deposited)),
            ("settlement.channel_exposure_max", around.channel_exposure_max.filter(|_| in_channel)),
        ];
        for (name, limit) in limits {
            if let Some(limit) = limit.filter(|limit| way.amount > *limit) {
                let what = format!("is above {name} ({}), so it could never be paid", around.assets.show(limit));
                value.reject(Complaint::new(what, "Lower the price, or raise the limit."));
                return None;
            }
        }
    }
    Some(())
}

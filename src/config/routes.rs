//! Reading `routes`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::money::Assets;
use super::reader::{Complaint, Map, Value};
use super::route::{NetworkPrice, RouteConfig, RoutePricing};
use super::server::{or, within_client};
use super::{NetworkConfig, ROUTES_MAX, Unlisted, metering, value};
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
    pub assets: &'a Assets,
    /// The names in `upstreams`.
    pub upstreams: &'a BTreeSet<String>,
    pub max_timeout: Duration,
    pub memo: Option<Arc<str>>,
    /// The signer's limit, where there is one.
    pub deposit_max: Option<Amount>,
    /// Where it could be read.
    pub channel_exposure_max: Option<Amount>,
    pub default: Unlisted,
}

/// How a route is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    BatchSettlement,
    Upto,
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
    };
    Some((pattern, route))
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
            for key in ["scheme", "metering", "min_deposit"] {
                map.inert(key, "on a free route", remedy);
            }
            (free_value == Some(true)).then_some(RoutePricing::Free)
        }
        (Some(price), None) => paid(map, &price, around),
        (None, None) => {
            if !has_price && !has_free {
                map.whole.problem("has neither a price nor free: true.", "Write price: \"$0.001\", or free: true.");
            }
            for key in ["scheme", "metering", "min_deposit"] {
                map.take(key);
            }
            None
        }
    }
}

fn paid(map: &mut Map<'_, '_>, price: &Value<'_, '_>, around: &Surroundings<'_>) -> Option<RoutePricing> {
    let metering_value = map.take("metering");
    let scheme_value = map.take("scheme");
    let choices = [("batch-settlement", Scheme::BatchSettlement), ("upto", Scheme::Upto)];
    let default = if metering_value.is_some() { Scheme::Upto } else { Scheme::BatchSettlement };
    let scheme = or(scheme_value.clone(), default, |value| value.choice(&choices));
    if let (Some(_), Some(Scheme::BatchSettlement), Some(value)) = (&metering_value, scheme, &scheme_value) {
        let what =
            "cannot be metered on Solana: there a client's voucher is for the whole price, and less cannot be charged";
        value.reject(Complaint::new(what, "Write scheme: upto or leave scheme out; or leave metering out."));
        return None;
    }
    let amounts = around.assets.price(price);
    let meter = or(metering_value, None, |value| {
        metering::read(value, around.assets, amounts.as_deref(), around.max_timeout).map(Some)
    });
    let deposits = min_deposits(map, scheme, amounts.as_deref(), around);
    let (amounts, deposits, scheme) = (amounts?, deposits?, scheme?);
    check_price(price, &amounts, scheme, around)?;
    let on = |network: &NetworkConfig| {
        let same =
            |(other, _): &&(&NetworkConfig, Amount)| other.network == network.network && other.mint == network.mint;
        deposits.iter().find(same).map(|(_, deposit)| *deposit)
    };
    let price = |(network, amount): (&NetworkConfig, Amount)| NetworkPrice {
        network: network.network.clone(),
        mint: network.mint,
        amount,
        min_deposit: on(network),
    };
    let prices = amounts.into_iter().map(price).collect();
    Some(match scheme {
        Scheme::BatchSettlement => RoutePricing::Fixed(prices),
        Scheme::Upto => RoutePricing::Metered { prices, meter: meter? },
    })
}

/// Proposed first deposits, by network; none where the key is not written.
fn min_deposits<'a>(
    map: &mut Map<'_, '_>,
    scheme: Option<Scheme>,
    amounts: Option<&[(&NetworkConfig, Amount)]>,
    around: &Surroundings<'a>,
) -> Option<Vec<(&'a NetworkConfig, Amount)>> {
    if scheme == Some(Scheme::Upto) {
        map.inert("min_deposit", "with scheme upto, where each request deposits its price", "Leave it out.");
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

/// Refuses a price that could never be paid.
fn check_price(
    value: &Value<'_, '_>,
    amounts: &[(&NetworkConfig, Amount)],
    scheme: Scheme,
    around: &Surroundings<'_>,
) -> Option<()> {
    let highest = amounts.iter().map(|(_, amount)| *amount).max()?;
    let limits = [
        ("signer.deposit_max", around.deposit_max),
        ("settlement.channel_exposure_max", around.channel_exposure_max.filter(|_| scheme == Scheme::BatchSettlement)),
    ];
    for (name, limit) in limits {
        if let Some(limit) = limit.filter(|limit| highest > *limit) {
            let what = format!("is above {name} ({}), so it could never be paid", around.assets.show(limit));
            value.reject(Complaint::new(what, "Lower the price, or raise the limit."));
            return None;
        }
    }
    Some(())
}

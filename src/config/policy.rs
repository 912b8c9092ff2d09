//! `policy`: which paid requests are wanted. At the top what holds on all routes, in a route what takes its place there.
//!
//! Every rule in a route's `policy` takes the place of the one at the top, and `off` drops it. `shadow`, `screening` and
//! `payer_exposure_max` stand at the top alone, for they hold on all routes. A limit counts together what it holds for:
//! one at the top all routes that have none of their own, a route's own that route alone.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use jiff::tz::TimeZone;

use super::Scheme;
use super::money::Assets;
use super::network::Families;
use super::reader::{Complaint, Map, Value};
use super::route::{NetworkPrice, PackConfig, RouteConfig, RoutePricing};
use super::screening::{self, ScreeningConfig};
use super::server::or;
use super::value;
use crate::amount::Amount;
use crate::gate::policy::calendar::{DAY_MINUTES, Days, Window, Zone};
use crate::gate::policy::glob::Glob;
use crate::gate::policy::patterns::{BlockPattern, PATTERNS_MAX};
use crate::gate::policy::rate::{COUNT_MAX, Rate};
use crate::gate::policy::{Accounts, DailyRule, Policy, RateLimit};
use crate::x402::Account;
use crate::x402::evm::Address;

/// The most addresses of one list.
const LIST_MAX: usize = 10_000;
/// The most windows of one policy.
const WINDOWS_MAX: usize = 16;

/// What holds on all routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Whether refusals are only told of.
    pub shadow: bool,
    /// The most that may be charged to one payer and not yet claimed.
    pub payer_exposure_max: Option<Amount>,
    /// The compliance lists.
    pub screening: Option<ScreeningConfig>,
}

/// What a key says: `None` where it is not written, `Some(None)` for `off`.
type Said<T> = Option<Option<T>>;

/// What one `policy` says of the rules that stand at the top and in routes.
#[derive(Default)]
struct Rules {
    block_patterns: Said<Arc<[BlockPattern]>>,
    time_window: Said<Arc<[Window]>>,
    blocklist: Said<Accounts>,
    allowlist: Said<Accounts>,
    per_request_cap: Said<Amount>,
    rate_limit: Said<RateLimit>,
    daily_limit: Said<DailyRule>,
}

/// What stands at the top.
#[derive(Default)]
pub(super) struct Top {
    pub global: PolicyConfig,
    rules: Rules,
    zone: Option<Zone>,
    /// Whether a rule has a use for `zone`.
    zone_used: Cell<bool>,
    place: Option<usize>,
    /// Where `payer_exposure_max` is.
    exposure_line: Option<usize>,
}

/// What rules are checked against.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub assets: &'a Assets<'a>,
    pub families: Option<Families>,
}

/// Reads `policy` at the top.
pub(super) fn read(root: &mut Map<'_, '_>, around: Around<'_>) -> Option<Top> {
    let Some(value) = root.take("policy") else { return (!root.has("policy")).then(Top::default) };
    let place = Some(value.line);
    value.map("a mapping such as {daily_limit: \"$50\"}", |map| top(map, around, place)).flatten()
}

fn top(map: &mut Map<'_, '_>, around: Around<'_>, place: Option<usize>) -> Option<Top> {
    let shadow = or(map.take("shadow"), false, Value::boolean);
    let exposure_value = map.take("payer_exposure_max");
    let exposure_line = exposure_value.as_ref().map(|value| value.line);
    let exposure = or(exposure_value, None, |value| around.assets.limit(value).map(Some));
    let screening = or(map.take("screening"), None, |value| {
        value.map("a mapping with file, service or both", screening::read).flatten().map(Some)
    });
    let zone_value = map.take("time_zone");
    let zone = or(zone_value, None, |value| zone(value).map(Some));
    let used = Cell::new(false);
    let rules = rules(map, around, None, "", zone.clone().flatten().as_ref(), &used);
    Some(Top {
        global: PolicyConfig { shadow: shadow?, payer_exposure_max: exposure?, screening: screening? },
        rules: rules?,
        zone: zone?,
        zone_used: used,
        place,
        exposure_line,
    })
}

impl Top {
    /// A route's policy, of what stands in the route and at the top; `Some(None)` where nothing holds on it.
    pub(super) fn of_route(
        &self,
        map: &mut Map<'_, '_>,
        around: Around<'_>,
        scope: &str,
        (pricing, pack): (Option<&RoutePricing>, Option<&PackConfig>),
    ) -> Option<Option<Arc<Policy>>> {
        if pricing == Some(&RoutePricing::Free) {
            map.inert("policy", "on a free route, which nobody pays for", "Leave it out, or give the route a price.");
            return Some(None);
        }
        let own = or(map.take("policy"), Rules::default(), |value| {
            value.map("a mapping such as {daily_limit: \"$50\"}", |map| self.in_route(map, around, scope)).flatten()
        })?;
        let policy = self.merged(&own);
        if let Some(pricing) = pricing {
            self.check_price(map, around, &policy, pricing.prices(), "costs up to")?;
        }
        if let Some(pack) = pack {
            self.check_price(map, around, &policy, &pack.prices, "has a pack that costs")?;
        }
        Some((policy != Policy::default()).then(|| Arc::new(policy)))
    }

    fn in_route(&self, map: &mut Map<'_, '_>, around: Around<'_>, scope: &str) -> Option<Rules> {
        for key in ["shadow", "screening", "payer_exposure_max"] {
            map.inert(key, "in a route: it holds on all of them", "Write it in policy at the top.");
        }
        let zone_value = map.take("time_zone");
        let own = or(zone_value.clone(), None, |value| zone(value).map(Some))?;
        let (zone, used) = (own.as_ref().or(self.zone.as_ref()), Cell::new(false));
        let rules = rules(map, around, Some(&self.rules), scope, zone, &used);
        match zone_value {
            Some(value) if rules.is_some() && !used.get() => {
                value.problem(NO_USE_FOR_ZONE, "Leave it out.");
                return None;
            }
            Some(_) => {}
            None => self.zone_used.set(self.zone_used.get() || used.get()),
        }
        rules
    }

    fn merged(&self, own: &Rules) -> Policy {
        let top = &self.rules;
        Policy {
            block_patterns: over(&own.block_patterns, &top.block_patterns).unwrap_or_default(),
            time_window: over(&own.time_window, &top.time_window).unwrap_or_default(),
            blocklist: over(&own.blocklist, &top.blocklist),
            allowlist: over(&own.allowlist, &top.allowlist),
            per_request_cap: over(&own.per_request_cap, &top.per_request_cap),
            rate_limit: over(&own.rate_limit, &top.rate_limit),
            daily_limit: over(&own.daily_limit, &top.daily_limit),
            payer_exposure_max: self.global.payer_exposure_max,
            screened: self.global.screening.is_some(),
        }
    }

    /// Refuses a price that no request could ever pay.
    fn check_price(
        &self,
        map: &Map<'_, '_>,
        around: Around<'_>,
        policy: &Policy,
        prices: &[NetworkPrice],
        costs: &str,
    ) -> Option<()> {
        let highest = prices.iter().map(|price| price.amount).max();
        // What is not paid by a channel is never at risk.
        let by_channel = prices.iter().filter(|price| price.scheme == Scheme::BatchSettlement);
        let limits = [
            ("per_request_cap", policy.per_request_cap, highest),
            ("daily_limit", policy.daily_limit.as_ref().map(|rule| rule.max), highest),
            ("payer_exposure_max", policy.payer_exposure_max, by_channel.map(|price| price.amount).max()),
        ];
        for (name, limit, highest) in limits {
            if let (Some(limit), Some(highest)) = (limit, highest)
                && highest > limit
            {
                let (price, limit) = (around.assets.show(highest), around.assets.show(limit));
                let what = format!("{costs} {price}, which is above {name} ({limit}): every request would be refused.");
                map.whole.problem(what, "Lower the price, or raise the limit here or in policy at the top.");
                return None;
            }
        }
        Some(())
    }

    /// Refuses what does nothing once all routes are read.
    pub(super) fn check(&self, root: &Map<'_, '_>, routes: &[RouteConfig]) {
        let Some(line) = self.place else { return };
        if self.zone.is_some() && !self.zone_used.get() {
            let remedy = "Leave it out.".to_owned();
            root.whole.cx.problem(line, "policy.time_zone".to_owned(), NO_USE_FOR_ZONE.to_owned(), remedy);
        }
        let mut prices = routes.iter().flat_map(|route| route.pricing.prices());
        if let Some(line) = self.exposure_line
            && !prices.any(|price| price.scheme == Scheme::BatchSettlement)
        {
            let what = "does nothing: no route is paid by batch-settlement, and nothing else is ever at risk.";
            let remedy = "Leave it out, or write batch-settlement in the schemes of a route.";
            root.whole.cx.problem(line, "policy.payer_exposure_max".to_owned(), what.to_owned(), remedy.to_owned());
        }
        if self.global.shadow && routes.iter().all(|route| route.policy.is_none()) {
            let (what, remedy) = ("does nothing: there is no rule that it could hold for.", "Write a rule.");
            root.whole.cx.problem(line, "policy.shadow".to_owned(), what.to_owned(), remedy.to_owned());
        }
    }
}

const NO_USE_FOR_ZONE: &str = "does nothing: there is no daily_limit, and no time_window without its own.";

fn over<T: Clone>(own: &Said<T>, top: &Said<T>) -> Option<T> {
    own.clone().unwrap_or_else(|| top.clone().flatten())
}

/// Reads the rules of one mapping. `top` are those that a route's take the place of.
fn rules(
    map: &mut Map<'_, '_>,
    around: Around<'_>,
    top: Option<&Rules>,
    scope: &str,
    zone: Option<&Zone>,
    zone_used: &Cell<bool>,
) -> Option<Rules> {
    let used = || {
        zone_used.set(true);
        zone.cloned().unwrap_or_default()
    };
    let none = Rules::default();
    let above = top.unwrap_or(&none);
    let scope: Arc<str> = scope.into();
    let patterns = said(map, "block_patterns", &above.block_patterns, top, block_patterns);
    let windows = said(map, "time_window", &above.time_window, top, |value| windows(value, &used));
    let blocklist = said(map, "blocklist", &above.blocklist, top, |value| accounts(value, around.families));
    let allowlist = said(map, "allowlist", &above.allowlist, top, |value| accounts(value, around.families));
    let cap = said(map, "per_request_cap", &above.per_request_cap, top, |value| around.assets.limit(value));
    let rate = said(map, "rate_limit", &above.rate_limit, top, |value| {
        rate(value).map(|rate| RateLimit { scope: Arc::clone(&scope), rate })
    });
    let daily = said(map, "daily_limit", &above.daily_limit, top, |value| {
        let max = around.assets.limit(value)?;
        Some(DailyRule { scope: Arc::clone(&scope), max, zone: used() })
    });
    Some(Rules {
        block_patterns: patterns?,
        time_window: windows?,
        blocklist: blocklist?,
        allowlist: allowlist?,
        per_request_cap: cap?,
        rate_limit: rate?,
        daily_limit: daily?,
    })
}

/// One key: what it says, or `off` for what stands at the top.
fn said<T>(
    map: &mut Map<'_, '_>,
    key: &'static str,
    above: &Said<T>,
    top: Option<&Rules>,
    read: impl FnOnce(&Value<'_, '_>) -> Option<T>,
) -> Option<Said<T>> {
    let Some(value) = map.take(key) else { return (!map.has(key)).then_some(None) };
    if !value.is_word("off") {
        return read(&value).map(|rule| Some(Some(rule)));
    }
    if top.is_none() || above.is_none() {
        value.problem("is off where there is nothing to switch off.", "Leave it out.");
        return None;
    }
    Some(Some(None))
}

fn zone(value: &Value<'_, '_>) -> Option<Zone> {
    value.parse("a time zone such as Europe/Berlin", |text| {
        TimeZone::get(text).map(Zone::from).map_err(|_| {
            let complaint = Complaint::new("is not a known time zone", "Write one such as Europe/Berlin, or UTC.");
            let names: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let lower = text.to_lowercase();
            let tail = |name: &str| name.to_lowercase().rsplit('/').next() == Some(lower.as_str());
            let near = names.iter().copied().find(|name| tail(name)).or_else(|| value::nearest(text, &names));
            near.map_or(complaint.clone(), |near| complaint.suggest(format!("Did you mean {near}?")))
        })
    })
}

fn windows(value: &Value<'_, '_>, default: &dyn Fn() -> Zone) -> Option<Arc<[Window]>> {
    let items = value.one_or_many();
    if items.is_empty() || items.len() > WINDOWS_MAX {
        value.problem(format!("holds {} windows.", items.len()), format!("Write 1 to {WINDOWS_MAX}."));
        return None;
    }
    let want = "a mapping such as {days: [mon..fri], from: \"08:00\", to: \"18:00\"}";
    let read: Vec<_> = items.iter().map(|item| item.map(want, |map| window(map, default)).flatten()).collect();
    read.into_iter().collect::<Option<Vec<_>>>().map(Arc::from)
}

fn window(map: &mut Map<'_, '_>, default: &dyn Fn() -> Zone) -> Option<Window> {
    let days = or(map.take("days"), Days::ALL, days);
    let from = or(map.take("from"), 0, |value| minutes(value, DAY_MINUTES.saturating_sub(1)));
    let to = or(map.take("to"), DAY_MINUTES, |value| minutes(value, DAY_MINUTES));
    let zone = match map.take("time_zone") {
        Some(value) => zone(&value),
        None => Some(default()),
    };
    let window = Window { days: days?, from: from?, to: to?, zone: zone? };
    if window.from == window.to {
        map.whole.problem("begins when it ends.", "Leave from and to out for whole days.");
        return None;
    }
    if window.days == Days::ALL && window.from == 0 && window.to == DAY_MINUTES {
        map.whole.problem("is always open.", "Write days, from or to, or leave time_window out.");
        return None;
    }
    Some(window)
}

const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn days(value: &Value<'_, '_>) -> Option<Days> {
    let items = value.one_or_many();
    if items.is_empty() {
        value.problem("holds no day.", "Write at least one, or leave the key out for all.");
    }
    let day = |text: &str| {
        let at = DAY_NAMES.iter().position(|name| *name == text.to_lowercase());
        at.and_then(|at| u8::try_from(at).ok()).ok_or_else(|| {
            let remedy = format!("Write {}, or two of them as in mon..fri.", value::or_list(&DAY_NAMES));
            Complaint::new("is no day", remedy)
        })
    };
    let read = items.iter().map(|item| {
        item.parse("a day such as mon, or mon..fri", |text| {
            let (first, last) = text.split_once("..").unwrap_or((text, text));
            Ok(Days::span(day(first)?, day(last)?))
        })
    });
    read.collect::<Vec<_>>()
        .into_iter()
        .try_fold(Days::default(), |all, days| Some(all.and(days?)))
        .filter(|_| !items.is_empty())
}

/// A time of day, up to `max` minutes past midnight.
fn minutes(value: &Value<'_, '_>, max: u16) -> Option<u16> {
    value.parse("a time such as \"08:00\"", |text| {
        let latest = if max == DAY_MINUTES { "24:00" } else { "23:59" };
        let bad =
            || Complaint::new("is no time of day", format!("Write hours and minutes, \"00:00\" to \"{latest}\"."));
        let (hours, minutes) = text.split_once(':').ok_or_else(bad)?;
        let two =
            |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<u16>());
        let (Some(Ok(hours)), Some(Ok(minutes))) = (two(hours), two(minutes)) else { return Err(bad()) };
        let sum = hours.saturating_mul(60).saturating_add(minutes);
        if minutes < 60 && sum <= max { Ok(sum) } else { Err(bad()) }
    })
}

fn rate(value: &Value<'_, '_>) -> Option<Rate> {
    value.parse("a rate such as 10/s", |text| {
        let bad =
            || Complaint::new("is not a rate", format!("Write 1 to {COUNT_MAX} and /s, /m, /h or /d, such as 10/s."));
        let (count, unit) = text.split_once('/').ok_or_else(bad)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            _ => return Err(bad()),
        };
        let plain = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
        let count = count.parse().ok().filter(|_| plain).ok_or_else(bad)?;
        Rate::new(count, Duration::from_secs(seconds)).ok_or_else(bad)
    })
}

fn accounts(value: &Value<'_, '_>, families: Option<Families>) -> Option<Accounts> {
    let items = value.one_or_many();
    if items.is_empty() || items.len() > LIST_MAX {
        value.problem(format!("holds {} addresses.", items.len()), format!("Write 1 to {LIST_MAX}, or leave it out."));
        return None;
    }
    let mut list = HashSet::with_capacity(items.len());
    let mut whole = true;
    for item in &items {
        match item.parse("a payer's address", |text| account(text, families)) {
            Some(account) if !list.insert(account) => {
                item.reject(Complaint::new("is in the list already", "Keep one of the two."));
                whole = false;
            }
            Some(_) => {}
            None => whole = false,
        }
    }
    whole.then(|| list.into_iter().collect())
}

fn account(text: &str, families: Option<Families>) -> Result<Account, Complaint> {
    let account = match Account::parse(text) {
        Some(Account::Evm(_)) => Address::parse_checked(text).map(Account::Evm).map_err(|_| {
            Complaint::new("has a wrong character: its checksum does not fit", "Copy the address again.")
        })?,
        Some(svm) => svm,
        None => {
            return Err(Complaint::new("is neither a Solana nor an EVM address", "Write a payer's wallet address."));
        }
    };
    let (pays, family) = match account {
        Account::Svm(_) => (families.is_none_or(|families| families.svm), "Solana"),
        Account::Evm(_) => (families.is_none_or(|families| families.evm), "an EVM network"),
    };
    if !pays {
        return Err(Complaint::new(format!("is an address on {family}, where nobody pays here"), "Leave it out."));
    }
    Ok(account)
}

fn block_patterns(value: &Value<'_, '_>) -> Option<Arc<[BlockPattern]>> {
    let items = value.one_or_many();
    if items.is_empty() || items.len() > PATTERNS_MAX {
        value.problem(
            format!("holds {} patterns.", items.len()),
            format!("Write 1 to {PATTERNS_MAX}, or leave it out."),
        );
        return None;
    }
    let want = "a mapping with payer, path, host or header, such as {path: /v1/internal/*}";
    let read: Vec<_> = items.iter().map(|item| item.map(want, block_pattern).flatten()).collect();
    read.into_iter().collect::<Option<Vec<_>>>().map(Arc::from)
}

fn block_pattern(map: &mut Map<'_, '_>) -> Option<BlockPattern> {
    let payer = or(map.take("payer"), None, |value| {
        value.parse("a pattern for an address such as 0x000000*", |text| {
            if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'*') {
                let remedy = "Write the beginning or the end of an address, and * for the rest.";
                return Err(Complaint::new("holds what no address does", remedy));
            }
            parse_glob(text).map(Some)
        })
    });
    let path = or(map.take("path"), None, |value| {
        value.parse("a path such as /v1/internal/*", |text| {
            let remedy = "Write a path such as /v1/internal/*; * stands for any text.";
            if !text.starts_with(['/', '*']) {
                return Err(Complaint::new("begins with neither a slash nor *", remedy));
            }
            if text.contains(['?', '#', '%']) {
                return Err(Complaint::new("has a query, a fragment or an escape", remedy));
            }
            parse_glob(text).map(Some)
        })
    });
    let host = or(map.take("host"), None, |value| {
        value.parse("a host such as *.example.com", |text| {
            if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"*.-_".contains(&b)) {
                return Err(Complaint::new("is no host", "Write a host without port, such as *.example.com."));
            }
            parse_glob(text).map(Some)
        })
    });
    let header = or(map.take("header"), None, |value| {
        value.parse("a header such as \"user-agent: *bot*\"", |text| {
            let bad =
                || Complaint::new("names no header", "Write its name, a colon and a pattern: \"user-agent: *bot*\".");
            let (name, pattern) = text.split_once(':').ok_or_else(bad)?;
            let name = HeaderName::try_from(name.trim()).map_err(|_| bad())?;
            Ok(Some((name, parse_glob(pattern.trim())?)))
        })
    });
    let pattern = BlockPattern { payer: payer?, path: path?, host: host?, header: header? };
    if pattern == BlockPattern::default() {
        map.whole.problem("has neither payer, path, host nor header.", "Write at least one.");
        return None;
    }
    Some(pattern.prepared())
}

fn parse_glob(text: &str) -> Result<Glob, Complaint> {
    Glob::parse(text).map_err(|why| Complaint::new(why.to_string(), "Write a text in which * stands for any text."))
}

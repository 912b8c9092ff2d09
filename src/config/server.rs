//! The HTTP side: listeners, TLS, upstreams, limits, timeouts, kept answers, CORS, log.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};

use super::reader::{Complaint, Map, Value};
use super::value::{self, UrlTail};
use super::{
    AdminConfig, CorsConfig, LimitsConfig, LogConfig, LogFormat, QueueConfig, ReplayConfig, TimeoutsConfig, TlsConfig,
    URLS_MAX,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Everything that is read here. Every part is `None` where it is wrong.
pub(super) struct Server {
    pub listen: SocketAddr,
    pub admin: AdminConfig,
    pub tls: Option<TlsConfig>,
    pub queue: QueueConfig,
    pub replay: Option<ReplayConfig>,
    pub limits: LimitsConfig,
    pub timeouts: TimeoutsConfig,
    pub cors: Option<CorsConfig>,
    pub log: LogConfig,
    pub public_url: Option<Uri>,
}

/// What a key says, or its default; `None` where it is wrong.
pub(super) fn or<'c, 'n, T>(
    value: Option<Value<'c, 'n>>,
    default: T,
    read: impl FnOnce(&Value<'c, 'n>) -> Option<T>,
) -> Option<T> {
    match value {
        Some(value) => read(&value),
        None => Some(default),
    }
}

/// A mapping of keys that all have defaults.
fn section<'c, 'n, T>(
    root: &mut Map<'c, 'n>,
    key: &'static str,
    default: T,
    read: impl FnOnce(&mut Map<'c, 'n>) -> Option<T>,
) -> Option<T> {
    match root.take(key) {
        Some(value) => value.map("a mapping of keys", read).flatten(),
        None => Some(default),
    }
}

/// Reads the HTTP side. `max_timeout` is how long clients wait.
pub(super) fn read(root: &mut Map<'_, '_>, max_timeout: Duration) -> Option<Server> {
    let listen = or(root.take("listen"), ([0, 0, 0, 0], 8402).into(), Value::socket);
    let admin = section(root, "admin", AdminConfig { listen: ([127, 0, 0, 1], 9402).into() }, admin);
    let tls = section(root, "tls", None, |map| tls(map).map(Some));
    let queue = section(root, "queue", QUEUE, queue);
    let replay = or(root.take("replay"), Some(REPLAY), replay);
    let limits = section(root, "limits", LIMITS, limits);
    let defaults = timeouts_within(max_timeout);
    let timeouts = section(root, "timeouts", defaults, |map| timeouts(map, defaults, max_timeout));
    let cors = section(root, "cors", None, |map| cors(map).map(Some));
    let log = log_of(root);
    let public_url = or(root.take("public_url"), None, |value| {
        value.parse("the URL that clients use", |text| value::url(text, UrlTail::Path)).map(Some)
    });
    Some(Server {
        listen: listen?,
        admin: admin?,
        tls: tls?,
        queue: queue?,
        replay: replay?,
        limits: limits?,
        timeouts: timeouts?,
        cors: cors?,
        log: log?,
        public_url: public_url?,
    })
}

fn admin(map: &mut Map<'_, '_>) -> Option<AdminConfig> {
    let value = map.require("listen", "Write an address such as 127.0.0.1:9402, or leave admin out.")?;
    let listen = value.socket()?;
    if !listen.ip().is_loopback() {
        value.warn(
            "lets other machines reach the admin API.",
            "Write 127.0.0.1, or make sure that only operators' machines can connect.",
        );
    }
    Some(AdminConfig { listen })
}

fn tls(map: &mut Map<'_, '_>) -> Option<TlsConfig> {
    let cert_file = map.require("cert_file", "Write the path of a PEM file with the certificate chain.");
    let key_file = map.require("key_file", "Write the path of a PEM file with the private key.");
    let cert_file = cert_file.and_then(|value| value.existing_file());
    let key_file = key_file.and_then(|value| value.existing_file());
    Some(TlsConfig { cert_file: cert_file?, key_file: key_file? })
}

const QUEUE: QueueConfig = QueueConfig { waiters: 32, wait: Duration::from_secs(10), gap_wait: Duration::from_secs(1) };

fn queue(map: &mut Map<'_, '_>) -> Option<QueueConfig> {
    let waiters = or(map.take("waiters"), QUEUE.waiters, |value| value.number(0, 1024));
    if waiters == Some(0) {
        map.inert("wait", "where no request may wait (waiters: 0)", "Leave it out.");
        map.inert("gap_wait", "where no request may wait (waiters: 0)", "Leave it out.");
        return Some(QueueConfig { waiters: 0, wait: Duration::ZERO, gap_wait: Duration::ZERO });
    }
    let (min, max) = (Duration::from_millis(10), Duration::from_secs(60));
    let wait = or(map.take("wait"), QUEUE.wait, |value| value.duration(min, max));
    let gap_default = wait.map_or(QUEUE.gap_wait, |wait| wait.min(QUEUE.gap_wait));
    let gap_wait = or(map.take("gap_wait"), gap_default, |value| value.duration(min, wait.unwrap_or(max)));
    Some(QueueConfig { waiters: waiters?, wait: wait?, gap_wait: gap_wait? })
}

const REPLAY: ReplayConfig =
    ReplayConfig { keep: Duration::from_secs(600), body_bytes: 64 * 1024, total_bytes: 256 * 1024 * 1024 };

/// A mapping, or `off`.
fn replay(value: &Value<'_, '_>) -> Option<Option<ReplayConfig>> {
    if !value.is_map() {
        let want = "off, or a mapping of keys";
        return value.parse(want, |text| match text {
            "off" => Ok(None),
            _ => Err(Complaint::new("is not known here", format!("Write {want}."))),
        });
    }
    value.map("a mapping of keys", replay_keys).flatten().map(Some)
}

fn replay_keys(map: &mut Map<'_, '_>) -> Option<ReplayConfig> {
    let mib = 1024 * 1024;
    let keep = or(map.take("keep"), REPLAY.keep, |value| value.duration(Duration::from_secs(1), HOUR * 24));
    let body_bytes = or(map.take("body_bytes"), REPLAY.body_bytes, |value| value.bytes(1, 16 * mib));
    let total = map.take("total_bytes");
    let total_bytes = or(total.clone(), REPLAY.total_bytes, |value| value.bytes(mib, 1024 * 1024 * mib));
    if let (Some(body), Some(all), Some(value)) = (body_bytes, total_bytes, &total)
        && all < body.saturating_mul(2)
    {
        let what = format!("holds less than two bodies of body_bytes ({body})");
        value.reject(Complaint::new(what, "Write more, or lower body_bytes."));
        return None;
    }
    Some(ReplayConfig { keep: keep?, body_bytes: body_bytes?, total_bytes: total_bytes? })
}

const LIMITS: LimitsConfig =
    LimitsConfig { header_bytes: 64 * 1024, body_bytes: 10 * 1024 * 1024, connections: 10_000 };

fn limits(map: &mut Map<'_, '_>) -> Option<LimitsConfig> {
    let kib = 1024;
    let header_bytes = or(map.take("header_bytes"), LIMITS.header_bytes, |value| {
        value.bytes(16 * kib, 1024 * kib).and_then(|size| usize::try_from(size).ok())
    });
    let body_bytes = or(map.take("body_bytes"), LIMITS.body_bytes, |value| value.bytes(0, 16 * kib * kib * kib));
    let connections = or(map.take("connections"), LIMITS.connections, |value| value.number(1, 1_000_000));
    Some(LimitsConfig { header_bytes: header_bytes?, body_bytes: body_bytes?, connections: connections? })
}

/// The defaults: nobody waits for a response longer than its client does.
fn timeouts_within(max_timeout: Duration) -> TimeoutsConfig {
    TimeoutsConfig {
        connect: Duration::from_secs(5),
        response_header: Duration::from_secs(60).min(max_timeout),
        idle: Duration::from_secs(75),
        drain: Duration::from_secs(30),
        body_idle: Duration::from_secs(30),
    }
}

fn timeouts(map: &mut Map<'_, '_>, defaults: TimeoutsConfig, max_timeout: Duration) -> Option<TimeoutsConfig> {
    let (min, second) = (Duration::from_millis(10), Duration::from_secs(1));
    let connect = or(map.take("connect"), defaults.connect, |value| value.duration(min, HOUR));
    let response_header = or(map.take("response_header"), defaults.response_header, |value| {
        let time = value.duration(min, HOUR)?;
        within_client(value, time, max_timeout)
    });
    let idle = or(map.take("idle"), defaults.idle, |value| value.duration(second, HOUR));
    let drain = or(map.take("drain"), defaults.drain, |value| value.duration(second, HOUR));
    let body_idle = or(map.take("body_idle"), defaults.body_idle, |value| value.duration(second, HOUR));
    Some(TimeoutsConfig {
        connect: connect?,
        response_header: response_header?,
        idle: idle?,
        drain: drain?,
        body_idle: body_idle?,
    })
}

/// Refuses a wait that is longer than the client's.
pub(super) fn within_client(value: &Value<'_, '_>, time: Duration, max_timeout: Duration) -> Option<Duration> {
    if time <= max_timeout {
        return Some(time);
    }
    let max = value::show_duration(max_timeout);
    let what = format!("is longer than max_timeout ({max}), after which the client no longer waits");
    value.reject(Complaint::new(what, format!("Write at most {max}, or raise max_timeout.")));
    None
}

fn cors(map: &mut Map<'_, '_>) -> Option<CorsConfig> {
    let want = "\"*\" or a list of origins such as https://app.example.com";
    let value = map.require("origins", &format!("Write {want}, or leave cors out."))?;
    let items = value.one_or_many();
    if items.is_empty() || items.len() > URLS_MAX {
        value.problem(format!("holds {} origins.", items.len()), format!("Write 1 to {URLS_MAX}."));
        return None;
    }
    let origins: Vec<_> = items.iter().map(|item| item.parse(want, origin)).collect();
    let origins = origins.into_iter().collect::<Option<Vec<_>>>()?;
    if origins.iter().any(|origin| origin == "*") {
        if origins.len() > 1 {
            value.problem("holds \"*\" beside other origins, which then do nothing.", "Keep one or the others.");
            return None;
        }
        return Some(CorsConfig::Any);
    }
    Some(CorsConfig::Origins(origins))
}

/// An origin as browsers send it: scheme, host, port; in lower case; no slash behind.
fn origin(text: &str) -> Result<HeaderValue, Complaint> {
    let remedy = "Write it as browsers send it, such as https://app.example.com, without a slash at the end.";
    let bad = || Complaint::new("is not an origin", remedy);
    if text != "*" {
        value::url(text, UrlTail::None).map_err(|complaint| Complaint { remedy: remedy.to_owned(), ..complaint })?;
        if text.ends_with('/') || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad().suggest(format!("Write {}.", text.trim_end_matches('/').to_ascii_lowercase())));
        }
    }
    HeaderValue::from_str(text).map_err(|_| bad())
}

/// `log`, which every file may have.
pub(super) fn log_of(root: &mut Map<'_, '_>) -> Option<LogConfig> {
    let default = LogConfig { format: LogFormat::Text, level: tracing::Level::INFO };
    section(root, "log", default, |map| log(map, default))
}

fn log(map: &mut Map<'_, '_>, default: LogConfig) -> Option<LogConfig> {
    use tracing::Level;
    let format = or(map.take("format"), default.format, |value| {
        value.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
    });
    let level = or(map.take("level"), default.level, |value| {
        value.choice(&[
            ("error", Level::ERROR),
            ("warn", Level::WARN),
            ("info", Level::INFO),
            ("debug", Level::DEBUG),
            ("trace", Level::TRACE),
        ])
    });
    Some(LogConfig { format: format?, level: level? })
}

/// One or several equal origins.
pub(super) fn upstream(value: &Value<'_, '_>) -> Option<Vec<Uri>> {
    let items = value.one_or_many();
    if items.is_empty() || items.len() > URLS_MAX {
        value.problem(format!("holds {} URLs.", items.len()), format!("Write 1 to {URLS_MAX}."));
        return None;
    }
    let want = "a URL such as http://127.0.0.1:3000";
    let urls: Vec<_> = items.iter().map(|item| item.parse(want, upstream_url)).collect();
    let urls = urls.into_iter().collect::<Option<Vec<_>>>()?;
    for (i, (url, item)) in urls.iter().zip(&items).enumerate() {
        if urls.iter().take(i).any(|other| other == url) {
            item.reject(Complaint::new("is in the list already", "Keep one of the two."));
            return None;
        }
    }
    Some(urls)
}

/// An origin, and with `h2c` for `http` one that speaks HTTP/2 in the clear, as gRPC servers do.
fn upstream_url(text: &str) -> Result<Uri, Complaint> {
    let Some(rest) = text.strip_prefix("h2c://") else { return value::url(text, UrlTail::None) };
    let as_written = |advice: String| advice.replace("http://", "h2c://");
    value::url(&format!("http://{rest}"), UrlTail::None).map_err(|complaint| Complaint {
        remedy: as_written(complaint.remedy),
        suggestion: complaint.suggestion.map(as_written),
        ..complaint
    })?;
    text.parse().map_err(|_| Complaint::new("is not a URL", "Write a URL such as h2c://127.0.0.1:3000."))
}

/// Upstreams by name.
pub(super) fn upstreams(value: &Value<'_, '_>) -> Option<BTreeMap<Arc<str>, Vec<Uri>>> {
    let named = value.map("a mapping of names to URLs", Map::take_all)?;
    let mut read = BTreeMap::new();
    let mut whole = true;
    for (name, value) in named {
        match upstream(&value) {
            Some(urls) => {
                read.insert(Arc::from(name), urls);
            }
            None => whole = false,
        }
    }
    whole.then_some(read)
}

/// Whether a request to `upstream` would come back to `listen`.
pub(super) fn is_self(upstream: &Uri, listen: SocketAddr) -> bool {
    let port = upstream.port_u16().unwrap_or(if upstream.scheme_str() == Some("https") { 443 } else { 80 });
    let host = upstream.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let here = match host.parse::<IpAddr>() {
        Ok(ip) => ip == listen.ip() || ((ip.is_loopback() || ip.is_unspecified()) && listen.ip().is_unspecified()),
        Err(_) => host == "localhost" && (listen.ip().is_loopback() || listen.ip().is_unspecified()),
    };
    port == listen.port() && here
}

/// Whether two listeners would claim the same port.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

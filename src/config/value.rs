//! What a text means: variables, durations, sizes, numbers, addresses, origins.
//!
//! Pure but for the environment. A complaint never holds the text; what does is a `suggestion`.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;

use super::Env;
use super::reader::{Complaint, Value};

/// How much of a value is shown.
const SHOWN_CHARS_MAX: usize = 60;

/// A value in quotes, escaped, cut where it is long, a URL without its user name, password and query.
pub(super) fn quote(text: &str) -> String {
    let mut text = std::borrow::Cow::Borrowed(text);
    if let Some((scheme, rest)) = text.split_once("://") {
        let (place, query) = rest.split_once('?').map_or((rest, ""), |(place, _)| (place, "?..."));
        let place = place.rsplit_once('@').map_or(place.to_owned(), |(_, place)| format!("...@{place}"));
        text = format!("{scheme}://{place}{query}").into();
    }
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() { format!("\"{cut}...\"") } else { format!("\"{cut}\"") }
}

/// `a, b or c`.
pub(super) fn or_list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// The name that `text` is probably meant to be.
pub(super) fn nearest<'a>(text: &str, names: &[&'a str]) -> Option<&'a str> {
    if text.len() > SHOWN_CHARS_MAX {
        return None;
    }
    let text = text.to_lowercase();
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&text, name), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Fills in `${NAME}`; `$$` is one `$`; any other `$` is itself.
pub(super) fn fill(text: &str, env: &Env<'_>) -> Result<String, Complaint> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            filled.push('$');
            after
        } else if let Some(after) = after.strip_prefix('{') {
            let broken = || Complaint::new("has a broken variable", "Write ${NAME}, or $${ for a plain ${.");
            let (name, after) = after.split_once('}').ok_or_else(broken)?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || !name.bytes().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(broken());
            }
            let value = env(name).filter(|value| !value.is_empty());
            filled.push_str(&value.ok_or_else(|| {
                let what = format!("needs the environment variable {name}, which is not set or empty");
                Complaint::new(what, format!("Set {name}."))
            })?);
            after
        } else {
            filled.push('$');
            after
        };
    }
    filled.push_str(rest);
    Ok(filled)
}

/// `500ms`, `30s`, `15m`, `24h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, Complaint> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let bad = || Complaint::new("is not a duration", "Write a whole number and ms, s, m, h or d, such as 30s.");
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => {
            let complaint = Complaint::new("names no unit", "Write a whole number and ms, s, m, h or d, such as 30s.");
            return Err(complaint.suggest(format!("Write {number}s for seconds, or another of ms, m, h, d.")));
        }
        _ => return Err(bad()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

/// A duration as it is written: `90s`, `15m`.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis >= size && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis.checked_div(size).unwrap_or(0));
        }
    }
    format!("{millis}ms")
}

/// A plain number, or one of `KiB`, `MiB`, `GiB`.
fn bytes(text: &str) -> Result<u64, Complaint> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let bad = || Complaint::new("is not a size", "Write a number of bytes, or one of KiB, MiB or GiB, such as 32KiB.");
    let factor: u64 = match unit.trim_start() {
        "" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        "GiB" => 1024 * 1024 * 1024,
        _ => return Err(bad()),
    };
    number.parse().ok().and_then(|number: u64| number.checked_mul(factor)).ok_or_else(bad)
}

impl Value<'_, '_> {
    /// A duration within bounds, both included.
    pub(super) fn duration(&self, min: Duration, max: Duration) -> Option<Duration> {
        self.parse("a duration such as 30s", |text| {
            let duration = duration(text)?;
            let (low, high) = (show_duration(min), show_duration(max));
            let remedy = format!("Write {low} to {high}.");
            if duration < min {
                Err(Complaint::new(format!("is shorter than {low}"), remedy))
            } else if duration > max {
                Err(Complaint::new(format!("is longer than {high}"), remedy))
            } else {
                Ok(duration)
            }
        })
    }

    /// A duration of whole seconds within bounds.
    pub(super) fn whole_seconds(&self, min: Duration, max: Duration) -> Option<Duration> {
        let duration = self.duration(min, max)?;
        if duration.subsec_nanos() == 0 {
            return Some(duration);
        }
        self.reject(Complaint::new(
            "is not a whole number of seconds",
            "Clients are told seconds; write a whole number.",
        ));
        None
    }

    /// A whole number within bounds, both included.
    pub(super) fn number<T>(&self, min: T, max: T) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + std::fmt::Display,
    {
        self.parse("a whole number", |text| {
            let remedy = format!("Write {min} to {max}.");
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            match text.parse::<T>() {
                Ok(number) if digits && number >= min && number <= max => Ok(number),
                _ if digits => Err(Complaint::new("is out of range", remedy)),
                _ => Err(Complaint::new("is not a whole number", remedy)),
            }
        })
    }

    /// A size within bounds, both included.
    pub(super) fn bytes(&self, min: u64, max: u64) -> Option<u64> {
        self.parse("a size such as 32KiB", |text| {
            let size = bytes(text)?;
            let remedy = format!("Write {min} to {max} bytes.");
            if (min..=max).contains(&size) { Ok(size) } else { Err(Complaint::new("is out of range", remedy)) }
        })
    }

    /// An address to listen on.
    pub(super) fn socket(&self) -> Option<SocketAddr> {
        self.parse("an address and port such as 0.0.0.0:8402", |text| {
            text.parse().map_err(|_| {
                let complaint = Complaint::new(
                    "is not an address and port",
                    "Write a number address and port such as 0.0.0.0:8402.",
                );
                let port = text.strip_prefix(':').or_else(|| text.strip_prefix("localhost:")).unwrap_or(text);
                match port.parse::<u16>() {
                    Ok(port) if text.starts_with("localhost") => complaint.suggest(format!("Write 127.0.0.1:{port}.")),
                    Ok(port) => {
                        complaint.suggest(format!("Write 0.0.0.0:{port}, or 127.0.0.1:{port} for this machine only."))
                    }
                    Err(_) => complaint,
                }
            })
        })
    }

    /// A line of text for people or programs, within a number of bytes.
    pub(super) fn line(&self, bytes_max: usize) -> Option<String> {
        self.parse("a line of text", |text| {
            if text.trim().is_empty() {
                Err(Complaint::new("is empty", "Write something, or leave the key out."))
            } else if text.len() > bytes_max {
                Err(Complaint::new(format!("is longer than {bytes_max} bytes"), "Write less."))
            } else if text.chars().any(char::is_control) {
                Err(Complaint::new("has a control character or a line break", "Write one plain line."))
            } else {
                Ok(text.to_owned())
            }
        })
    }
}

/// What may follow the authority of a URL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum UrlTail {
    /// Nothing but a slash.
    None,
    /// A path.
    Path,
    /// A path and a query.
    Query,
}

/// An `http` or `https` URL. User names are refused in all.
pub(super) fn url(text: &str, tail: UrlTail) -> Result<Uri, Complaint> {
    let example = "Write a URL such as http://127.0.0.1:3000.";
    let bad = || Complaint::new("is not a URL", example);
    if text.contains("://") {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(Complaint::new("is neither an http nor an https URL", example));
        }
    } else {
        let complaint = Complaint::new("names no scheme", example);
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-[]/_".contains(&b)) && !text.is_empty();
        return Err(if plain { complaint.suggest(format!("Write http://{text}.")) } else { complaint });
    }
    if text.contains('#') {
        return Err(Complaint::new("has a fragment (#)", "Leave it out."));
    }
    let uri: Uri = text.parse().map_err(|_| bad())?;
    let authority = uri.authority().ok_or_else(bad)?;
    if authority.as_str().contains('@') {
        return Err(Complaint::new("has a user name or password", "Leave it out."));
    }
    let after_host = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    if authority.host().is_empty() || (!after_host.is_empty() && uri.port_u16().is_none_or(|port| port == 0)) {
        return Err(Complaint::new("has no valid host and port", example));
    }
    if tail != UrlTail::Query && uri.query().is_some() {
        return Err(Complaint::new("has a query", "Leave it out."));
    }
    if tail == UrlTail::None && uri.path() != "/" {
        let origin = format!("{}://{authority}", uri.scheme_str().unwrap_or("http"));
        let complaint = Complaint::new("has a path", "Leave it out: requests keep the path that they came with.");
        return Err(complaint.suggest(format!("Write {origin}: requests keep the path that they came with.")));
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("500ms", 500), ("30s", 30_000), ("15m", 900_000), ("24h", 86_400_000), ("1d", 86_400_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "1.5s", "-1s", "1 s", "1w", "1h30m", "99999999999999999d", "30"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["500ms", "30s", "15m", "25h", "2d", "1500ms"] {
            assert_eq!(duration(text).map(show_duration).as_deref(), Ok(text));
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in [("0", 0), ("32768", 32768), ("32KiB", 32768), ("1 MiB", 1 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "KiB", "1kb", "1MB", "-1", "99999999999999999999", "99999999999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables() {
        let env = |name: &str| (name == "A_1").then(|| "${A_1}$".to_owned());
        for (text, want) in [
            ("$0.001", "$0.001"),
            ("$$x", "$x"),
            ("a${A_1}b", "a${A_1}$b"),
            ("$${A_1}", "${A_1}"),
            ("$", "$"),
            ("a$$", "a$"),
        ] {
            assert_eq!(fill(text, &env).as_deref(), Ok(want), "{text}");
        }
        for text in ["${", "${}", "${A-1}", "${1A}", "${B}", "${A_1"] {
            assert!(fill(text, &env).is_err(), "{text}");
        }
        assert!(fill("${E}", &|_| Some(String::new())).is_err());
    }

    #[test]
    fn urls() {
        for text in ["http://127.0.0.1:3000", "https://api.example.com", "http://[::1]:80/", "http://localhost"] {
            assert!(url(text, UrlTail::None).is_ok(), "{text}");
        }
        for text in [
            "",
            "127.0.0.1:3000",
            "ftp://x",
            "http://",
            "http://x:0",
            "http://x:99999",
            "http://u:p@x",
            "http://x/#a",
            "http://x?q",
            "http://x/p",
            "http://:80",
            "http:///p",
            "file:///etc",
            "http://a b",
        ] {
            assert!(url(text, UrlTail::None).is_err(), "{text}");
        }
        assert!(url("https://rpc.example.com/v1?key=x", UrlTail::Query).is_ok());
        assert!(url("https://api.example.com/base", UrlTail::Path).is_ok());
    }

    #[test]
    fn nearest_names() {
        assert_eq!(nearest("upstraem", &["upstream", "network"]), Some("upstream"));
        assert_eq!(nearest("Prise", &["price", "path"]), Some("price"));
        assert_eq!(nearest("zzz", &["price", "path"]), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[${}A-Za-z0-9:/.@?#\\[\\] é%-]{0,60}") {
            let _ = fill(&text, &|name| Some(name.to_owned()));
            let _ = duration(&text);
            let _ = bytes(&text);
            let _ = url(&text, UrlTail::None);
            let _ = url(&format!("http://{text}"), UrlTail::Query);
            let _ = quote(&text);
        }
    }
}

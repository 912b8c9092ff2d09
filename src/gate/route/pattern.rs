//! Path patterns and hosts as operators write them.

use super::path::{BadPath, Scratch, canonical};

/// The most segments of a pattern.
pub const SEGMENTS_MAX: usize = 32;
/// The longest pattern.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// A path pattern, taken apart. Two patterns that match the same paths are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    pub(super) segments: Vec<Segment>,
    /// It ends in `*`: it matches what the segments match and everything below.
    pub(super) open: bool,
}

/// One part of a pattern between slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Segment {
    /// This text, in canonical form.
    Text(Box<str>),
    /// Any one segment.
    Any,
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It begins with neither a slash nor `*`.
    #[error("does not begin with a slash")]
    NotAbsolute,
    /// A `*` that is not the whole last segment.
    #[error("has a * that is not the whole last segment")]
    Star,
    /// A brace that is not part of a whole segment `{name}`.
    #[error("has a brace that is not part of a whole segment such as {{id}}")]
    Brace,
    /// Two parameters of the same name.
    #[error("names a parameter twice")]
    SameName,
    /// A query or a fragment.
    #[error("has a query or a fragment")]
    Query,
    /// Requests with such a path are refused.
    #[error("can never match: {0}")]
    Never(BadPath),
    /// More than [`SEGMENTS_MAX`] segments or [`PATTERN_BYTES_MAX`] bytes.
    #[error("is too long")]
    TooLong,
}

impl Pattern {
    /// Reads a pattern such as `/v1/quote/{pair}`, `/v1/quote/*`, or `*` for every path.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong);
        }
        let text = if text == "*" { "/*" } else { text };
        let rest = text.strip_prefix('/').ok_or(PatternError::NotAbsolute)?;
        if rest.contains(['?', '#']) {
            return Err(PatternError::Query);
        }
        let (rest, open) = match rest.strip_suffix('*') {
            Some("") => ("", true),
            Some(before) => (before.strip_suffix('/').ok_or(PatternError::Star)?, true),
            None => (rest.strip_suffix('/').unwrap_or(rest), false),
        };
        if rest.is_empty() {
            return if matches!(text, "/" | "/*") {
                Ok(Self { segments: Vec::new(), open })
            } else {
                Err(never_empty())
            };
        }
        let mut names = Vec::new();
        let segments = rest.split('/').map(|part| segment(part, &mut names)).collect::<Result<Vec<_>, _>>()?;
        if segments.len() > SEGMENTS_MAX {
            return Err(PatternError::TooLong);
        }
        Ok(Self { segments, open })
    }
}

fn never_empty() -> PatternError {
    PatternError::Never(BadPath::EmptySegment)
}

fn segment<'t>(part: &'t str, names: &mut Vec<&'t str>) -> Result<Segment, PatternError> {
    if part.is_empty() {
        return Err(never_empty());
    }
    if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(PatternError::Brace);
        }
        if names.contains(&name) {
            return Err(PatternError::SameName);
        }
        names.push(name);
        return Ok(Segment::Any);
    }
    if part.contains(['{', '}']) {
        return Err(PatternError::Brace);
    }
    if part.contains('*') {
        return Err(PatternError::Star);
    }
    let mut scratch = Scratch::new();
    let spelled = format!("/{part}");
    let text = canonical(&spelled, &mut scratch).map_err(PatternError::Never)?;
    Ok(Segment::Text(text.trim_start_matches('/').into()))
}

/// Why a text is not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a host name or address without port")]
pub struct HostError;

/// Reads a host as a route may be limited to: in lower case, without port and final dot.
///
/// # Errors
/// [`HostError`].
pub fn parse_host(text: &str) -> Result<String, HostError> {
    let host = text.to_ascii_lowercase();
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return if address.parse::<std::net::Ipv6Addr>().is_ok() { Ok(host) } else { Err(HostError) };
    }
    let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
    };
    if host.len() <= 253 && host.split('.').all(label) { Ok(host) } else { Err(HostError) }
}

/// The host of a request's authority or `Host` header: without port and final dot, in whatever case it came.
pub(in crate::gate) fn host_of(authority: &str) -> &str {
    let host = match authority.find(']') {
        Some(end) if authority.starts_with('[') => authority.get(..=end).unwrap_or(authority),
        _ => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equivalent_patterns_are_equal() {
        for (a, b) in [
            ("/v1/{a}", "/v1/{b}"),
            ("/v1/quote", "/v1/quote/"),
            ("/V1/Quote", "/v1/quote"),
            ("/v1/%71uote", "/v1/quote"),
            ("*", "/*"),
            ("/caf%c3%a9", "/café"),
        ] {
            assert_eq!(Pattern::parse(a), Pattern::parse(b), "{a} {b}");
            assert!(Pattern::parse(a).is_ok(), "{a}");
        }
        for (a, b) in [("/v1/quote", "/v1/quote/*"), ("/v1/{a}", "/v1/*"), ("/", "/*"), ("/a b", "/ab")] {
            assert_ne!(Pattern::parse(a), Pattern::parse(b), "{a} {b}");
        }
    }

    #[test]
    fn bad_patterns_say_why() {
        for (text, why) in [
            ("", PatternError::NotAbsolute),
            ("v1", PatternError::NotAbsolute),
            ("/v1*", PatternError::Star),
            ("/*/x", PatternError::Star),
            ("/**", PatternError::Star),
            ("**", PatternError::NotAbsolute),
            ("/{a}.json", PatternError::Brace),
            ("/{}", PatternError::Brace),
            ("/{a", PatternError::Brace),
            ("/{*rest}", PatternError::Brace),
            ("/{a}/{a}", PatternError::SameName),
            ("/v1?x=1", PatternError::Query),
            ("//", PatternError::Never(BadPath::EmptySegment)),
            ("//*", PatternError::Never(BadPath::EmptySegment)),
            ("/v1//x", PatternError::Never(BadPath::EmptySegment)),
            ("/v1/../x", PatternError::Never(BadPath::DotSegment)),
            ("/v1;x", PatternError::Never(BadPath::Delimiter)),
            ("/a%2fb", PatternError::Never(BadPath::Separator)),
            (&"/a".repeat(SEGMENTS_MAX + 1), PatternError::TooLong),
            (&"/".repeat(PATTERN_BYTES_MAX + 1), PatternError::TooLong),
        ] {
            assert_eq!(Pattern::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn hosts() {
        for (text, host) in
            [("API.example.com", "api.example.com"), ("a.b.", "a.b"), ("[::1]", "[::1]"), ("10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(parse_host(text).as_deref(), Ok(host));
        }
        for text in ["", ".", "a:80", "*.example.com", "a..b", "http://a", "[x]", "a b"] {
            assert_eq!(parse_host(text), Err(HostError), "{text}");
        }
        for (text, host) in
            [("a.b:80", "a.b"), ("a.b.:80", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", ""), ("[", "[")]
        {
            assert_eq!(host_of(text), host);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[/*{}a-z%.:\\[\\]é?;]{0,40}") {
            let _ = Pattern::parse(&text);
            let _ = parse_host(&text);
            let _ = host_of(&text);
        }
    }
}

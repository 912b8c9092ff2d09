//! Header hygiene: what may pass from one side to the other.
//!
//! Owns the lists of fields that stay on their side, and the fields that only the proxy may say. Promises that a
//! field of a connection (RFC 9110, 7.6.1) never crosses, that a payment is seen by the proxy alone, and that the
//! upstream can believe every `Turnpike-*` and (from peers that are not trusted) every `X-Forwarded-*` field.
//! Everything here is a pure function of its arguments.

use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Uri};

/// Header fields that a layer in front wants the upstream to see, each name once, given as a request extension.
///
/// They are written after [`strip_request`], so that a value from the outside can never stand in their place.
#[derive(Clone, Debug, Default)]
pub struct Injected(pub Vec<(HeaderName, HeaderValue)>);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Whether a field is one of a connection, beside those that `Connection` names. `Trailer` is none of them: it describes
/// the message.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "proxy-connection" | "http2-settings" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// Whether a field carries or answers a payment. The proxy is their end.
fn is_payment(name: &str) -> bool {
    matches!(
        name,
        "payment-signature"
            | "payment-required"
            | "payment-response"
            | "payment-pass"
            | "payment-pass-calls-left"
            | "x-payment"
            | "x-payment-response"
    )
}

/// Removes from a request all that ends at the proxy; what [`Injected`] says comes after.
///
/// `Expect` goes too: the proxy itself answers `100 Continue`, when the upstream begins to take the body. `TE` stays as
/// far as it asks for trailers. A field spelled with `_` for `-` is taken for the same field, as CGI and WSGI servers
/// do.
pub fn strip_request(headers: &mut HeaderMap) {
    let ends_here = |name: Spelling<'_>| match name {
        Spelling::Sent(name) => is_hop_by_hop(name) || matches!(name, "expect" | "forwarded" | "proxy-authorization"),
        Spelling::Taken(name) => is_payment(name) || name.starts_with("turnpike-"),
    };
    // Most requests have none of these, and are looked through once.
    if !headers.keys().any(|name| *name == COOKIE || is_refused(name, &ends_here)) {
        return;
    }
    let wants_trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_named(headers);
    remove_where(headers, ends_here);
    join_cookies(headers);
    if wants_trailers {
        headers.insert(TE, TRAILERS);
    }
}

/// Removes from an upstream's response all that ends at the proxy, and all that only the proxy says.
pub fn strip_response(headers: &mut HeaderMap) {
    let ends_here = |name: Spelling<'_>| match name {
        Spelling::Sent(name) => is_hop_by_hop(name) || name == "proxy-authenticate",
        Spelling::Taken(name) => is_payment(name),
    };
    if headers.keys().any(|name| is_refused(name, &ends_here)) {
        strip_named(headers);
        remove_where(headers, ends_here);
    }
}

/// Removes from trailers what a recipient might take for a header field that was checked, whichever side sent them.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_named(trailers);
    remove_where(trailers, |name| match name {
        Spelling::Sent(name) => is_hop_by_hop(name),
        Spelling::Taken(name) => {
            let framing = ["host", "content-length", "content-encoding", "authorization", "cookie", "forwarded"];
            framing.contains(&name)
                || is_payment(name)
                || name.starts_with("turnpike-")
                || name.starts_with("x-forwarded-")
        }
    });
}

/// Says to the upstream who called, for which host, and over what.
///
/// What the client says of itself is replaced, unless the peer is `trusted` (a proxy of the same operator): then the
/// peer's address is appended to `X-Forwarded-For`, and a host and a scheme that are there stay.
pub fn forwarded(headers: &mut HeaderMap, peer: IpAddr, tls: bool, trusted: bool) {
    if !trusted {
        remove_where(
            headers,
            |name| matches!(name, Spelling::Taken(name) if name.starts_with("x-forwarded-") || name == "x-real-ip"),
        );
    }
    let mut path = String::with_capacity(ADDRESS_BYTES_MAX);
    if trusted {
        for value in headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()) {
            path.push_str(value);
            path.push_str(", ");
        }
    }
    push_address(&mut path, peer.to_canonical());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(path)) {
        headers.insert(X_FORWARDED_FOR, value);
    }
    if let Some(host) = headers.get(HOST).cloned() {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
    let scheme = HeaderValue::from_static(if tls { "https" } else { "http" });
    headers.entry(X_FORWARDED_PROTO).or_insert(scheme);
}

/// The longest text of an address.
const ADDRESS_BYTES_MAX: usize = 39;

/// Writes an address as its `Display` does. Every request writes one, and formatting costs it ten times as much.
fn push_address(text: &mut String, address: IpAddr) {
    let IpAddr::V4(address) = address else { return text.push_str(&address.to_string()) };
    for (place, octet) in address.octets().into_iter().enumerate() {
        if place > 0 {
            text.push('.');
        }
        for (least, digit) in [(100, octet / 100), (10, octet / 10 % 10), (0, octet % 10)] {
            if octet >= least {
                text.push(char::from(b'0'.saturating_add(digit)));
            }
        }
    }
}

/// The protocol that a request or response asks to switch to, where it does by the rules: `Connection` names
/// `Upgrade`, and exactly one `Upgrade` says to what. A switch to HTTP/2 is no switch that a proxy passes on.
#[must_use]
pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let mut values = headers.get_all(UPGRADE).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let text = value.to_str().ok()?;
    let to_http = text.split(',').map(str::trim).any(|protocol| {
        let name = protocol.split('/').next().unwrap_or_default();
        name.eq_ignore_ascii_case("h2c") || name.eq_ignore_ascii_case("h2") || name.eq_ignore_ascii_case("http")
    });
    (!to_http).then(|| value.clone())
}

/// Makes `Host` say what the request is for, wherever it was said: `:authority` of HTTP/2 and the authority of an
/// absolute target come first (RFC 9112, 3.2.2).
///
/// # Errors
/// Where a request says it not at all (HTTP/1.1 and up), more than once, or (HTTP/2) in two ways.
pub fn settle_host(headers: &mut HeaderMap, uri: &Uri, version: http::Version) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err("the request has more than one Host");
    }
    let Some(authority) = uri.authority() else {
        let required = version >= http::Version::HTTP_11;
        return if first.is_none() && required { Err("the request has no Host") } else { Ok(()) };
    };
    if authority.as_str().contains('@') {
        return Err("the request's authority carries user information");
    }
    let agrees = first.is_none_or(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
    if version >= http::Version::HTTP_2 && !agrees {
        return Err("Host and :authority differ");
    }
    let value = HeaderValue::from_str(authority.as_str()).map_err(|_| "the request's authority is malformed")?;
    headers.insert(HOST, value);
    Ok(())
}

/// Size of the fields as HTTP/1 writes them, in bytes.
#[must_use]
pub fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len().saturating_add(value.len()).saturating_add(4)).sum()
}

/// Removes what `Connection` names, and a length that the framing overrules.
fn strip_named(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter(|token| !token.eq_ignore_ascii_case("keep-alive") && !token.eq_ignore_ascii_case("close"))
        .filter_map(|token| token.parse().ok())
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// HTTP/2 may split `Cookie`; to HTTP/1 it goes as one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(COOKIE).iter();
    if values.next().is_none() || values.next().is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// A field's name, twice: as it was sent, and as a server may take it that reads `_` as `-`.
enum Spelling<'a> {
    Sent(&'a str),
    Taken(&'a str),
}

/// Whether one spelling of a field is refused.
fn is_refused(name: &HeaderName, refused: &impl Fn(Spelling<'_>) -> bool) -> bool {
    let name = name.as_str();
    refused(Spelling::Sent(name))
        || if name.bytes().any(|byte| byte == b'_') {
            refused(Spelling::Taken(&name.replace('_', "-")))
        } else {
            refused(Spelling::Taken(name))
        }
}

/// Removes the fields of which one spelling is refused.
fn remove_where(headers: &mut HeaderMap, refused: impl Fn(Spelling<'_>) -> bool) {
    let doomed: Vec<HeaderName> = headers.keys().filter(|name| is_refused(name, &refused)).cloned().collect();
    for name in &doomed {
        headers.remove(name);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|token| token.split(';').next().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Version;
    use proptest::prelude::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<String> {
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn request_fields_that_end_at_the_proxy() {
        let stopped = [
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("upgrade", "websocket"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("forwarded", "for=1.2.3.4"),
            ("payment-signature", "x"),
            ("payment-pass", "x"),
            ("Payment_Pass", "x"),
            ("payment_signature", "x"),
            ("payment-required", "x"),
            ("payment-response", "x"),
            ("x-payment", "x"),
            ("x-payment-response", "x"),
            ("turnpike-payer", "x"),
            ("turnpike_payer", "x"),
            ("turnpike-amount", "x"),
            ("turnpike-channel", "x"),
            ("turnpike-network", "x"),
            ("turnpike-anything", "x"),
        ];
        let mut headers = map(&stopped);
        headers.extend(map(&[("accept", "*/*"), ("authorization", "Bearer x"), ("trailer", "x-sum")]));
        strip_request(&mut headers);
        assert_eq!(names(&headers), ["accept", "authorization", "trailer"]);
    }

    #[test]
    fn response_fields_that_end_at_the_proxy() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("upgrade", "h2,h2c"),
            ("transfer-encoding", "chunked"),
            ("content-length", "9"),
            ("payment-required", "x"),
            ("payment-response", "x"),
            ("x-payment-response", "x"),
            ("content-type", "text/plain"),
            ("trailer", "x-sum"),
            ("turnpike-charge", "0.001"),
        ]);
        strip_response(&mut headers);
        assert_eq!(names(&headers), ["content-type", "trailer", "turnpike-charge"]);
    }

    #[test]
    fn trailer_fields_that_could_be_taken_for_headers() {
        let mut trailers = map(&[("x-sum", "1"), ("grpc-status", "0"), ("turnpike_payer", "me"), ("host", "a")]);
        trailers.extend(map(&[("x-forwarded-for", "1"), ("payment-response", "x"), ("transfer-encoding", "chunked")]));
        strip_trailers(&mut trailers);
        assert_eq!(names(&trailers), ["grpc-status", "x-sum"]);
    }

    #[test]
    fn te_keeps_trailers_only() {
        for (te, kept) in
            [("trailers", true), ("gzip, Trailers;q=1", true), ("deflate", false), ("x-trailers, gzip", false)]
        {
            let mut headers = map(&[("te", te), ("connection", "te")]);
            strip_request(&mut headers);
            assert_eq!(headers.get(TE), kept.then_some(&TRAILERS), "{te}");
        }
    }

    #[test]
    fn connection_cannot_remove_framing_or_host() {
        let mut headers = map(&[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")]);
        strip_request(&mut headers);
        assert_eq!(names(&headers), ["content-length", "host"]);
    }

    #[test]
    fn cookies_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        strip_request(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn forwarded_replaces_what_strangers_say() {
        let outside = [
            ("host", "api.test"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-host", "evil"),
            ("x-real-ip", "6.6.6.6"),
        ];
        let mut headers = map(&outside);
        headers.extend(map(&[
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "1"),
        ]));
        forwarded(&mut headers, "9.9.9.9".parse().unwrap(), false, false);
        assert_eq!(names(&headers), ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
        assert_eq!(headers["x-forwarded-for"], "9.9.9.9");
        assert_eq!(headers["x-forwarded-host"], "api.test");
        assert_eq!(headers["x-forwarded-proto"], "http");
    }

    #[test]
    fn forwarded_appends_behind_a_trusted_peer() {
        let mut headers = map(&[("host", "inner"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]);
        headers.extend(map(&[("x-forwarded-host", "api.test"), ("x-forwarded-proto", "https")]));
        forwarded(&mut headers, "::ffff:9.9.9.9".parse().unwrap(), false, true);
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 9.9.9.9");
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(headers["x-forwarded-host"], "api.test");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn host_is_settled_or_refused() {
        let settle = |fields: &[(&str, &str)], uri: &str, version| {
            let mut headers = map(fields);
            settle_host(&mut headers, &uri.parse().unwrap(), version)
                .map(|()| headers.get(HOST).map(|host| host.to_str().unwrap().to_owned()))
        };
        assert_eq!(settle(&[("host", "a")], "/", Version::HTTP_11), Ok(Some("a".into())));
        assert_eq!(settle(&[("host", "a")], "http://b/", Version::HTTP_11), Ok(Some("b".into())));
        assert_eq!(settle(&[], "http://b:1/", Version::HTTP_2), Ok(Some("b:1".into())));
        assert_eq!(settle(&[("host", "B")], "http://b/", Version::HTTP_2), Ok(Some("b".into())));
        assert_eq!(settle(&[], "/", Version::HTTP_10), Ok(None));
        assert!(settle(&[], "/", Version::HTTP_11).is_err());
        assert!(settle(&[("host", "a"), ("host", "a")], "/", Version::HTTP_11).is_err());
        assert!(settle(&[("host", "a")], "http://b/", Version::HTTP_2).is_err());
        assert!(settle(&[], "http://me@b/", Version::HTTP_11).is_err());
    }

    #[test]
    fn upgrades_by_the_rules_only() {
        let upgrade = |fields: &[(&str, &str)]| upgrade_of(&map(fields)).is_some();
        assert!(upgrade(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(!upgrade(&[("upgrade", "websocket")]));
        assert!(!upgrade(&[("connection", "upgrade")]));
        assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")]));
        for refused in ["h2c", "websocket, h2c", "HTTP/2.0"] {
            assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", refused)]), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn addresses_are_written_as_they_are_displayed(octets: [u8; 4], segments: [u16; 8]) {
            for address in [IpAddr::from(octets), IpAddr::from(segments)] {
                let mut text = String::new();
                push_address(&mut text, address);
                prop_assert_eq!(text, address.to_string());
            }
        }

        /// Whatever comes from the outside, in whatever spelling, no field that only we may say is left.
        #[test]
        fn nothing_reserved_survives(
            fields in proptest::collection::vec((
                "(?i)(turnpike|payment|x-payment|x-forwarded)[-_](payer|amount|signature|response|for)|[a-z_-]{1,12}",
                "[ -~]{0,40}",
            ), 0..12),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
                    headers.append(name, value);
                }
            }
            strip_request(&mut headers);
            forwarded(&mut headers, "9.9.9.9".parse().unwrap(), true, false);
            for name in headers.keys().map(|name| name.as_str().replace('_', "-")) {
                prop_assert!(!name.starts_with("turnpike-"), "{name}");
                prop_assert!(!is_payment(name.as_str()), "{name}");
                prop_assert!(!is_hop_by_hop(name.as_str()) || name == "te", "{name}");
            }
            prop_assert_eq!(&headers["x-forwarded-for"], "9.9.9.9");
            prop_assert_eq!(&headers["x-forwarded-proto"], "https");
        }
    }
}

//! What browsers need to pay: the payment headers made visible to scripts, and preflights that cost nothing.
//!
//! Where origins are allowed here, preflights of theirs are answered here and our own answers can be read by them.
//! Everywhere else cross-origin access is the upstream's business: its preflights pass free, and only what it cannot
//! know is added to its answers, namely our headers' names.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

/// Whose scripts may pay.
#[derive(Clone, Debug, Default)]
pub enum Cors {
    /// Left to the upstream.
    #[default]
    Upstream,
    /// Anybody's.
    Any,
    /// These origins', each as a browser writes it: `https://app.example.com`.
    Origins(Vec<HeaderValue>),
}

/// The response headers that a client must be able to read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "PAYMENT-REQUIRED, PAYMENT-RESPONSE, PAYMENT-SIGNATURE, X-PAYMENT-RESPONSE, Payment-Pass-Calls-Left",
);
/// The request headers that a paying script sends. The reference client also sends `Access-Control-Expose-Headers`.
const ALLOWED: HeaderValue =
    HeaderValue::from_static("PAYMENT-SIGNATURE, X-PAYMENT, Payment-Pass, Access-Control-Expose-Headers");
/// Seconds for which a browser may remember a preflight.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// A request's origin, and what it may do.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    value: HeaderValue,
    /// Allowed by us, whatever the upstream says.
    allowed: bool,
    preflight: bool,
}

impl Cors {
    /// The origin of a cross-origin request.
    pub(super) fn origin(&self, parts: &Parts) -> Option<Origin> {
        let value = parts.headers.get(ORIGIN)?.clone();
        let allowed = match self {
            Self::Upstream => false,
            Self::Any => true,
            Self::Origins(origins) => origins.contains(&value),
        };
        let preflight = parts.method == Method::OPTIONS && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        Some(Origin { value, allowed, preflight })
    }
}

impl Origin {
    /// The headers of a preflight's answer, where it is ours to give.
    pub(super) fn preflight(&self, asked: &HeaderMap) -> Option<HeaderMap> {
        if !self.allowed || !self.preflight {
            return None;
        }
        let mut headers = HeaderMap::new();
        self.allow(&mut headers);
        if let Some(method) = asked.get(ACCESS_CONTROL_REQUEST_METHOD) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
        }
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED);
        if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.append(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        headers.append(VARY, HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers"));
        Some(headers)
    }

    /// Adds to an answer, ours or the upstream's, what a script needs to read the payment headers.
    pub(super) fn expose(&self, headers: &mut HeaderMap) {
        if self.allowed {
            self.allow(headers);
        }
        if self.preflight {
            if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
                headers.append(ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED);
            }
            return;
        }
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }

    /// Two values would be none to a browser, so the upstream's own word stands where it has one.
    fn allow(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.value.clone());
            headers.append(VARY, HeaderValue::from_name(ORIGIN));
        }
    }
}

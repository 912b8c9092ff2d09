//! What can go wrong with a request, and the one place where it becomes a response.
//!
//! Owns [`Failure`]. Promises that a failure says whose move it is (its status), has a code that programs can match
//! on, and tells the outside nothing about addresses inside: those go to the log only. The service that forwards
//! requests answers with `Err(Failure)` and never with a response of its own, so that a gate around it can tell what
//! the upstream said from what never came.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use super::body::{Body, BodyError, BoxError};

/// Marks, as a response extension, an answer that the proxy made itself because of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generated;

/// Why a request was not answered by the upstream.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request breaks a rule of HTTP that a proxy must insist on.
    #[error("{0}")]
    BadRequest(&'static str),
    /// A method that a reverse proxy does not serve.
    #[error("the method CONNECT is not served here")]
    MethodNotAllowed,
    /// The request body did not arrive whole.
    #[error("the request body ended early")]
    BodyBroke,
    /// The client took too long over its request body.
    #[error("nothing of the request body arrived for {0:?}")]
    BodyTimeout(Duration),
    /// The request body is over the limit.
    #[error("the request body is longer than {max} bytes")]
    BodyTooLarge {
        /// The limit.
        max: u64,
    },
    /// The request target is over the limit.
    #[error("the request target is longer than {max} bytes")]
    UriTooLong {
        /// The limit.
        max: usize,
    },
    /// The request's header fields are over the limit.
    #[error("the request's header fields are more than {max_bytes} bytes or {max_fields} fields")]
    HeadersTooLarge {
        /// The limit on their size.
        max_bytes: usize,
        /// The limit on their number.
        max_fields: usize,
    },
    /// As many requests as are allowed are under way.
    #[error("{max} requests are under way, which is the limit")]
    Overloaded {
        /// The limit.
        max: usize,
    },
    /// No connection to the upstream could be made; nothing was sent.
    #[error("no connection to the upstream {upstream}")]
    Connect {
        /// Its address.
        upstream: Arc<str>,
        /// What happened.
        source: BoxError,
    },
    /// The upstream broke off, or what it said is not HTTP.
    #[error("the upstream {upstream} broke off or did not speak HTTP")]
    Broke {
        /// Its address.
        upstream: Arc<str>,
        /// What happened.
        source: BoxError,
    },
    /// No connection to the upstream was made in time; nothing was sent.
    #[error("no connection to the upstream {upstream} within {after:?}")]
    ConnectTimeout {
        /// Its address.
        upstream: Arc<str>,
        /// The time it was given.
        after: Duration,
    },
    /// The upstream did not begin its answer in time.
    #[error("no answer of the upstream {upstream} within {after:?}")]
    ResponseTimeout {
        /// Its address.
        upstream: Arc<str>,
        /// The time it was given.
        after: Duration,
    },
    /// A route names an upstream that does not exist.
    #[error("there is no upstream named {0:?}")]
    UnknownUpstream(Arc<str>),
    /// A layer above failed in a way that this module does not know.
    #[error("a failure inside the proxy")]
    Internal(#[source] BoxError),
}

impl Failure {
    /// The status that stands for it.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::BodyBroke => StatusCode::BAD_REQUEST,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Overloaded { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect { .. } | Self::Broke { .. } => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout { .. } | Self::ResponseTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::UnknownUpstream(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The word that programs match on; it never changes for a kind of failure.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyBroke => "request_body_incomplete",
            Self::BodyTimeout(_) => "request_body_timeout",
            Self::BodyTooLarge { .. } => "request_body_too_large",
            Self::UriTooLong { .. } => "uri_too_long",
            Self::HeadersTooLarge { .. } => "request_headers_too_large",
            Self::Overloaded { .. } => "overloaded",
            Self::Connect { .. } => "upstream_unreachable",
            Self::Broke { .. } => "upstream_broke_off",
            Self::ConnectTimeout { .. } => "upstream_connect_timeout",
            Self::ResponseTimeout { .. } => "upstream_timeout",
            Self::UnknownUpstream(_) | Self::Internal(_) => "internal",
        }
    }

    /// Whether the request certainly never reached an upstream, so that it may be sent to another.
    #[must_use]
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::ConnectTimeout { .. })
    }

    /// Whether the failure is the upstream's (and none of the client's or ours).
    #[must_use]
    pub const fn is_upstreams(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::ConnectTimeout { .. } | Self::Broke { .. } | Self::ResponseTimeout { .. }
        )
    }

    /// The response that stands for it, marked [`Generated`]; also writes it to the log.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        self.log();
        let body = serde_json::json!({ "error": self.code(), "message": self.public_message() }).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self {
            Self::Overloaded { .. } => _ = headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            Self::MethodNotAllowed => {
                _ = headers
                    .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE"));
            }
            _ => {}
        }
        response.extensions_mut().insert(Generated);
        response
    }

    /// What the client reads: no address and no cause from the inside.
    fn public_message(&self) -> String {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => {
                "The upstream could not be reached. Nothing was charged; try again later.".into()
            }
            Self::Broke { .. } => "The upstream broke off before it answered. Nothing was charged.".into(),
            Self::ResponseTimeout { .. } => "The upstream did not answer in time. Nothing was charged.".into(),
            Self::UnknownUpstream(_) | Self::Internal(_) => "The proxy failed. Nothing was charged.".into(),
            Self::Overloaded { .. } => "Too many requests are under way. Try again in a moment.".into(),
            Self::BodyTooLarge { .. } | Self::UriTooLong { .. } | Self::HeadersTooLarge { .. } => {
                format!("Send less: {self}.")
            }
            Self::BadRequest(_) | Self::MethodNotAllowed | Self::BodyBroke | Self::BodyTimeout(_) => {
                format!("Send the request again, whole and well-formed: {self}.")
            }
        }
    }

    /// One line for the operator, who is told what to do.
    fn log(&self) {
        let code = self.code();
        let cause = std::error::Error::source(self).map(chain);
        let cause = cause.as_deref().unwrap_or("");
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => {
                tracing::error!(code, cause, "{self}: check that it runs and that its address is right");
            }
            Self::Broke { .. } => tracing::error!(code, cause, "{self}: look into the upstream's own log"),
            Self::ResponseTimeout { .. } => {
                tracing::error!(code, cause, "{self}: give it more time (timeout) or look why it is slow");
            }
            Self::UnknownUpstream(_) => tracing::error!(code, "{self}: correct the route's upstream"),
            Self::Internal(_) => tracing::error!(code, cause, "{self}: this is a defect, report it"),
            Self::Overloaded { .. } => tracing::warn!(code, "{self}: raise it or add machines"),
            Self::BadRequest(_)
            | Self::MethodNotAllowed
            | Self::BodyBroke
            | Self::BodyTimeout(_)
            | Self::BodyTooLarge { .. }
            | Self::UriTooLong { .. }
            | Self::HeadersTooLarge { .. } => tracing::info!(code, cause, "refused a request: {self}"),
        }
    }
}

impl From<Infallible> for Failure {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// For layers that pass errors boxed: finds a failure that is inside, or calls it internal.
impl From<BoxError> for Failure {
    fn from(error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => *failure,
            Err(error) => Self::from_body(&*error).unwrap_or(Self::Internal(error)),
        }
    }
}

impl Failure {
    /// The failure that a body error at the bottom of `error` stands for, where it is the client's.
    pub(crate) fn from_body(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        match BodyError::within(error)? {
            BodyError::TooLarge { max } => Some(Self::BodyTooLarge { max: *max }),
            BodyError::ClientIdle(after) => Some(Self::BodyTimeout(*after)),
            BodyError::ClientBroke(_) => Some(Self::BodyBroke),
            BodyError::UpstreamIdle(_) | BodyError::UpstreamBroke(_) => None,
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()) {
        line.push_str(": ");
        line.push_str(&cause.to_string());
    }
    line
}

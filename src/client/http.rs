//! Plain HTTP requests for the paying client: pooled, over TLS where the address says so, bodies streamed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::http_client::causes;
use crate::x402::header::PAYMENT_SIGNATURE;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, or it broke.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Where to.
        url: String,
        /// The connection's own words.
        why: String,
    },
    /// No answer in time.
    #[error("{url} did not answer within {} s", .after.as_secs())]
    TimedOut {
        /// Where to.
        url: String,
        /// How long was waited.
        after: Duration,
    },
    /// The body is too long or broke off.
    #[error("the answer's body cannot be read: {0}")]
    Body(String),
    /// A header value that cannot be sent.
    #[error("not a header value")]
    Header(#[from] http::header::InvalidHeaderValue),
    /// The request cannot be made.
    #[error("not a request that can be sent: {0}")]
    Request(#[from] http::Error),
}

/// A request that can be sent more than once.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The whole address.
    pub uri: Uri,
    /// The client's own headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// A plain `GET`.
    #[must_use]
    pub fn get(uri: Uri) -> Self {
        Self { method: Method::GET, uri, headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// What an offer is remembered by.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{} {}", self.method, self.uri)
    }
}

/// An answer whose body is still on its way.
#[derive(Debug)]
pub struct Response(http::Response<Incoming>);

impl Response {
    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.headers().get(name).map(HeaderValue::as_bytes)
    }

    /// All headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }

    /// The streaming body.
    pub fn into_body(self) -> Incoming {
        self.0.into_body()
    }

    /// The whole body, up to `limit` bytes.
    ///
    /// # Errors
    /// [`HttpError::Body`].
    pub async fn bytes(self, limit: usize) -> Result<Bytes, HttpError> {
        let body = Limited::new(self.0.into_body(), limit);
        Ok(body.collect().await.map_err(|error| HttpError::Body(error.to_string()))?.to_bytes())
    }
}

/// How long an answer's header is waited for, where nothing else is said.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// An HTTP client.
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    patience: Duration,
}

impl Http {
    /// A client that trusts Mozilla's roots, and waits two minutes for the header of an answer.
    ///
    /// # Errors
    /// [`HttpError`] where no TLS configuration can be made.
    pub fn new() -> Result<Self, HttpError> {
        Self::waiting(ANSWER_TIMEOUT)
    }

    /// The same, waiting so long: for what takes its time before it answers.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn waiting(patience: Duration) -> Result<Self, HttpError> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| HttpError::Unreachable { url: "any server".into(), why: error.to_string() })?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), patience })
    }

    /// Sends a request, with a payment where one is given.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn send(&self, request: &Request, payment: Option<&str>) -> Result<Response, HttpError> {
        let url = || request.uri.to_string();
        let mut message = http::Request::builder()
            .method(request.method.clone())
            .uri(request.uri.clone())
            .body(Full::new(request.body.clone()))?;
        *message.headers_mut() = request.headers.clone();
        if let Some(payment) = payment {
            message.headers_mut().insert(HeaderName::from_static(PAYMENT_SIGNATURE), HeaderValue::from_str(payment)?);
        }
        match tokio::time::timeout(self.patience, self.client.request(message)).await {
            Ok(Ok(response)) => Ok(Response(response)),
            Ok(Err(error)) => Err(HttpError::Unreachable { url: url(), why: causes(&error) }),
            Err(_) => Err(HttpError::TimedOut { url: url(), after: self.patience }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_waited_for_as_long_as_was_said() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let request = Request::get(format!("http://{}/", silent.local_addr().unwrap()).parse().unwrap());
        let patience = Duration::from_millis(20);
        let answer = Http::waiting(patience).unwrap().send(&request, None).await;
        assert!(matches!(answer, Err(HttpError::TimedOut { after, .. }) if after == patience));
    }
}

//! What every client of a service elsewhere needs: connections, bounded answers, and [`endpoint`]s that keep secrets.
//!
//! For the adapters (`chain/*`, `facilitator/http`), which each bring their own protocol, order and retries. Promises
//! that no answer is read beyond its limit, that redirects are not followed (nothing here does), and that only public
//! roots are trusted. Names nothing else of ours.

pub mod endpoint;
pub mod home;

use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;

use self::home::{AtHome, Home};

/// How long to leave a service alone that is rate limited and does not say for how long.
pub const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// The longest that a service's own word bars it.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Opens connections at [`Home`].
pub type Connector = AtHome<HttpsConnector<HttpConnector>>;

/// Connections over HTTP/1.1 or 2, with TLS where the address says `https`, which live on the present runtime.
///
/// # Errors
/// The TLS library's own words, where it does not start.
pub fn connector(connect_timeout: Duration) -> Result<Connector, String> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(connect_timeout));
    let builder = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .map_err(|error| error.to_string())?;
    Ok(Home::here().connecting(builder.https_or_http().enable_all_versions().wrap_connector(connector)))
}

/// A whole body of up to `bytes_max`.
///
/// # Errors
/// Why there is none, for an operator.
pub async fn read(response: Response<Incoming>, bytes_max: usize) -> Result<Bytes, String> {
    match Limited::new(response.into_body(), bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(format!("the answer is longer than {bytes_max} bytes")),
        Err(error) => Err(format!("the answer broke off: {error}")),
    }
}

/// How long a service asks to be left alone, where it says so in seconds, up to [`RETRY_AFTER_MAX`].
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// An error with its causes: the outermost alone says only that connecting failed.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

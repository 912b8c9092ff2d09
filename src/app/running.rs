//! A whole running Turnpike: a [`Merchant`], and the proxy in front of an upstream that is paid through it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use tower::Layer;

use super::service::{Inner, Metrics, Outer};
use super::{Merchant, Start, StartError, routes};
use crate::config::Config;
use crate::proxy::{self, Endpoint, Listen, Listener, Serving, Settings, UpstreamSettings, Upstreams, drain};

/// A running Turnpike.
pub struct Running {
    merchant: Merchant,
    address: SocketAddr,
    serving: Serving,
    drain: drain::Signal,
}

impl Running {
    /// Starts everything that `config` names.
    ///
    /// # Errors
    /// [`StartError`] names the part that cannot start.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let merchant = Merchant::start(&config).await?;
        let (drain, draining) = drain::channel(config.timeouts.drain);
        let (address, serving) = serve(&config, &merchant, &draining)?;
        Ok(Self { merchant, address, serving, drain })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it is paid and settles with.
    #[must_use]
    pub const fn merchant(&self) -> &Merchant {
        &self.merchant
    }

    /// Stops in order. Requests in flight are finished within `timeouts.drain`.
    pub async fn drain(self) {
        self.merchant.telemetry.draining.set(1);
        self.drain.drain();
        let report = self.serving.finished().await;
        self.merchant.drain().await;
        tracing::info!(drained = report.drained, cut = report.cut, "drained");
    }
}

fn serve(config: &Config, merchant: &Merchant, draining: &drain::Watch) -> Result<(SocketAddr, Serving), StartError> {
    let metrics = Metrics::new(Arc::clone(&merchant.telemetry), &routes(config, &merchant.accounts));
    let layer = merchant.layer();
    let (default, named) = upstreams(config)?;
    // Made once here, so that what is wrong is said at start; each thread makes its own, with its own connections.
    Upstreams::new(&default, named.clone()).start("upstream")?;
    let listener = Listener::bind(settings(config)?).start("listen")?;
    let address = listener.addresses().first().copied().unwrap_or(config.listen);
    let make = move || {
        let upstreams = Upstreams::new(&default, named.clone());
        // It was made once above with the same settings, and nothing else can fail.
        let upstreams = upstreams.unwrap_or_else(|_| unreachable!("the upstreams were checked at start"));
        let inner = Inner { inner: upstreams, metrics: Arc::clone(&metrics) };
        Outer { inner: layer.layer(inner), metrics: Arc::clone(&metrics) }
    };
    let serving = listener.serve(make, draining).start("listen")?;
    Ok((address, serving))
}

fn settings(config: &Config) -> Result<Settings, StartError> {
    let tls = match &config.tls {
        None => None,
        Some(files) => {
            let read =
                |path: &std::path::Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
            let chain = read(&files.cert_file).start("tls.cert_file")?;
            let key = read(&files.key_file).start("tls.key_file")?;
            Some(proxy::tls::Identity::from_pem(&chain, &key).start("tls")?)
        }
    };
    let mut settings = Settings::new(config.listen);
    settings.listen = vec![Listen { address: config.listen, tls }];
    settings.threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    settings.connections_max = config.limits.connections;
    settings.limits.headers_bytes_max = config.limits.header_bytes;
    settings.limits.body_bytes_max = Some(config.limits.body_bytes);
    settings.timeouts.body_idle = config.timeouts.body_idle;
    settings.timeouts.keep_alive_idle = config.timeouts.idle;
    Ok(settings)
}

type Named = HashMap<Arc<str>, UpstreamSettings>;

fn upstreams(config: &Config) -> Result<(UpstreamSettings, Named), StartError> {
    let tls = Arc::new(proxy::tls::client_config(None).start("upstream")?);
    let one = |urls: &[http::Uri]| -> Result<UpstreamSettings, StartError> {
        let endpoints: Result<Vec<Endpoint>, _> = urls.iter().map(|url| url.to_string().parse()).collect();
        let mut settings = UpstreamSettings::new(endpoints.start("upstream")?, Arc::clone(&tls));
        settings.connect_timeout = config.timeouts.connect;
        settings.response_timeout = config.timeouts.response_header;
        settings.response_idle = config.timeouts.body_idle;
        Ok(settings)
    };
    let mut named = Named::new();
    for (name, urls) in &config.upstreams {
        named.insert(Arc::clone(name), one(urls)?);
    }
    // Without a default, every route names its own and unlisted paths are refused: any of them stands in.
    let default = match (config.upstream.as_slice(), named.values().next()) {
        ([], Some(any)) => any.clone(),
        (urls, _) => one(urls)?,
    };
    Ok((default, named))
}

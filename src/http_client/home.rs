//! Connections that live on the runtime where their client was made, whoever uses them.
//!
//! A client's kept connections are shared by all that ask through it. Without this, each would be driven by the runtime
//! that happened to open it: a request that is being served could wait for the settlement's thread, which gives way to
//! all others, and a connection could end with a thread that is drained.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::Executor;
use tokio::runtime::Handle;
use tower::{BoxError, Service};

/// A runtime that connections live on: the one that this was made on, else the one of whoever asks.
#[derive(Clone, Debug)]
pub struct Home(Option<Handle>);

impl Home {
    /// The present runtime.
    #[must_use]
    pub fn here() -> Self {
        Self(Handle::try_current().ok())
    }

    /// Opens connections with `connector`, at home.
    #[must_use]
    pub const fn connecting<C>(self, connector: C) -> AtHome<C> {
        AtHome { connector, home: self }
    }
}

impl<F> Executor<F> for Home
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        match &self.0 {
            Some(home) => drop(home.spawn(future)),
            None => drop(tokio::spawn(future)),
        }
    }
}

/// A connector whose connections live at home.
#[derive(Clone, Debug)]
pub struct AtHome<C> {
    connector: C,
    home: Home,
}

impl<C> Service<Uri> for AtHome<C>
where
    C: Service<Uri>,
    C::Response: Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connecting = self.connector.call(address);
        let connecting = async move { connecting.await.map_err(Into::into) };
        match &self.home.0 {
            Some(home) => {
                let connected = home.spawn(connecting);
                Box::pin(async move { connected.await? })
            }
            None => Box::pin(connecting),
        }
    }
}

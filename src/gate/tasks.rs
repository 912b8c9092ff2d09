//! Work that goes on behind a request and must be finished even where the request is gone.

use std::future::Future;

use tokio::sync::watch;

/// Counts what is running, so that an orderly stop can wait for it.
#[derive(Clone)]
pub(super) struct Tasks(watch::Sender<usize>);

impl Default for Tasks {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Tasks {
    /// Runs `work` to its end, whatever becomes of the caller.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let running = Running::new(self.0.clone());
        tokio::spawn(async move {
            let _running = running;
            work.await;
        });
    }

    /// Resolves when nothing is running.
    pub(super) async fn idle(&self) {
        // The sender lives as long as `self`, so this ends only where nothing is running.
        let _ = self.0.subscribe().wait_for(|running| *running == 0).await;
    }
}

struct Running(watch::Sender<usize>);

impl Running {
    fn new(count: watch::Sender<usize>) -> Self {
        count.send_modify(|running| *running = running.saturating_add(1));
        Self(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running = running.saturating_sub(1));
    }
}

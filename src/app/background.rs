//! A runtime of its own for settlement, on a thread of its own that gives way to those that serve.
//!
//! Promises that what is spawned here, and what it signs with, runs at a lower priority than everything else in the
//! process: where cores are short, requests are served first and settlement takes what is left. What runs here must hold
//! no lock that a request waits for any longer than it takes to look something up. Where the system does not lower
//! the priority of a single thread (only Linux does), the thread of its own is all there is.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Threads that sign, or wait for the system, at once.
const BLOCKING_THREADS_MAX: usize = 4;
/// How far below the others: about a tenth of the weight that a serving thread has where both want the same core.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// The runtime. Its clones are one; it ends with the last of them.
#[derive(Clone, Debug)]
pub(super) struct Background {
    handle: Handle,
    _end: Arc<oneshot::Sender<()>>,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where the system gives no thread or no runtime.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("settlement")
            .on_thread_start(give_way)
            .build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("settlement".to_owned()).spawn(move || {
            give_way();
            let _dropped = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _end: Arc::new(end) })
    }

    /// Runs `work` here.
    pub(super) fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(work)
    }
}

/// Lowers the calling thread's priority.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "settlement's threads have the priority of those that serve");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn what_runs_here_gives_way_and_nothing_else_does() {
        let before = niceness();
        let background = Background::start().unwrap();
        assert_eq!(background.spawn(async { niceness() }).await.unwrap(), before.saturating_add(NICENESS).min(19));
        let signing = background.spawn(async { tokio::task::spawn_blocking(niceness).await.unwrap() });
        assert_eq!(signing.await.unwrap(), before.saturating_add(NICENESS).min(19));
        assert_eq!(niceness(), before);
    }
}

//! What a client's connection is doing, so that one place can tell when it has waited long enough.
//!
//! Owns [`Activity`], which the connection's wire, its requests and its supervisor share. Promises a deadline for
//! every state a connection can be in without its service being at work: before the first request, in the middle of a
//! request's head, between requests, and (HTTP/2) with a response that the client does not take. hyper has a
//! timeout for HTTP/1 heads only, and it does not tell a slow head from an idle connection.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Longer ones are cut to this, so that time can always be added.
const PATIENCE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a client may take over each thing that is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
}

/// Why a connection has waited long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// A request's head did not arrive whole.
    Head,
    /// No request came.
    Idle,
    /// A response was not taken.
    Write,
}

/// Shared by what belongs to one connection.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    patience: Patience,
    /// Requests begun and not ended.
    active: usize,
    /// Requests ever begun.
    requests: u64,
    /// When the last request ended, or the connection began.
    idle_since: Instant,
    /// When the first byte after that arrived.
    head_since: Option<Instant>,
    http2: bool,
    /// Per response body (HTTP/2): since when a frame of it lies with hyper and no other was asked for.
    handed: Vec<Option<Instant>>,
    free: Vec<usize>,
}

impl Activity {
    pub(crate) fn new(patience: Patience) -> Self {
        let clamp = |patience: Duration| patience.min(PATIENCE_MAX);
        Self(Arc::new(Mutex::new(State {
            patience: Patience { head: clamp(patience.head), idle: clamp(patience.idle), write: clamp(patience.write) },
            active: 0,
            requests: 0,
            idle_since: Instant::now(),
            head_since: None,
            http2: false,
            handed: Vec::new(),
            free: Vec::new(),
        })))
    }

    /// Bytes arrived.
    pub(crate) fn received(&self) {
        let mut state = self.0.lock();
        if state.active == 0 && state.head_since.is_none() && !state.http2 {
            state.head_since = Some(Instant::now());
        }
    }

    /// A request's head is whole. The request lasts until the value that this returns is dropped.
    pub(crate) fn begin(&self, http2: bool) -> Busy {
        let mut state = self.0.lock();
        state.active = state.active.saturating_add(1);
        state.requests = state.requests.saturating_add(1);
        state.head_since = None;
        state.http2 = http2;
        let slot = http2.then(|| state.take_slot());
        drop(state);
        Busy { activity: self.clone(), slot }
    }

    /// Whether a request ever came.
    pub(crate) fn is_fresh(&self) -> bool {
        self.0.lock().requests == 0
    }

    /// Whether a request is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.lock().active > 0
    }

    /// When the connection will have waited long enough, for what; `None` while the service works and all is taken.
    pub(crate) fn deadline(&self) -> Option<(Instant, Expired)> {
        let state = self.0.lock();
        let patience = state.patience;
        if state.active > 0 {
            let oldest = state.handed.iter().flatten().min()?;
            return Some((*oldest + patience.write, Expired::Write));
        }
        Some(match state.head_since {
            Some(since) => (since + patience.head, Expired::Head),
            None if state.requests == 0 => (state.idle_since + patience.head, Expired::Idle),
            None => (state.idle_since + patience.idle, Expired::Idle),
        })
    }

    pub(crate) fn patience(&self) -> Patience {
        self.0.lock().patience
    }
}

impl State {
    fn take_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.handed.push(None);
            self.handed.len().saturating_sub(1)
        })
    }
}

/// A request under way, from its head to the end of its response body.
#[derive(Debug)]
pub(crate) struct Busy {
    activity: Activity,
    slot: Option<usize>,
}

impl Busy {
    /// Notes that a frame of the response was handed over (`true`), or that another one is asked for.
    pub(crate) fn handed(&self, handed: bool) {
        let Some(slot) = self.slot else { return };
        if let Some(since) = self.activity.0.lock().handed.get_mut(slot) {
            *since = handed.then(Instant::now);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.activity.0.lock();
        if let Some(slot) = self.slot {
            state.free.push(slot);
            if let Some(since) = state.handed.get_mut(slot) {
                *since = None;
            }
        }
        state.active = state.active.saturating_sub(1);
        if state.active == 0 {
            state.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { head: Duration::from_secs(1), idle: Duration::from_secs(10), write: Duration::from_secs(5) };

    fn kind(activity: &Activity) -> Option<Expired> {
        activity.deadline().map(|(_, expired)| expired)
    }

    #[test]
    fn every_wait_has_a_deadline() {
        let activity = Activity::new(PATIENCE);
        assert_eq!(kind(&activity), Some(Expired::Idle));
        activity.received();
        assert_eq!(kind(&activity), Some(Expired::Head));
        let busy = activity.begin(false);
        assert_eq!(kind(&activity), None, "the service's own timeouts rule");
        activity.received();
        drop(busy);
        assert_eq!(kind(&activity), Some(Expired::Idle));
        activity.received();
        assert_eq!(kind(&activity), Some(Expired::Head));
    }

    #[test]
    fn a_response_that_is_not_taken_has_a_deadline() {
        let activity = Activity::new(PATIENCE);
        let (first, second) = (activity.begin(true), activity.begin(true));
        first.handed(true);
        assert_eq!(kind(&activity), Some(Expired::Write));
        second.handed(true);
        first.handed(false);
        assert_eq!(kind(&activity), Some(Expired::Write));
        drop(second);
        assert_eq!(kind(&activity), None);
        drop(first);
        activity.received();
        assert_eq!(kind(&activity), Some(Expired::Idle), "an HTTP/2 ping is no half-read head");
        assert_eq!(activity.begin(true).slot, Some(0), "slots are used again");
    }
}

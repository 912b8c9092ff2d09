//! Which request is being worked on: its id, and the log lines that carry it.
//!
//! Owns [`RequestId`] and where the current one is noted. A span of `tracing` would do the same, and would be made,
//! entered and left for every request, most of which log nothing; so the id is kept in a cell of the thread while the
//! request's future is polled, and read when a line is written. Tasks that a request leaves behind log without it.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

thread_local! {
    static CURRENT: Cell<Option<RequestId>> = const { Cell::new(None) };
    /// Each thread has random keys of its own, so that ids of two threads or two runs do not meet.
    static NEXT: (RandomState, Cell<u64>) = (RandomState::new(), Cell::new(0));
}

/// Names one request in logs, to the upstream and to the client: 16 hexadecimal digits, which tell nothing of how many
/// requests there are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// A new one.
    #[must_use]
    pub fn next() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hash = NEXT.with(|(keys, count)| {
            count.set(count.get().wrapping_add(1));
            keys.hash_one(count.get())
        });
        Self([(); 16].map(|()| {
            let digit = usize::try_from(hash & 15).ok().and_then(|digit| DIGITS.get(digit));
            hash >>= 4;
            digit.copied().unwrap_or(b'0')
        }))
    }

    /// Its digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Polls `future` as work on this request.
    pub fn scope<F: Future>(self, future: F) -> Scoped<F> {
        Scoped { id: self, future }
    }

    fn current() -> Option<Self> {
        CURRENT.get()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

pin_project! {
    /// Work on a request.
    pub struct Scoped<F> {
        id: RequestId,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _back = Restored(CURRENT.replace(Some(*this.id)));
        this.future.poll(cx)
    }
}

/// Notes again what was noted before, also where the future panics.
struct Restored(Option<RequestId>);

impl Drop for Restored {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Writes a log line with the id of the request that it is about: a JSON object gets a member `request`, any other line
/// begins with it.
pub(super) struct WithRequest<E> {
    pub(super) inner: E,
    pub(super) json: bool,
}

impl<S, N, E> FormatEvent<S, N> for WithRequest<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        match RequestId::current() {
            Some(id) if self.json => {
                let mut line = String::new();
                self.inner.format_event(context, Writer::new(&mut line), event)?;
                match line.strip_prefix('{') {
                    Some(rest) => write!(writer, "{{\"request\":\"{id}\",{rest}"),
                    None => writer.write_str(&line),
                }
            }
            Some(id) => {
                write!(writer, "{id} ")?;
                self.inner.format_event(context, writer, event)
            }
            None => self.inner.format_event(context, writer, event),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::format;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        let builder = tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone());
        if json {
            let inner = format().json().flatten_event(true).with_span_list(false);
            let subscriber = builder.json().event_format(WithRequest { inner, json }).finish();
            tracing::subscriber::with_default(subscriber, work);
        } else {
            let inner = format().compact().with_target(false).without_time();
            tracing::subscriber::with_default(builder.event_format(WithRequest { inner, json }).finish(), work);
        }
        String::from_utf8(lines.0.lock().clone()).unwrap()
    }

    #[test]
    fn lines_of_a_request_name_it_and_others_do_not() {
        let id = RequestId::next();
        let work = || {
            let mut inside = Box::pin(id.scope(async { tracing::warn!(cause = "x", "inside") }));
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(inside.as_mut().poll(&mut context).is_ready());
            tracing::warn!("outside");
        };
        let lines = logged(true, work);
        let parsed: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&parsed[0]["request"], &parsed[0]["message"]), (&id.as_str().into(), &"inside".into()));
        assert_eq!((parsed[1].get("request"), &parsed[1]["message"]), (None, &"outside".into()));
        assert_eq!(logged(false, work), format!("{id}  WARN inside cause=\"x\"\n WARN outside\n"));
    }

    #[test]
    fn ids_differ_and_are_digits() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| RequestId::next().to_string()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}

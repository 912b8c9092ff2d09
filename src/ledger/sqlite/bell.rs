//! Many answers to the tasks of one serving thread, for one wake.
//!
//! A flush answers dozens of requests at once. Woken from the writer's thread, each of their tasks would cost a system call
//! there, and the serving thread would fall asleep and wake up again between them. So every current-thread runtime has a
//! [`Bell`], and a task that hands out there what the writer has left at it. Promises that no answer is lost: a bell whose
//! runtime ends hands out what is left, and from then on answers go their own ways.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id, RuntimeFlavor};
use tokio::sync::oneshot;

use crate::ledger::store::StoreError;

/// An answer, and to whom.
pub(super) type Due = (oneshot::Sender<Result<(), StoreError>>, Result<(), StoreError>);

/// Where answers for a runtime's tasks are left.
#[derive(Debug)]
pub(super) struct Bell {
    /// `None` once nobody hands anything out any more.
    due: Mutex<Option<Vec<Due>>>,
    waker: AtomicWaker,
}

thread_local! {
    static HERE: RefCell<Option<(Id, Arc<Bell>)>> = const { RefCell::new(None) };
}

impl Bell {
    /// The bell of the runtime that this is called in; `None` in one of several threads, whose tasks are nobody's to hand
    /// out to, and outside of any.
    pub(super) fn here() -> Option<Arc<Self>> {
        let runtime = Handle::try_current().ok()?;
        if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
            return None;
        }
        HERE.with_borrow_mut(|here| {
            if let Some((id, bell)) = here
                && *id == runtime.id()
            {
                return Some(Arc::clone(bell));
            }
            let bell = Arc::new(Self { due: Mutex::new(Some(Vec::new())), waker: AtomicWaker::new() });
            runtime.spawn(HandingOut(Arc::downgrade(&bell)));
            *here = Some((runtime.id(), Arc::clone(&bell)));
            Some(bell)
        })
    }

    /// Leaves answers, and wakes who hands them out.
    pub(super) fn ring(&self, answers: Vec<Due>) {
        let closed = match &mut *self.due.lock() {
            Some(due) => {
                due.extend(answers);
                None
            }
            None => Some(answers),
        };
        match closed {
            None => self.waker.wake(),
            Some(answers) => hand_out(answers),
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // Who hands out has nothing to wait for now.
        self.waker.wake();
    }
}

/// The task at the other end of a bell.
struct HandingOut(Weak<Bell>);

impl Future for HandingOut {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(bell) = self.0.upgrade() else { return Poll::Ready(()) };
        bell.waker.register(context.waker());
        let due = bell.due.lock().as_mut().map(std::mem::take);
        hand_out(due.unwrap_or_default());
        Poll::Pending
    }
}

impl Drop for HandingOut {
    fn drop(&mut self) {
        if let Some(bell) = self.0.upgrade() {
            let due = bell.due.lock().take();
            hand_out(due.unwrap_or_default());
        }
    }
}

fn hand_out(due: Vec<Due>) {
    for (to, answer) in due {
        // Whoever asked may be gone.
        drop(to.send(answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn what_is_left_from_another_thread_is_handed_out() {
        let answers = alone().block_on(async {
            let bell = Bell::here().unwrap();
            assert!(Arc::ptr_eq(&bell, &Bell::here().unwrap()), "a runtime has one bell");
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
            let due = senders.into_iter().map(|sender| (sender, Ok(()))).collect();
            std::thread::spawn(move || bell.ring(due)).join().unwrap();
            futures_util::future::join_all(receivers).await
        });
        assert!(answers.into_iter().all(|answer| answer == Ok(Ok(()))));
    }

    #[test]
    fn each_runtime_has_its_own() {
        let (one, other) = (alone(), alone());
        let bell = |runtime: &tokio::runtime::Runtime| runtime.block_on(async { Bell::here().unwrap() });
        let (first, second) = (bell(&one), bell(&other));
        assert!(!Arc::ptr_eq(&first, &second));
        let many = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        assert!(many.block_on(async { Bell::here() }).is_none());
        assert!(Bell::here().is_none());
    }

    #[test]
    fn what_a_runtime_leaves_behind_is_handed_out() {
        let runtime = alone();
        let bell = runtime.block_on(async { Bell::here().unwrap() });
        let (sender, mut before) = oneshot::channel();
        bell.ring(vec![(sender, Ok(()))]);
        assert!(before.try_recv().is_err(), "nothing runs there");
        drop(runtime);
        assert_eq!(before.try_recv(), Ok(Ok(())));
        let (sender, mut after) = oneshot::channel();
        bell.ring(vec![(sender, Ok(()))]);
        assert_eq!(after.try_recv(), Ok(Ok(())));
    }
}

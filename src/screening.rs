//! The port to compliance lists: whether a payer may be dealt with.
//!
//! Adapters: a file that is read again when it changes (`screening/file.rs`), and a service that is asked over HTTP
//! (`screening/http.rs`). What happens where nobody can be asked is each adapter's rule: it says that the payer is clear,
//! or that it cannot be known.

pub mod file;
pub mod http;

use std::sync::Arc;

use async_trait::async_trait;

use crate::x402::Account;

/// Where a payer's address stands in the URL of a service.
pub const PAYER: &str = "{payer}";

/// What is known of a payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is on no list.
    Clear,
    /// It is on one.
    Listed,
    /// It cannot be found out, and the rule for that is to refuse.
    Unknown,
}

/// Knows compliance lists.
#[async_trait]
pub trait Screen: Send + Sync {
    /// What is known of a payer. Within a bounded time.
    async fn screen(&self, payer: &Account) -> Verdict;
}

/// Several of them, in order: the first that does not say clear decides.
pub struct Screens(pub Vec<Arc<dyn Screen>>);

#[async_trait]
impl Screen for Screens {
    async fn screen(&self, payer: &Account) -> Verdict {
        for screen in &self.0 {
            let verdict = screen.screen(payer).await;
            if verdict != Verdict::Clear {
                return verdict;
            }
        }
        Verdict::Clear
    }
}

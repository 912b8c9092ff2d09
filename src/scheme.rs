//! The schemes' pure checks and digests, one file per scheme and network family.
//!
//! Level 1: no async, no file, no socket, no wall clock, no randomness. A check that passes returns a value that nobody
//! else can make; one that does not returns [`Refused`] with the protocol's own code.

pub mod batch_settlement_evm;
pub mod batch_settlement_svm;
pub mod evm;
pub mod exact_evm;
pub mod offer;
pub mod svm;
pub mod upto_evm;
pub mod upto_svm;

use std::borrow::Cow;

use crate::x402::Reason;

/// A payment that does not pass a scheme's checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refused {
    /// The protocol's code.
    pub reason: Reason,
    /// What is wrong, for the client's developer. Holds nothing but what the client sent and what we advertise.
    pub detail: Cow<'static, str>,
}

impl Refused {
    /// A refusal with its code and what is wrong.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Passes where `holds`, else refuses.
fn ensure(holds: bool, reason: Reason, detail: &'static str) -> Result<(), Refused> {
    if holds { Ok(()) } else { Err(Refused::new(reason, detail)) }
}

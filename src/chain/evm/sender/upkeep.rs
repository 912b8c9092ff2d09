//! Looks after the first transaction of the account that is in no block: all later ones wait for it.
//!
//! It is sent again where a node may have forgotten it, replaced where it pays too little, and made up where there is
//! none: a transaction without effect closes a gap. Which of these is due is decided from the chain's count of the
//! account's transactions, so a chain that takes blocks back is followed.

use tokio::time::Instant;

use super::{Call, Counted, Fees, Pending, Refusal, SendError, Sender, Signed, State, Submission};

/// Gas of a transaction that does nothing.
const NOTHING_GAS: u64 = 21_000;
/// How many blocks a mined transaction is remembered, should its block be taken back.
const REMEMBERED_BLOCKS: u64 = 32;
/// The most replacements of one transaction.
const VERSIONS_MAX: usize = 40;

/// What is to be done.
enum Due {
    Nothing,
    /// Send the latest version again.
    Resend(Submission, Signed),
    /// Send a version that pays more.
    Bump(Submission, Signed),
    /// Close the gap at this nonce.
    Fill {
        nonce: u64,
        /// Whether it was given back; else it is of a transaction that nobody here knows.
        given_back: bool,
    },
}

impl Sender {
    /// Looks after the first unmined transaction, where no other task does at this moment. Whoever waits for a
    /// transaction calls this by itself; a background task may, for those that nobody waits for any more.
    pub async fn look_after(&self) {
        let Ok(_turn) = self.0.upkeep.try_lock() else { return };
        let (head, mined) = match self.counts().await {
            Ok(counts) => counts,
            Err(error) => return tracing::debug!(%error, "the account's transactions cannot be looked after"),
        };
        let due = self.due(&mut self.0.state.lock(), head, mined);
        match due {
            Due::Nothing => {}
            Due::Resend(submission, signed) => self.send_version(&submission, &signed).await,
            Due::Bump(submission, signed) => match self.dearer(&signed).await {
                Some(dearer) => {
                    tracing::info!(hash = %signed.hash(), by = %dearer.hash(), nonce = submission.nonce(), "bumped");
                    submission.0.versions.lock().push(dearer.clone());
                    self.note(submission.nonce(), |pending| pending.bumped_at = Instant::now());
                    self.send_version(&submission, &dearer).await;
                }
                None => {
                    tracing::warn!(hash = %signed.hash(), "not mined in time, and the fee is at its cap");
                    self.send_version(&submission, &signed).await;
                    self.note(submission.nonce(), |pending| {
                        pending.bumped_at = Instant::now();
                        pending.too_cheap = false;
                    });
                }
            },
            Due::Fill { nonce, given_back } => self.fill(nonce, given_back).await,
        }
    }

    async fn counts(&self) -> Result<(u64, u64), super::EvmError> {
        let head = self.0.chain.head().await?.number;
        let mined = self.0.chain.transaction_count(self.address(), Counted::Mined).await?;
        Ok((head, mined))
    }

    fn due(&self, state: &mut State, head: u64, mined: u64) -> Due {
        let options = &self.0.options;
        state.nonces.used_below(mined);
        for (nonce, pending) in &mut state.pending {
            pending.used_at = (*nonce < mined).then(|| pending.used_at.unwrap_or(head));
        }
        state.pending.retain(|_, pending| {
            pending.used_at.is_none_or(|used_at| head.saturating_sub(used_at) < REMEMBERED_BLOCKS)
        });
        if state.first.is_none_or(|(nonce, _)| nonce != mined) {
            state.first = Some((mined, Instant::now()));
        }
        let since = state.first.map_or_else(Instant::now, |(_, since)| since);
        if let Some(pending) = state.pending.get(&mined) {
            let Some(signed) = pending.submission.latest() else { return Due::Nothing };
            let submission = pending.submission.clone();
            let stalled = since.max(pending.bumped_at).elapsed() >= options.bump_after;
            let may_bump = submission.0.versions.lock().len() < VERSIONS_MAX;
            if (stalled || pending.too_cheap) && may_bump {
                return Due::Bump(submission, signed);
            }
            let silent = since.max(pending.sent_at).elapsed() >= options.resend_after;
            return if silent { Due::Resend(submission, signed) } else { Due::Nothing };
        }
        let holds_up = mined < state.nonces.next();
        let orphaned = since.elapsed() >= options.orphan_after && !state.reserved.contains(&mined);
        if !holds_up {
            return Due::Nothing;
        }
        match state.nonces.take_free(mined) {
            true => Due::Fill { nonce: mined, given_back: true },
            false if orphaned => Due::Fill { nonce: mined, given_back: false },
            false => Due::Nothing,
        }
    }

    /// Sends one version of a transaction that was sent before.
    async fn send_version(&self, submission: &Submission, signed: &Signed) {
        let sent = self.0.chain.send(signed.raw()).await;
        self.note(submission.nonce(), |pending| {
            pending.sent_at = Instant::now();
            pending.too_cheap =
                matches!(sent, Err(SendError::Refused { refusal: Refusal::Underpriced | Refusal::FeeTooLow, .. }));
        });
        if let Err(error) = sent {
            tracing::debug!(hash = %signed.hash(), %error, "sent again");
        }
    }

    fn note(&self, nonce: u64, write: impl FnOnce(&mut Pending)) {
        if let Some(pending) = self.0.state.lock().pending.get_mut(&nonce) {
            write(pending);
        }
    }

    /// The same transaction with a higher fee, where the cap allows one.
    async fn dearer(&self, signed: &Signed) -> Option<Signed> {
        let unsigned = signed.unsigned();
        let fresh: Option<Fees> = self.quote().await.ok();
        let fees = self.0.options.fees.bump(unsigned.fees, fresh)?;
        Some(self.sign(unsigned.nonce, fees, unsigned.gas_limit, unsigned.call.clone()))
    }

    /// Sends a transaction without effect to ourselves, so that later nonces can be mined.
    async fn fill(&self, nonce: u64, given_back: bool) {
        let Ok(fees) = self.quote().await else {
            if given_back {
                self.0.state.lock().nonces.give_back(nonce);
            }
            return;
        };
        tracing::info!(nonce, "a transaction without effect closes a gap");
        let nothing = Call { to: self.address(), data: Vec::new() };
        let signed = self.sign(nonce, fees, NOTHING_GAS, nothing);
        let submission = Submission::new(signed.clone());
        self.0.state.lock().pending.insert(nonce, Pending::new(submission.clone()));
        self.send_version(&submission, &signed).await;
    }
}

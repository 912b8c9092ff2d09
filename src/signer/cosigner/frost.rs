//! A cosigner's share on Ed25519: commitments handed out, and a part of a signature for each, at most.

use std::collections::BTreeMap;

use super::policy::Moves;
use super::sessions::Sessions;
use super::{Allowed, Cosigner, Entry, EntryRules, Judged, Record, Trouble, first_that_accepts, sha256};
use crate::signer::frost::signing::{Commitment, FrostShare, OnceNonces};
use crate::signer::keystore::{Ed25519, KeyShare};
use crate::signer::quorum::OpenError;
use crate::signer::rules::{BytesToSign, Judge};
use crate::signer::wire::{Cause, Commit, Committed, SESSION_LIFE, ShareOf, Sign, Signed};
use crate::x402::Network;

/// The most commitments that may be out at once.
const COMMITMENTS_MAX: usize = 1024;

pub(super) struct FrostSide {
    share: FrostShare,
    judges: Vec<(Network, Allowed, Judge)>,
    nonces: Sessions<Commitment, OnceNonces>,
}

impl FrostSide {
    pub(super) fn open(share: &KeyShare, policy: &[Entry]) -> Result<Self, OpenError> {
        let share = FrostShare::open(share)?;
        let judge = |entry: &Entry| match &entry.rules {
            EntryRules::Svm(rules) => {
                let allowed = Allowed { name: entry.name.clone(), limits: entry.limits.clone() };
                Some((entry.network.clone(), allowed, Judge::new(rules.clone(), share.group())))
            }
            EntryRules::Evm(_) => None,
        };
        let judges = policy.iter().filter_map(judge).collect();
        Ok(Self { share, judges, nonces: Sessions::new(COMMITMENTS_MAX, SESSION_LIFE) })
    }

    pub(super) fn public(&self) -> ShareOf<Ed25519> {
        let share = &self.share;
        ShareOf { group: share.group(), identifier: share.identifier(), verifying_shares: share.verifying_shares() }
    }

    fn commit(&self) -> Result<Committed, Trouble> {
        let (nonces, commitment) = self.share.commit().map_err(|error| Trouble::Failed(Cause::Broken, error.what))?;
        let kept = self.nonces.keep(commitment.clone(), nonces);
        kept.map_err(|_| Trouble::Failed(Cause::Busy, format!("{COMMITMENTS_MAX} commitments are out")))?;
        Ok(Committed { commitment })
    }

    fn judge(&self, sign: &Sign) -> Result<(Judged<'_>, BytesToSign), Trouble> {
        let here = self.judges.iter().filter(|(network, ..)| *network == sign.network);
        let here = here.map(|(_, allowed, judge)| (allowed, judge));
        let (entry, bytes) = first_that_accepts(here, sign.network.as_str(), |judge| judge.judge(&sign.request))?;
        let digest = sha256(bytes.as_bytes());
        let kind = sign.request.kind();
        Ok((Judged { entry, kind, moves: Moves::of(&sign.request), digest }, bytes))
    }

    fn sign(&self, record: &Record, sign: &Sign) -> Result<Signed, Trouble> {
        let own = own(&sign.commitments, self.share.identifier())?;
        // Used up by being named, whatever comes of it.
        let nonces = self.nonces.take(own);
        let nonces = nonces
            .ok_or_else(|| Trouble::Failed(Cause::Stale, "the commitment is used, unknown or too old".to_owned()))?;
        let (judged, bytes) = self.judge(sign)?;
        record.authorize(&judged, sha256(&own.0))?;
        let part = self.share.sign(nonces, &sign.commitments, &bytes);
        part.map(|part| Signed { part }).map_err(Trouble::malformed)
    }
}

/// The commitment of this share among those that it is asked to sign with.
fn own(commitments: &BTreeMap<u16, Commitment>, identifier: u16) -> Result<&Commitment, Trouble> {
    let own = commitments.get(&identifier);
    own.ok_or_else(|| Trouble::malformed(format_args!("no commitment is that of share {identifier}")))
}

impl Cosigner {
    pub(super) fn commit(&self, _: &Commit) -> Result<Committed, Trouble> {
        self.frost()?.commit()
    }

    pub(super) fn sign(&self, sign: &Sign) -> Result<Signed, Trouble> {
        let record = &self.0.record;
        let signed = self.frost()?.sign(record, sign);
        if let Err(Trouble::Refused { rule, detail }) = &signed {
            record.refused(sign.network.as_str(), sign.request.kind(), rule, detail);
        }
        signed
    }

    fn frost(&self) -> Result<&FrostSide, Trouble> {
        self.0.frost.as_ref().ok_or_else(|| Trouble::malformed("this cosigner has no share on Ed25519"))
    }
}

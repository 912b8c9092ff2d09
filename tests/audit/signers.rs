//! The threshold keys sign checkpoints, by their own kind of request, and the verifier takes what they sign.

use turnpike::amount::Amount;
use turnpike::audit::checkpoint::{Checkpoint, RecordId, Signed};
use turnpike::audit::{EntryHash, Position};
use turnpike::clock::UnixMillis;
use turnpike::policy::{EvmPolicy, EvmRequest, Policy, SigningRequest};
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use turnpike::signer::ecdsa::EcdsaSigner;
use turnpike::signer::frost::FrostSigner;
use turnpike::signer::rules::evm::{EVM_KINDS, EvmRules};
use turnpike::signer::rules::{ComputeCaps, KINDS, Rules};
use turnpike::signer::{EvmSigner, Signer, SignerError};
use turnpike::x402::Key;
use turnpike::x402::network::SOLANA_DEVNET;

fn checkpoint() -> Checkpoint {
    let head = Position { seq: 12, hash: EntryHash([0xAB; 32]) };
    Checkpoint { record: RecordId([7; 16]), head, time: UnixMillis(1_764_368_899_123) }
}

fn rules(kinds: Vec<&'static str>) -> Rules {
    Rules {
        network: SOLANA_DEVNET.parse().unwrap(),
        pay_to: vec![Key([1; 32])],
        mints: vec![(USDC_DEVNET, TOKEN_PROGRAM)],
        treasury_owner: Key([2; 32]),
        deposit_max: 1,
        claim_max: 1,
        compute: ComputeCaps::default(),
        kinds,
    }
}

fn evm_rules(kinds: Vec<&'static str>) -> EvmRules {
    let amount = Amount::new(1);
    EvmRules { chain_id: 1, pay_to: Vec::new(), tokens: Vec::new(), channel_max: amount, claim_max: amount, kinds }
}

#[tokio::test]
async fn a_frost_signature_over_a_checkpoint_verifies() {
    let approve = || {
        let policy = Policy::unlimited(vec![Key([1; 32])]);
        policy.approve(SigningRequest::AuditCheckpoint(checkpoint()), Amount::ZERO).unwrap()
    };
    let signer = FrostSigner::ephemeral(rules(KINDS.to_vec())).unwrap();
    let signature = signer.sign(approve()).await.unwrap();
    let signed = Signed::Ed25519 { key: signer.public_key(), signature };
    assert!(signed.verifies(&checkpoint()));
    assert!(!signed.verifies(&Checkpoint { time: UnixMillis(0), ..checkpoint() }));
    let without = FrostSigner::ephemeral(rules(vec!["claim"])).unwrap();
    assert!(matches!(without.sign(approve()).await, Err(SignerError::Refused { rule: "kind", .. })));
    // It moves nothing, and nobody can say that it does.
    let policy = Policy::unlimited(Vec::new());
    assert!(policy.approve(SigningRequest::AuditCheckpoint(checkpoint()), Amount::new(1)).is_err());
}

#[tokio::test]
async fn a_threshold_ecdsa_signature_over_a_checkpoint_verifies() {
    let approve = || {
        let policy = EvmPolicy::unlimited(Vec::new());
        policy.approve(EvmRequest::AuditCheckpoint(checkpoint()), Amount::ZERO).unwrap()
    };
    let signer = EcdsaSigner::ephemeral(evm_rules(EVM_KINDS.to_vec())).unwrap();
    let signature = signer.sign(approve()).await.unwrap();
    let signed = Signed::Secp256k1 { address: signer.address(), signature };
    assert!(signed.verifies(&checkpoint()));
    assert!(!signed.verifies(&Checkpoint { record: RecordId([8; 16]), ..checkpoint() }));
}

//! Any two of three make a signature, on both curves, whether the coordinator holds a share or none.

use turnpike::audit::checkpoint::{Checkpoint, RecordId};
use turnpike::audit::{EntryHash, Position};
use turnpike::clock::UnixMillis;
use turnpike::scheme::evm::signature;
use turnpike::scheme::svm::verify_strict;
use turnpike::signer::{EvmRequest, EvmSigner as _, Signer as _, SigningRequest};

use crate::world::World;
use crate::{evm_requests, signer_requests};

/// Every kind of request of Solana networks, with what is signed of it.
fn requests(group: turnpike::x402::Key) -> Vec<(SigningRequest, Vec<u8>)> {
    let cast = signer_requests::Cast::new(group);
    let drafts = [
        cast.open(),
        cast.top_up(),
        cast.request_close(),
        cast.claim(4),
        cast.distribute(2),
        cast.close_with_voucher(900, 0),
        cast.close_without_voucher(),
    ];
    let mut requests: Vec<_> = drafts
        .iter()
        .map(|draft| {
            let request = cast.build(draft);
            let message = match &request {
                SigningRequest::Sponsor { transaction, .. }
                | SigningRequest::Claim { transaction, .. }
                | SigningRequest::Distribute { transaction, .. }
                | SigningRequest::Close { transaction, .. } => transaction.message().to_vec(),
                SigningRequest::Voucher { .. }
                | SigningRequest::CloseAuthorization { .. }
                | SigningRequest::AuditCheckpoint(_) => unreachable!(),
            };
            (request, message)
        })
        .collect();
    let channel = cast.channel(9);
    let voucher = SigningRequest::Voucher { channel, cumulative: 5, deposit: 10, expires_at: 1 };
    requests.push((voucher, turnpike::scheme::svm::program::voucher_message(&channel, 5, 1).to_vec()));
    let network = signer_requests::rules().network;
    let digest = turnpike::scheme::svm::program::close_digest(network.as_str(), &group, &channel, 5, 0, 60);
    let consent = SigningRequest::CloseAuthorization { network, channel, cumulative: 5, valid_before: 60 };
    requests.push((consent, digest.to_vec()));
    requests.push((SigningRequest::AuditCheckpoint(checkpoint()), checkpoint().message()));
    requests
}

fn checkpoint() -> Checkpoint {
    let head = Position { seq: 7, hash: EntryHash([3; 32]) };
    Checkpoint { record: RecordId([9; 16]), head, time: UnixMillis(1_800_000_000_000) }
}

#[tokio::test]
async fn every_kind_of_request_is_signed_on_solana_networks() {
    for (own, cosigners) in [(Some(1), vec![2, 3]), (Some(3), vec![1]), (None, vec![1, 2]), (None, vec![3, 1, 2])] {
        let world = World::new(&cosigners).await;
        let signer = world.signer(own);
        assert_eq!(signer.health(), Ok(()), "{own:?} {cosigners:?}");
        for (request, message) in requests(signer.public_key()) {
            let signed = signer.sign(signer_requests::approved(request.clone())).await;
            let signed = signed.unwrap_or_else(|error| panic!("{own:?} {cosigners:?} {}: {error}", request.kind()));
            assert!(verify_strict(&signer.public_key(), &message, &signed), "{own:?} {cosigners:?}");
        }
    }
}

#[tokio::test]
async fn every_kind_of_request_is_signed_on_evm_networks() {
    for (own, cosigners) in [(Some(1), vec![2, 3]), (Some(3), vec![1]), (None, vec![1, 2]), (None, vec![3, 1, 2])] {
        let world = World::new(&cosigners).await;
        let signer = world.evm_signer(own);
        assert_eq!(signer.health(), Ok(()), "{own:?} {cosigners:?}");
        let cast = evm_requests::Cast::new(signer.address());
        for request in [cast.batch(3), cast.refund(), cast.batch(100), EvmRequest::AuditCheckpoint(checkpoint())] {
            let signed = signer.sign(evm_requests::approved(request.clone())).await;
            let signed = signed.unwrap_or_else(|error| panic!("{own:?} {cosigners:?} {}: {error}", request.kind()));
            assert_eq!(signature::signer(&evm_requests::digest(&request), &signed), Some(signer.address()));
        }
    }
}

//! Whatever a client sends as payment: it is read or refused, and what is read writes and reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use turnpike::scheme::batch_settlement_evm::payload::EvmBatchPayload;
use turnpike::scheme::evm::eip712::{Domain, channel_id, voucher_digest};
use turnpike::scheme::evm::signature;
use turnpike::scheme::{batch_settlement_evm, exact_evm, upto_evm};
use turnpike::x402::evm::AnySignature;
use turnpike::x402::header;
use turnpike::x402::v1::PaymentPayloadV1;
use turnpike::x402::wire::{BatchPayload, PaymentPayload, UptoPayload, Value};

fuzz_target!(|data: &[u8]| {
    // Both as the header's own text, and as the JSON inside it: most random text is no base64.
    let wrapped = header::encode(&serde_value(data)).ok();
    for value in std::iter::once(data).chain(wrapped.as_ref().map(String::as_bytes)) {
        if let Ok(payment) = header::decode::<PaymentPayloadV1>(value) {
            let again = serde_json::to_value(&payment).expect("what was read can be written");
            assert_eq!(
                serde_json::from_value::<PaymentPayloadV1>(again).expect("what was written can be read"),
                payment
            );
            evm(payment.payload);
        }
        let Ok(payment) = header::decode::<PaymentPayload>(value) else { continue };
        let again = header::encode(&payment).expect("what was read can be written");
        if again.len() <= header::PAYMENT_HEADER_BYTES_MAX {
            header::decode::<PaymentPayload>(again.as_bytes()).expect("what was written can be read");
        }
        let _batch = turnpike::x402::wire::read_payload::<BatchPayload>(payment.payload.clone());
        let _upto = turnpike::x402::wire::read_payload::<UptoPayload>(payment.payload.clone());
        evm(payment.payload);
    }
});

/// What is read writes and reads the same, and no check of it panics.
fn evm(payload: Value) {
    if let Ok(read) = batch_settlement_evm::parse(&payload) {
        let written = serde_json::to_value(&read).expect("what was read can be written");
        assert_eq!(batch_settlement_evm::parse(&written).expect("what was written can be read"), read);
        let (EvmBatchPayload::Deposit { channel_config, voucher, .. }
        | EvmBatchPayload::Voucher { channel_config, voucher }
        | EvmBatchPayload::Refund { channel_config, voucher, .. }) = &read;
        let domain = Domain::batch_settlement(84_532);
        let digest = voucher_digest(&domain, &channel_id(&domain, channel_config), voucher.max_claimable_amount);
        if let AnySignature::Key(signature) = &voucher.signature {
            let _signer = signature::signer(&digest, signature);
        }
    }
    let _exact = exact_evm::parse(payload.clone());
    let _upto = upto_evm::parse(payload);
}

fn serde_value(data: &[u8]) -> Option<turnpike::x402::wire::Value> {
    turnpike::x402::wire::read_json(data).ok()
}

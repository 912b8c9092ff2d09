//! Whatever a client sends as payment: it is read or refused, and what is read writes and reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use turnpike::x402::header;
use turnpike::x402::wire::{BatchPayload, PaymentPayload, UptoPayload};

fuzz_target!(|data: &[u8]| {
    // Both as the header's own text, and as the JSON inside it: most random text is no base64.
    let wrapped = header::encode(&serde_value(data)).ok();
    for value in std::iter::once(data).chain(wrapped.as_ref().map(String::as_bytes)) {
        let Ok(payment) = header::decode::<PaymentPayload>(value) else { continue };
        let again = header::encode(&payment).expect("what was read can be written");
        if again.len() <= header::PAYMENT_HEADER_BYTES_MAX {
            header::decode::<PaymentPayload>(again.as_bytes()).expect("what was written can be read");
        }
        let _batch = turnpike::x402::wire::read_payload::<BatchPayload>(payment.payload.clone());
        let _upto = turnpike::x402::wire::read_payload::<UptoPayload>(payment.payload);
    }
});

fn serde_value(data: &[u8]) -> Option<turnpike::x402::wire::Value> {
    turnpike::x402::wire::read_json(data).ok()
}

//! Whatever a client sends as transaction: it is decoded whole or refused, and the decoded one is the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use turnpike::scheme::svm::program::{Call, ChannelAccount};
use turnpike::scheme::svm::transaction::Transaction;

fuzz_target!(|data: &[u8]| {
    if let Ok(transaction) = Transaction::decode(data) {
        assert_eq!(transaction.encode(), data, "decoding loses nothing");
        let signers = transaction.required_signers().len();
        assert!(signers >= 1 && signers <= transaction.keys().len());
        for instruction in transaction.instructions() {
            if let Ok(call) = Call::decode(&instruction.data) {
                assert!(instruction.data.starts_with(&call.encode()[..1]));
            }
        }
    }
    if let Ok(account) = ChannelAccount::decode(data) {
        assert_eq!(account.encode(), data, "decoding loses nothing");
    }
});

//! What both Solana schemes stand on: addresses, the payment-channels program's formats, and transactions.
//!
//! Source: `solana-foundation/payment-channels` (`docs/001`, `docs/003`), commit `3ffa4d67`.

pub mod acceptance;
pub mod program;
pub mod signature;
pub mod transaction;

pub use self::signature::verify_strict;
use crate::x402::Key;

/// Decodes an address that is written in this source.
macro_rules! address {
    ($name:ident, $text:literal, $doc:literal) => {
        #[doc = $doc]
        pub const $name: Key = Key(solana_address::Address::from_str_const($text).to_bytes());
    };
}

address!(PAYMENT_CHANNELS, "CHNLxYvVA28MJP9PrFuDXccuoGXAx7jBacfLEkahyGsX", "The payment-channels program.");
address!(SYSTEM_PROGRAM, "11111111111111111111111111111111", "The system program.");
address!(TOKEN_PROGRAM, "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA", "The SPL Token program.");
address!(TOKEN_2022_PROGRAM, "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb", "The Token-2022 program.");
address!(ATA_PROGRAM, "ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL", "The associated token account program.");
address!(MEMO_PROGRAM, "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr", "The SPL Memo program.");
address!(LIGHTHOUSE_PROGRAM, "L2TExMFKdjpN9kozasaurPirfHy9P8sbXoAN1qA3S95", "The Lighthouse assertion program.");
address!(COMPUTE_BUDGET_PROGRAM, "ComputeBudget111111111111111111111111111111", "The compute budget program.");
address!(ED25519_PROGRAM, "Ed25519SigVerify111111111111111111111111111", "The Ed25519 precompile.");
address!(RENT_SYSVAR, "SysvarRent111111111111111111111111111111111", "The rent sysvar.");
address!(INSTRUCTIONS_SYSVAR, "Sysvar1nstructions1111111111111111111111111", "The instructions sysvar.");
address!(USDC_MAINNET, "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", "USDC on Solana.");
address!(
    USDC_DEVNET,
    "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU",
    "USDC on Solana's devnet and testnet, and in the sandbox."
);
address!(
    TREASURY_MAINNET,
    "Cs2zdfUNonRdRGsiZUQQLdTxzxVvJZmgiX2mpLYKuEqP",
    "Who receives rounding dust on Solana's main cluster."
);

/// Who receives rounding dust wherever no owner is set: the program's own placeholder.
pub const TREASURY_PLACEHOLDER: Key = {
    let mut bytes = [0xBE; 32];
    let mut i = 1;
    while i < 32 {
        bytes[i] = 0xEF;
        i += 2;
    }
    Key(bytes)
};

/// The owner of the treasury account that the program insists on, on this network.
#[must_use]
pub fn treasury_owner(network: &crate::x402::Network) -> Key {
    if network.as_str() == crate::x402::network::SOLANA { TREASURY_MAINNET } else { TREASURY_PLACEHOLDER }
}

/// The program-derived address of `seeds` under `program`, with its bump.
#[must_use]
pub fn derive(seeds: &[&[u8]], program: &Key) -> (Key, u8) {
    let (address, bump) = solana_address::Address::find_program_address(seeds, &program.0.into());
    (Key(address.to_bytes()), bump)
}

/// The associated token account of `owner` for `mint`.
#[must_use]
pub fn associated_token_account(owner: &Key, mint: &Key, token_program: &Key) -> Key {
    derive(&[&owner.0, &token_program.0, &mint.0], &ATA_PROGRAM).0
}

/// Whether the bytes are a point of the curve, as the program's `open` asks of the voucher signer.
#[must_use]
pub fn is_on_curve(key: &Key) -> bool {
    solana_address::Address::from(key.0).is_on_curve()
}

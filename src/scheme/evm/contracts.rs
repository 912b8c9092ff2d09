//! Contracts that have the same address on every EVM network.
//!
//! Source: `scheme_batch_settlement_evm.md` ("Reference Implementation"), `scheme_exact_evm.md` and
//! `scheme_upto_evm.md` ("Annex"); Permit2 and Multicall3 from their own projects' lists of deployments.

use crate::x402::evm::Address;

/// `x402BatchSettlement`: holds the channels of `batch-settlement`.
pub const BATCH_SETTLEMENT: Address = Address::literal("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003");
/// `ERC3009DepositCollector`: takes a channel's deposits from tokens that know EIP-3009.
pub const EIP3009_COLLECTOR: Address = Address::literal("0x4020806089470a89826cB9fB1f4059150b550004");
/// `Permit2DepositCollector`: takes a channel's deposits from any token.
pub const PERMIT2_COLLECTOR: Address = Address::literal("0x4020425FAf3B746C082C2f942b4E5159887B0005");
/// Uniswap's Permit2.
pub const PERMIT2: Address = Address::literal("0x000000000022D473030F116dDEE9F6B43aC78BA3");
/// `x402ExactPermit2Proxy`: the spender of scheme `exact`.
pub const EXACT_PERMIT2_PROXY: Address = Address::literal("0x402085c248EeA27D92E8b30b2C58ed07f9E20001");
/// `x402UptoPermit2Proxy`: the spender of scheme `upto`.
pub const UPTO_PERMIT2_PROXY: Address = Address::literal("0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");
/// Multicall3: many reads in one call.
pub const MULTICALL3: Address = Address::literal("0xcA11bde05977b3631167028862bE2a173976CA11");

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrong digit would not have the checksum that the specification's text has.
    #[test]
    fn the_addresses_are_those_of_the_specifications() {
        let table = [
            (BATCH_SETTLEMENT, "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"),
            (EIP3009_COLLECTOR, "0x4020806089470a89826cB9fB1f4059150b550004"),
            (PERMIT2_COLLECTOR, "0x4020425FAf3B746C082C2f942b4E5159887B0005"),
            (PERMIT2, "0x000000000022D473030F116dDEE9F6B43aC78BA3"),
            (EXACT_PERMIT2_PROXY, "0x402085c248EeA27D92E8b30b2C58ed07f9E20001"),
            (UPTO_PERMIT2_PROXY, "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002"),
            (MULTICALL3, "0xcA11bde05977b3631167028862bE2a173976CA11"),
        ];
        for (address, text) in table {
            assert_eq!(address.to_string(), text);
        }
    }
}

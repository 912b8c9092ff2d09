//! Why a call reverted: the contracts' own errors by name, texts of `require`, and panics.
//!
//! The settlement contract's error names are those that its callers meet; npm's `@x402/evm` 2.27.0 carries the proxies'
//! errors and none of the settlement contract's. An error that is not in the table is told by its selector. What a
//! contract says is shortened and put on one line: it may be anybody's contract.

use std::fmt;

use alloy_sol_types::{GenericContractError, SolInterface, sol};

/// The longest text of a revert that is kept.
const TEXT_BYTES_MAX: usize = 200;

mod contract {
    use super::sol;

    sol! {
        /// Every error that is known by name: of the settlement contract, Permit2, its proxies, and tokens.
        interface Known {
            error InvalidChannel();
            error WithdrawDelayOutOfRange();
            error ZeroDeposit();
            error InvalidCollector();
            error DepositOverflow();
            error DepositCollectionFailed();
            error EmptyBatch();
            error NotAuthorizedToClaim();
            error NotReceiverAuthorizer();
            error ClaimExceedsCeiling();
            error ClaimExceedsBalance();
            error InvalidSignature();
            error NothingToWithdraw();
            error WithdrawalAlreadyPending();
            error WithdrawAmountExceedsAvailable();
            error NotAuthorizedToFinalizeWithdraw();
            error WithdrawalNotPending();
            error WithdrawDelayNotElapsed();
            error NotAuthorizedToRefund();
            error ZeroRefund();
            error InvalidRefundNonce();

            error AmountExceedsPermitted();
            error InvalidDestination();
            error InvalidOwner();
            error InvalidPermit2Address();
            error PaymentTooEarly();
            error Permit2612AmountMismatch();
            error ReentrancyGuardReentrantCall();
            error UnauthorizedFacilitator();

            error SignatureExpired(uint256 signatureDeadline);
            error InvalidAmount(uint256 maxAmount);
            error InvalidNonce();
            error InvalidSigner();
            error InvalidContractSignature();
            error InvalidSignatureLength();

            error ECDSAInvalidSignature();
            error ECDSAInvalidSignatureLength(uint256 length);
            error ECDSAInvalidSignatureS(bytes32 s);
            error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);
            error ERC20InsufficientAllowance(address spender, uint256 allowance, uint256 needed);
            error SafeERC20FailedOperation(address token);
        }
    }
}

/// Why a call reverted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revert {
    name: Option<&'static str>,
    text: String,
}

impl Revert {
    /// Reads what a contract gave back as it reverted.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        let Some(selector) = data.first_chunk::<4>() else {
            return Self::said("no reason was given");
        };
        if let Some(name) = contract::Known::KnownErrors::name_by_selector(*selector) {
            return Self { name: Some(name), text: name.to_owned() };
        }
        match GenericContractError::abi_decode(data) {
            Ok(GenericContractError::Revert(revert)) => Self::said(&revert.reason),
            Ok(GenericContractError::Panic(panic)) => Self::said(&format!("panic: {panic}")),
            Err(_) => {
                let [a, b, c, d] = selector;
                Self::said(&format!("an unknown error with selector 0x{a:02x}{b:02x}{c:02x}{d:02x}"))
            }
        }
    }

    /// A revert of which only a text is known.
    #[must_use]
    pub fn said(text: &str) -> Self {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let text = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self { name: None, text }
    }

    /// The error's name, where the contract gave one that is known.
    #[must_use]
    pub const fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// What was said, fit to be shown.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Revert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the call reverted: {}", self.text)
    }
}

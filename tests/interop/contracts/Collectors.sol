// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ICollector, IToken} from "./BatchSettlement.sol";
import {IPermit2, IERC20Permit, PERMIT2} from "./Permit2.sol";

/// Deposits by EIP-3009, for tests; its code is set at 0x4020806089470a89826cB9fB1f4059150b550004. `collectorData` is
/// `(uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature)`. The authorization's nonce names the
/// channel, so that nobody can send the payer's tokens to another one.
contract Erc3009Collector is ICollector {
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata collectorData)
        external
    {
        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(collectorData, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));
        IERC3009(token).receiveWithAuthorization(
            payer, address(this), amount, validAfter, validBefore, nonce, signature
        );
        require(IToken(token).transfer(msg.sender, amount), "transfer failed");
    }
}

/// Deposits by Permit2, for tests; its code is set at 0x4020425FAf3B746C082C2f942b4E5159887B0005. `collectorData` is
/// `(uint256 nonce, uint256 deadline, bytes signature, bytes permit)`; the last may be empty or hold an EIP-2612 permit
/// for Permit2, `(uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s)`. The signed witness names the
/// channel.
contract Permit2Collector is ICollector {
    bytes32 private constant WITNESS_TYPEHASH = keccak256("DepositWitness(bytes32 channelId)");
    string private constant WITNESS_TYPE =
        "DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)";

    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata collectorData)
        external
    {
        (uint256 nonce, uint256 deadline, bytes memory signature, bytes memory permit) =
            abi.decode(collectorData, (uint256, uint256, bytes, bytes));
        if (permit.length > 0) _approve(payer, token, permit);
        PERMIT2.permitWitnessTransferFrom(
            IPermit2.PermitTransferFrom(IPermit2.TokenPermissions(token, amount), nonce, deadline),
            IPermit2.SignatureTransferDetails(msg.sender, amount),
            payer,
            keccak256(abi.encode(WITNESS_TYPEHASH, channelId)),
            WITNESS_TYPE,
            signature
        );
    }

    function _approve(address payer, address token, bytes memory permit) private {
        (uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s) =
            abi.decode(permit, (uint256, uint256, uint8, bytes32, bytes32));
        IERC20Permit(token).permit(payer, address(PERMIT2), value, deadline, v, r, s);
    }
}

interface IERC3009 {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// Who signed a digest, by the rules that the channel contract and USDC apply: 65 bytes `r || s || v`, `s` in the lower
/// half of the curve's order, `v` 27 or 28, and ERC-1271 where the signer is a contract.
library Signatures {
    /// Half of secp256k1's order: a higher `s` is the malleable twin of a valid signature.
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    /// The account that signed `digest`, or zero where the signature is not one that the rules allow.
    function recover(bytes32 digest, bytes memory signature) internal pure returns (address) {
        if (signature.length != 65) return address(0);
        (bytes32 r, bytes32 s, uint8 v) = split(signature);
        if (uint256(s) > HALF_ORDER) return address(0);
        if (v != 27 && v != 28) return address(0);
        return ecrecover(digest, v, r, s);
    }

    /// Whether `signer` signed `digest`: an account with code is asked by ERC-1271, any other is recovered.
    function isBy(address signer, bytes32 digest, bytes memory signature) internal view returns (bool) {
        if (signer.code.length > 0) return isByContract(signer, digest, signature);
        return signer != address(0) && recover(digest, signature) == signer;
    }

    /// Whether the contract `signer` answers with ERC-1271's magic value. One that reverts or answers otherwise did
    /// not.
    function isByContract(address signer, bytes32 digest, bytes memory signature) internal view returns (bool) {
        bytes4 magic = IERC1271.isValidSignature.selector;
        (bool answered, bytes memory answer) = signer.staticcall(abi.encodeWithSelector(magic, digest, signature));
        return answered && answer.length >= 32 && bytes32(answer) == bytes32(magic);
    }

    /// The parts of a signature of 65 bytes, unchecked.
    function split(bytes memory signature) internal pure returns (bytes32 r, bytes32 s, uint8 v) {
        assembly {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
            v := byte(0, mload(add(signature, 0x60)))
        }
    }
}

interface IERC1271 {
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4);
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Signatures} from "./Signatures.sol";

/// A smart contract wallet, for tests: its signature by ERC-1271 is its owner's, and its owner may have it call
/// anything.
contract TestWallet {
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        bool signed = Signatures.recover(digest, signature) == owner;
        return signed ? this.isValidSignature.selector : bytes4(0xffffffff);
    }

    function execute(address target, bytes calldata callData) external returns (bytes memory) {
        require(msg.sender == owner, "not the owner");
        (bool done, bytes memory result) = target.call(callData);
        if (!done) {
            assembly {
                revert(add(result, 0x20), mload(result))
            }
        }
        return result;
    }
}

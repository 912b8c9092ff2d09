use proptest::prelude::*;

use super::*;

/// The examples of EIP-55.
const CHECKSUMMED: [&str; 4] = [
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
];

#[test]
fn addresses_are_written_with_their_checksum_and_read_in_any_case() {
    for text in CHECKSUMMED {
        let address: Address = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(text.to_lowercase().parse(), Ok(address));
        assert_eq!(format!("0x{}", text[2..].to_uppercase()).parse(), Ok(address));
        assert_eq!(Address::parse_checked(text), Ok(address));
        assert_eq!(Address::parse_checked(&text.to_lowercase()), Ok(address));
        let mut wrong = text.replacen('A', "a", 1);
        if wrong == text {
            wrong = text.replacen('b', "B", 1);
        }
        assert_eq!(wrong.parse(), Ok(address), "read from the wire");
        assert_eq!(Address::parse_checked(&wrong), Err(HexError::Checksum));
    }
    assert_eq!(Address::ZERO.to_string(), "0x0000000000000000000000000000000000000000");
}

#[test]
fn other_texts_are_refused() {
    let text = &CHECKSUMMED[0][2..];
    let table = [
        String::new(),
        "0x".to_owned(),
        text.to_owned(),
        format!("0X{text}"),
        format!("0x{}", &text[1..]),
        format!("0x{text}0"),
        format!("0x0x{}", &text[2..]),
        format!("0x0x{text}"),
        format!(" 0x{text}"),
        format!("0x{}g", &text[1..]),
        format!("0x{}é", &text[2..]),
    ];
    for bad in table {
        assert_eq!(bad.parse::<Address>(), Err(HexError::NotHex(40)), "{bad:?}");
        assert_eq!(bad.parse::<B256>(), Err(HexError::NotHex(64)), "{bad:?}");
        assert_eq!(bad.parse::<EvmSignature>(), Err(HexError::NotHex(130)), "{bad:?}");
    }
    for bad in ["", "00", "0x0", "0x0x00", "0xgg", "0X00"] {
        assert_eq!(bad.parse::<Bytes>(), Err(HexError::NotBytes), "{bad:?}");
        assert_eq!(bad.parse::<AnySignature>(), Err(HexError::NotBytes), "{bad:?}");
    }
}

#[test]
fn a_signature_is_a_keys_at_65_bytes_and_has_a_limit() {
    let of = |bytes: usize| format!("0x{}", "ab".repeat(bytes)).parse::<AnySignature>();
    assert!(matches!(of(65), Ok(AnySignature::Key(_))));
    for contract in [0, 64, 66, SIGNATURE_BYTES_MAX] {
        let signature = of(contract).unwrap();
        assert!(matches!(signature, AnySignature::Contract(_)));
        assert_eq!(signature.as_slice().len(), contract);
    }
    assert_eq!(of(SIGNATURE_BYTES_MAX + 1), Err(HexError::NotBytes));
}

#[test]
fn numbers_are_read_as_the_reference_reads_them() {
    let number = |text: &str| text.parse::<U256>();
    assert_eq!(number("0"), Ok(U256::ZERO));
    assert_eq!(number("0x0"), Ok(U256::ZERO));
    assert_eq!(number("1740672154"), Ok(U256::from(1_740_672_154_u64)));
    assert_eq!(number("0xff"), Ok(U256::from(255_u64)));
    assert_eq!(number("007"), Ok(U256::from(7_u64)));
    let max = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
    assert_eq!(number(max), Ok(U256::from(B256([0xFF; 32]))));
    assert_eq!(number(max).unwrap().to_string(), max);
    let bad = ["", "0x", "-1", "+1", "1e3", "1.0", " 1", "0x0x1", "0b1", "x", "é"];
    let too_large = ["115792089237316195423570985008687907853269984665640564039457584007913129639936"];
    for bad in bad.into_iter().chain(too_large).chain([&*format!("0x1{}", "0".repeat(64)), &*"0".repeat(79)]) {
        assert_eq!(number(bad), Err(U256Error), "{bad:?}");
    }
    assert_eq!(U256::from(u64::MAX).to_u64(), Some(u64::MAX));
    assert_eq!(U256::from(u128::from(u64::MAX) + 1).to_u64(), None);
}

#[test]
fn keccak_is_the_one_of_ethereum() {
    let empty = "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470";
    assert_eq!(keccak256(b"").to_string(), empty);
    assert_eq!(keccak256_words([]).to_string(), empty);
    assert_eq!(keccak256_words([B256::ZERO; 2]), keccak256(&[0; 64]));
}

proptest! {
    #[test]
    fn texts_come_back(bytes in any::<[u8; 32]>(), end in any::<[u8; 33]>(), small in any::<u128>()) {
        let word = B256(bytes);
        prop_assert_eq!(word.to_string().parse(), Ok(word));
        prop_assert_eq!(serde_json::from_str::<B256>(&serde_json::to_string(&word).unwrap()).unwrap(), word);
        let number = U256::from(word);
        prop_assert_eq!(number.to_string().parse(), Ok(number));
        prop_assert_eq!(word.to_string().parse(), Ok(number));
        prop_assert_eq!(U256::from(small).to_string(), small.to_string());
        let mut signature = [0; 65];
        signature[..32].copy_from_slice(&bytes);
        signature[32..].copy_from_slice(&end);
        prop_assert_eq!(EvmSignature(signature).to_string().parse(), Ok(EvmSignature(signature)));
        let address = Address(bytes[..20].try_into().unwrap());
        prop_assert_eq!(Address::parse_checked(&address.to_string()), Ok(address));
        prop_assert_eq!(&address.word().0[12..], &address.0);
    }

    #[test]
    fn numbers_are_ordered_as_numbers(a in any::<u128>(), b in any::<u128>()) {
        prop_assert_eq!(U256::from(a).cmp(&U256::from(b)), a.cmp(&b));
    }

    #[test]
    fn no_text_panics(text in "(0x)?.{0,70}|0x[0-9a-fA-F]{0,140}|[0-9]{0,80}") {
        _ = text.parse::<Address>();
        _ = Address::parse_checked(&text);
        _ = text.parse::<B256>();
        _ = text.parse::<U256>();
        _ = text.parse::<AnySignature>();
    }
}

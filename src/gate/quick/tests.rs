//! Whatever is recognized, the general way reads the same; and the plain payment is recognized.

use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::challenge::Challenges;
use super::super::evm::Served;
use super::super::route::{EvmScheme, Offer, Pack, Payee, Pricing, Route};
use super::*;
use crate::amount::{Amount, Asset};
use crate::ledger::channel::{ChannelTerms, Seller, Terms};
use crate::scheme::batch_settlement_evm::payload::EvmBatchPayload;
use crate::scheme::evm::{EvmTerms, TransferMethod, testing};
use crate::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use crate::scheme::{batch_settlement_evm, batch_settlement_svm};
use crate::x402::Key;
use crate::x402::evm::{Address, B256, EvmSignature};
use crate::x402::key::Signature;
use crate::x402::network::SOLANA_DEVNET;
use crate::x402::payment_identifier;
use crate::x402::wire::{BatchPayload, PaymentPayload};

fn address(seed: u8) -> Key {
    Key(SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes())
}

fn svm_seller() -> Arc<Seller> {
    Arc::new(Seller {
        network: SOLANA_DEVNET.parse().unwrap(),
        asset: Arc::new(Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: address(1),
        fee_payer: address(2),
        receiver_authorizer: address(2),
        withdraw_delay: 3600,
        treasury_owner: address(3),
    })
}

/// A route that is paid on both families of networks, and on one of them once too.
fn prepared() -> Arc<Prepared> {
    let evm = Arc::new(testing::seller(TransferMethod::Eip3009));
    let offer = |payee, amount: u64| Offer {
        payee,
        amount: amount.into(),
        min_deposit: Some(Amount::new(20_000)),
        max_timeout_seconds: 300,
        memo: Some("a memo".into()),
    };
    let offers = vec![
        offer(Payee::Svm(svm_seller()), 1000),
        offer(Payee::Evm(Arc::clone(&evm), EvmScheme::BatchSettlement), 1000),
        offer(Payee::Evm(evm, EvmScheme::Exact), 1000),
    ];
    // Beside the price of one call, that of several.
    let all = offers.iter().map(|one| Offer { amount: 4000_u64.into(), ..one.clone() }).collect();
    let pack = Pack { calls: 5, lifetime: Duration::from_secs(60), offers: all };
    let route = Arc::new(Route {
        name: "/quote".into(),
        host: None,
        methods: Vec::new(),
        path: "/quote".into(),
        pricing: Pricing::Fixed(offers),
        upstream: None,
        timeout: None,
        description: None,
        mime_type: None,
        policy: None,
        scope: "/quote".into(),
        pack: Some(Arc::new(pack)),
    });
    let extensions = Map::from_iter([(payment_identifier::NAME.to_owned(), payment_identifier::declaration())]);
    let served = [(testing::seller(TransferMethod::Eip3009).network, Served::default())];
    Challenges::new(extensions, served.into()).of(&route)
}

/// A payment of each family, as a client writes it that echoes what it was offered.
fn payments(prepared: &Prepared) -> [Value; 2] {
    let required = prepared.required("http://a/quote", "payment_required", &|_| None, None).v2;
    let svm = Terms::derive(svm_seller(), address(7), address(8), 42, 341_000_000);
    let seller = Arc::new(testing::seller(TransferMethod::Eip3009));
    let evm = EvmTerms::derive(seller, Address([7; 20]), Address([8; 20]), B256([42; 32]));
    let payloads = [
        json!({
            "type": "voucher",
            "channelConfig": svm.config(),
            "voucher": {
                "channelId": svm.id, "maxClaimableAmount": "5000", "expiresAt": 0, "signature": Signature([9; 64]),
            },
        }),
        json!({
            "type": "voucher",
            "channelConfig": evm.config(),
            "voucher": {
                "channelId": evm.id(), "maxClaimableAmount": "5000", "signature": EvmSignature([9; 65]),
            },
        }),
    ];
    let mut offers = required.accepts.iter();
    payloads.map(|payload| {
        json!({
            "x402Version": 2,
            "resource": required.resource,
            "accepted": offers.next().unwrap(),
            "payload": payload,
            "extensions": required.extensions,
        })
    })
}

/// Asserts that the general way reads what was recognized; says whether anything was.
fn agrees(prepared: &Arc<Prepared>, text: &str) -> bool {
    let Some(quick) = read(prepared, text.as_bytes()) else { return false };
    let payment: PaymentPayload = serde_json::from_str(text).unwrap();
    assert_eq!(payment.x402_version, 2, "{text}");
    let Ok(offer) = prepared.select(&payment.accepted, &payment.extensions) else { panic!("no such offer: {text}") };
    assert!(Arc::ptr_eq(&offer, &quick.offer), "{text}");
    assert_eq!(payment_identifier::id(&payment.extensions), Ok(None), "{text}");
    match quick.voucher {
        QuickVoucher::Svm(paid) => {
            let (channel_config, voucher) = *paid;
            let general = batch_settlement_svm::parse(payment.payload).unwrap();
            assert_eq!(general, BatchPayload::Voucher { channel_config, voucher }, "{text}");
        }
        QuickVoucher::Evm(paid) => {
            let (channel_config, voucher) = *paid;
            let general = batch_settlement_evm::parse(&payment.payload).unwrap();
            assert_eq!(general, EvmBatchPayload::Voucher { channel_config, voucher }, "{text}");
        }
    }
    true
}

#[test]
fn the_plain_payment_is_recognized_whatever_the_client_adds() {
    let prepared = prepared();
    for payment in payments(&prepared) {
        assert!(agrees(&prepared, &payment.to_string()));
        let mut more = payment.clone();
        more["accepted"]["extra"]["recentSlot"] = json!(7);
        more["accepted"]["extra"]["note"] = json!({ "a": [1, null] });
        more["note"] = json!("x");
        assert!(agrees(&prepared, &more.to_string()));
        for absent in ["resource", "extensions"] {
            let mut less = payment.clone();
            less.as_object_mut().unwrap().remove(absent);
            assert!(agrees(&prepared, &less.to_string()), "{absent}");
        }
        let mut escaped = payment.clone();
        escaped["resource"]["url"] = json!("http://a/\"quote\"\n");
        assert!(agrees(&prepared, &escaped.to_string()));
    }
}

#[test]
fn what_asks_for_more_goes_the_general_way() {
    type Change = fn(&mut Value);
    let changes: &[Change] = &[
        |payment| payment["x402Version"] = json!(1),
        |payment| payment["extensions"][payment_identifier::NAME]["info"]["id"] = json!("pay_7d5d747be160"),
        |payment| payment["extensions"] = json!({}),
        |payment| payment["extensions"] = Value::Null,
        |payment| payment["resource"] = json!(7),
        |payment| payment["accepted"]["amount"] = json!("999"),
        |payment| payment["accepted"]["amount"] = json!("4000"),
        |payment| payment["accepted"]["payTo"] = json!("other"),
        |payment| payment["accepted"]["maxTimeoutSeconds"] = json!(301),
        |payment| payment["accepted"]["extra"]["withdrawDelay"] = json!("3600"),
        |payment| payment["accepted"]["scheme"] = json!("exact"),
        |payment| payment["payload"]["type"] = json!("refund"),
        |payment| payment["payload"]["type"] = json!("deposit"),
        |payment| payment["payload"]["voucher"]["signature"] = json!("x"),
    ];
    let prepared = prepared();
    for payment in payments(&prepared) {
        for (number, change) in changes.iter().enumerate() {
            let mut changed = payment.clone();
            change(&mut changed);
            assert!(read(&prepared, changed.to_string().as_bytes()).is_none(), "change {number}: {changed}");
        }
    }
    let [mut svm, _] = payments(&prepared);
    svm["accepted"]["extra"]["paymentFlow"] = json!("authorization");
    assert!(read(&prepared, svm.to_string().as_bytes()).is_none(), "it may say something that is not offered");
    let [mut svm, _] = payments(&prepared);
    svm["payload"]["authorization"] = Value::Null;
    assert!(read(&prepared, svm.to_string().as_bytes()).is_none(), "it belongs to vouchers that are not offered");
}

/// What a thread reads that has read other texts before, and what one reads that has not.
fn reads_the_same(again: &mut Again, prepared: &Arc<Prepared>, text: &str) -> bool {
    let known = std::cell::Cell::new(true);
    let anew = |prepared: &Prepared, json: &[u8]| {
        known.set(false);
        read_anew(prepared, json)
    };
    let quick = again.read(prepared, text.as_bytes(), anew);
    match (&quick, read_anew(prepared, text.as_bytes())) {
        (Some(quick), Some(anew)) => {
            assert!(Arc::ptr_eq(&quick.offer, &anew.offer), "{text}");
            assert_eq!(quick.voucher, anew.voucher, "{text}");
        }
        (None, None) => {}
        (quick, _) => panic!("{} {text}", quick.is_some()),
    }
    known.get()
}

#[test]
fn the_next_payment_of_a_channel_is_not_read_anew() {
    let prepared = prepared();
    for mut payment in payments(&prepared) {
        let mut again = Again::new();
        let mut pay = |payment: &mut Value, total: u32, signature: &str| {
            payment["payload"]["voucher"]["maxClaimableAmount"] = json!(total.to_string());
            payment["payload"]["voucher"]["signature"] = json!(signature);
            reads_the_same(&mut again, &prepared, &payment.to_string())
        };
        let signatures = match payment["payload"]["voucher"]["signature"].as_str().unwrap() {
            evm if evm.starts_with("0x") => [7, 8, 7, 9].map(|byte| EvmSignature([byte; 65]).to_string()),
            _ => [7, 8, 7, 9].map(|byte| Signature([byte; 64]).to_string()),
        };
        let seen: Vec<_> = [6000, 7000, 8000, 123_456_789]
            .into_iter()
            .zip(&signatures)
            .map(|(total, signature)| pay(&mut payment, total, signature))
            .collect();
        assert_eq!(seen, [false, false, true, true]);
        for wrong in ["", "x", "0y", "\"", "\\", "é\n"] {
            assert!(!pay(&mut payment, 9000, wrong), "{wrong}");
        }
        // Something else is different: it is read, and known from then on.
        payment["accepted"]["extra"]["recentSlot"] = json!(7);
        assert!(!pay(&mut payment, 9000, &signatures[0]));
        assert!(pay(&mut payment, 10_000, &signatures[1]));
        // Another route's challenge has other offers, and is told apart.
        let other = self::prepared();
        assert!(!reads_the_same(&mut again, &other, &payment.to_string()));
        assert!(!reads_the_same(&mut again, &other, &payment.to_string()));
        assert!(reads_the_same(&mut again, &prepared, &payment.to_string()));
        assert!(reads_the_same(&mut again, &other, &payment.to_string()));
        // What is asked for may differ each time, where it is plain text.
        for (url, known) in [("http://a/quote/BTC?n=1", true), ("é", true), ("", true), ("\\", false), ("a\nb", false)]
        {
            let mut elsewhere = payment.clone();
            elsewhere["resource"]["url"] = json!(url);
            assert_eq!(reads_the_same(&mut again, &prepared, &elsewhere.to_string()), known, "{url}");
        }
        for broken in ["\u{1}", "\"", "\",\"url\":\""] {
            let text = payment.to_string().replace("http://a/quote", broken);
            assert!(!reads_the_same(&mut again, &prepared, &text), "{broken}");
        }
        // What is said twice is not read at all, and what follows is.
        let text = payment.to_string();
        let twice = text.replacen("\"signature\":", "\"signature\":\"1\",\"signature\":", 1);
        assert!(!reads_the_same(&mut again, &prepared, &twice));
        assert!(!reads_the_same(&mut again, &prepared, &format!("{text} {{}}")));
    }
}

/// Keeping a text takes half as long again as reading it, so where it is of no use it is done ever more seldom, and where
/// it is of use again it comes back.
#[test]
fn texts_that_always_differ_are_kept_seldom() {
    let prepared = prepared();
    let [mut payment, _] = payments(&prepared);
    let mut again = Again::new();
    let mut pay = |slot: u32| {
        payment["accepted"]["extra"]["recentSlot"] = json!(slot);
        reads_the_same(&mut again, &prepared, &payment.to_string())
    };
    // How many of the same it takes until one is not read anew, after some that differ.
    let mut until_known = |differing: std::ops::Range<u32>| {
        let last = differing.end;
        assert!(!differing.into_iter().any(&mut pay));
        (1..=200).find(|_| pay(last))
    };
    assert_eq!(until_known(0..2), Some(2));
    // After 1, 2, 4 and so on up to 64 that are not kept, and as many again.
    let seldom = until_known(1000..1300);
    assert!(seldom.is_some_and(|payments| (3..=66).contains(&payments)), "{seldom:?}");
    // What was of use once is at hand again.
    let soon = until_known(2000..2001);
    assert!(soon.is_some_and(|payments| payments < 4), "{soon:?}");
}

/// The places of all values in a tree.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    if let Value::Object(members) = value {
        members.iter().for_each(|(name, member)| places(member, &format!("{here}/{name}"), found));
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<u32>().prop_map(|number| Value::from(number.to_string())),
        "[a-z\"\\\\é]{0,8}".prop_map(Value::from),
        Just(json!({})),
        Just(json!([1])),
    ]
}

proptest! {
    /// With values put in the place of others, members taken out, said twice in two ways, and spaces between them.
    #[test]
    fn what_is_recognized_is_read_the_same_by_the_general_way(
        family in 0..2_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(any_value())), 0..3),
        twice in prop::option::of((any::<prop::sample::Index>(), any_value(), any::<bool>())),
        spaced in any::<bool>(),
    ) {
        let prepared = prepared();
        let mut payment = payments(&prepared)[family].clone();
        let mut again = Again::new();
        for _ in 0..3 {
            let before = if spaced { serde_json::to_string_pretty(&payment).unwrap() } else { payment.to_string() };
            reads_the_same(&mut again, &prepared, &before);
        }
        for (place, value) in changes {
            let mut found = Vec::new();
            places(&payment, "", &mut found);
            let place = place.get(&found);
            let Some((parent, name)) = place.rsplit_once('/') else { continue };
            let Some(members) = payment.pointer_mut(parent).and_then(Value::as_object_mut) else { continue };
            match value {
                Some(value) => _ = members.insert(name.to_owned(), value),
                None => _ = members.remove(name),
            }
        }
        let mut text = if spaced { serde_json::to_string_pretty(&payment).unwrap() } else { payment.to_string() };
        if let Some((at, value, before)) = twice {
            // Somewhere a member begins; said once more there, before or behind itself.
            let members: Vec<_> = text.match_indices("\":").map(|(end, _)| end).collect();
            if !members.is_empty() {
                let end = *at.get(&members);
                let start = text[..end].rfind('"').unwrap();
                let name = text[start..=end].to_owned();
                let again = format!("{name}:{value},");
                if before {
                    text.insert_str(start, &again);
                } else {
                    let open = text[..start].rfind('{').unwrap() + 1;
                    text.insert_str(open, &again);
                }
            }
        }
        let _recognized = agrees(&prepared, &text);
        reads_the_same(&mut again, &prepared, &text);
        reads_the_same(&mut again, &prepared, &text);
    }
}

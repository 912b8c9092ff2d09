//! A cosigner that is gone, slow, restarted or lying is left out and named; two that are gone are waited for.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;
use turnpike::scheme::evm::signature;
use turnpike::signer::cosigner::policy::Limits;
use turnpike::signer::remote::{RemoteEvmSigner, RemoteSigner};
use turnpike::signer::wire::{Begin, Call, Commit, Committed, Hello, Reply, Sign, Signed};
use turnpike::signer::{EvmSigner as _, Signer as _, SignerError};

use crate::world::{Lie, World};
use crate::{evm_requests, signer_requests};

async fn sign(signer: &RemoteSigner) -> Result<(), SignerError> {
    let cast = signer_requests::Cast::new(signer.public_key());
    signer.sign_request(&cast.build(&cast.claim(2))).await.map(|_| ())
}

async fn sign_evm(signer: &RemoteEvmSigner) -> Result<(), SignerError> {
    let request = evm_requests::Cast::new(signer.address()).batch(2);
    let signed = signer.sign_request(&request).await?;
    assert_eq!(signature::signer(&evm_requests::digest(&request), &signed), Some(signer.address()));
    Ok(())
}

fn no_quorum(result: Result<(), SignerError>) -> String {
    match result {
        Err(SignerError::NoQuorum(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_that_is_gone_is_left_out_and_is_back_after_its_restart() {
    for own in [Some(1), None] {
        let mut world = World::new(if own.is_some() { &[2, 3] } else { &[1, 2, 3] }).await;
        let (signer, evm) = (world.signer(own), world.evm_signer(own));
        for place in 0..world.nodes.len() {
            world.nodes[place].cut().await;
            assert_eq!(sign(&signer).await, Ok(()), "{own:?} without {place}");
            assert_eq!(sign_evm(&evm).await, Ok(()), "{own:?} without {place}");
            assert_eq!(signer.health(), Ok(()));
            world.nodes[place].start().await;
            assert_eq!(sign(&signer).await, Ok(()), "{own:?} with {place}");
            assert_eq!(sign_evm(&evm).await, Ok(()), "{own:?} with {place}");
        }
    }
}

#[tokio::test]
async fn one_that_says_nothing_is_not_waited_for() {
    let mut world = World::new(&[2, 3]).await;
    let (signer, evm) = (world.signer(Some(1)), world.evm_signer(Some(1)));
    for place in [0, 1] {
        world.nodes[place].stall().await;
        assert_eq!(sign(&signer).await, Ok(()));
        assert_eq!(sign_evm(&evm).await, Ok(()));
        world.nodes[place].start().await;
    }
}

#[tokio::test]
async fn two_that_are_gone_are_told_and_waited_for() {
    let mut world = World::new(&[2, 3]).await;
    let (signer, evm) = (world.signer(Some(1)), world.evm_signer(Some(1)));
    for node in &mut world.nodes {
        node.cut().await;
    }
    for why in [no_quorum(sign(&signer).await), no_quorum(sign_evm(&evm).await)] {
        assert!(why.contains("cosigner-2") && why.contains("cosigner-3"), "{why}");
    }
    assert!(signer.health().is_err() && evm.health().is_err());
    for number in [2, 3] {
        assert!(world.faults(number, "unreachable") > 0);
        assert_eq!(world.telemetry.cosigner_up.with_label_values(&[&format!("cosigner-{number}")]).get(), 0);
    }
    world.nodes[1].start().await;
    assert_eq!(sign(&signer).await, Ok(()), "nothing has to be done here");
    assert_eq!(sign_evm(&evm).await, Ok(()));
    assert_eq!(signer.health(), Ok(()));
}

#[tokio::test]
async fn one_that_answers_garbage_is_named_and_put_aside() {
    let mut world = World::new(&[2, 3]).await;
    let (signer, evm) = (world.signer(Some(1)), world.evm_signer(Some(1)));
    let garbage: Lie = Arc::new(|_, _| (StatusCode::OK, b"{\"done\": [1, 2".to_vec()));
    world.nodes[0].lie(garbage).await;
    assert_eq!(sign(&signer).await, Ok(()));
    assert_eq!(sign_evm(&evm).await, Ok(()));
    assert!(world.faults(2, "lied") > 0 && world.faults(3, "lied") == 0);
    let health = world.cosigners.health();
    assert!(health[0].state.as_ref().is_err_and(|why| why.contains("aside")), "{health:?}");
    assert_eq!(health[1].state, Ok(()));
}

/// A cosigner that has been taken over: it knows its share and gives wrong parts of signatures.
#[tokio::test]
async fn one_whose_part_is_wrong_is_named_on_ed25519() {
    for own in [Some(1), None] {
        let mut world = World::new(if own.is_some() { &[2, 3] } else { &[2, 3, 1] }).await;
        let signer = world.signer(own);
        let real = world.nodes[0].cosigner().clone();
        let wrong: Lie = Arc::new(move |path, body| {
            let (status, answer) = real.handle(path, body);
            if path != Sign::PATH {
                return (status, answer);
            }
            let Ok(Reply::Done(Signed { mut part })) = serde_json::from_slice(&answer) else { return (status, answer) };
            part.0[0] ^= 1;
            (status, serde_json::to_vec(&Reply::Done(Signed { part })).unwrap())
        });
        world.nodes[0].lie(wrong).await;
        assert_eq!(sign(&signer).await, Ok(()), "{own:?}");
        assert_eq!((world.faults(2, "lied"), world.faults(3, "lied")), (1, 0), "{own:?}");
        assert_eq!(sign(&signer).await, Ok(()), "{own:?}");
        assert_eq!(world.faults(2, "lied"), 1, "it is not asked again for a while");
    }
}

/// One that gives the same commitment again and again gets nobody to sign twice with one nonce: each side's is its own.
#[tokio::test]
async fn one_that_repeats_its_commitments_is_left_out() {
    let mut world = World::new(&[2, 3]).await;
    let signer = world.signer(Some(1));
    let real = world.nodes[0].cosigner().clone();
    let (_, first) = real.handle(Commit::PATH, b"{}");
    let again: Lie =
        Arc::new(
            move |path, body| {
                if path == Commit::PATH { (StatusCode::OK, first.clone()) } else { real.handle(path, body) }
            },
        );
    world.nodes[0].lie(again).await;
    assert_eq!(sign(&signer).await, Ok(()));
    assert_eq!(sign(&signer).await, Ok(()), "the real one refuses the second use, and the other one signs");
    assert!(world.faults(2, "failed") > 0);
}

/// A cosigner that has been taken over and sends what makes those fail who sign with it: nobody else is blamed, and they
/// go on without it.
#[tokio::test]
async fn one_that_would_have_others_blamed_is_left_out_itself() {
    let changes: [fn(&str, &mut Value); 4] = [
        |path, answer| {
            if path == Commit::PATH {
                answer["done"]["commitment"] = "AAAA".into();
            }
        },
        |path, answer| {
            if path == Begin::PATH {
                answer["done"]["message"]["message"] = "AAAA".into();
            }
        },
        |path, answer| {
            if path == Hello::PATH {
                answer["done"]["ed25519"]["identifier"] = 9.into();
                answer["done"]["secp256k1"]["identifier"] = 9.into();
            }
        },
        |path, answer| {
            if path == Hello::PATH {
                answer["done"]["ed25519"]["identifier"] = 1.into();
                answer["done"]["secp256k1"]["identifier"] = 1.into();
            }
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        for own in [Some(1), None] {
            let mut world = World::new(if own.is_some() { &[2, 3] } else { &[2, 3, 1] }).await;
            let real = world.nodes[0].cosigner().clone();
            let lie: Lie = Arc::new(move |path, body| {
                let (status, answer) = real.handle(path, body);
                let mut answer = serde_json::from_slice(&answer).unwrap();
                change(path, &mut answer);
                (status, answer.to_string().into_bytes())
            });
            world.nodes[0].lie(lie).await;
            world.reconnect().await;
            assert_eq!(sign(&world.signer(own)).await, Ok(()), "{number} {own:?}");
            assert_eq!(sign_evm(&world.evm_signer(own)).await, Ok(()), "{number} {own:?}");
            for honest in [1, 3] {
                let faults = world.faults(honest, "lied") + world.faults(honest, "unreachable");
                assert_eq!(faults, 0, "{number} {own:?}: share {honest}");
            }
        }
    }
}

/// Messages that were changed on the way between two cosigners are refused by their seal, and nobody is banned for it.
#[tokio::test]
async fn a_changed_message_ends_a_session_and_bans_nobody() {
    for own in [Some(1), None] {
        let mut world = World::new(if own.is_some() { &[2, 3] } else { &[2, 3, 1] }).await;
        let evm = world.evm_signer(own);
        let real = world.nodes[0].cosigner().clone();
        let changed: Lie = Arc::new(move |path, body| {
            let (status, mut answer) = real.handle(path, body);
            if path.starts_with("/v1/secp256k1/") && answer.len() > 1000 {
                // Within the base64 of the message.
                let middle = answer.len() / 2;
                answer[middle] = if answer[middle] == b'A' { b'B' } else { b'A' };
            }
            (status, answer)
        });
        world.nodes[0].lie(changed).await;
        assert_eq!(sign_evm(&evm).await, Ok(()), "{own:?}");
        world.nodes[0].start().await;
        world.nodes[1].cut().await;
        assert_eq!(sign_evm(&evm).await, Ok(()), "{own:?}: the two sign together as before");
        for node in &world.nodes {
            assert!(!node.store().with_extension("bans").exists());
        }
        assert!(!world.directory.path().join("proxy.bans").exists());
    }
}

/// Where one refuses and the other signs, the signature is made, and the refusal is told.
#[tokio::test]
async fn one_that_refuses_is_counted_and_two_that_refuse_are_a_refusal() {
    let mut world = World::new(&[2, 3]).await;
    let (signer, evm) = (world.signer(Some(1)), world.evm_signer(Some(1)));
    let closed = Limits { signatures_per_minute: Some(0), ..Limits::default() };
    let refusals = |world: &World, number: u16| {
        let labels = [&format!("cosigner-{number}"), "signatures_per_minute"];
        world.telemetry.cosigner_refusals.with_label_values(&labels).get()
    };
    world.nodes[0].policy = crate::world::policy(&closed);
    world.nodes[0].start().await;
    assert_eq!(sign(&signer).await, Ok(()));
    assert_eq!(sign_evm(&evm).await, Ok(()));
    assert_eq!((refusals(&world, 2), refusals(&world, 3)), (2, 0));
    world.nodes[1].policy = crate::world::policy(&closed);
    world.nodes[1].start().await;
    for refused in [sign(&signer).await, sign_evm(&evm).await] {
        let Err(SignerError::Refused { rule, detail }) = refused else { panic!("{refused:?}") };
        assert_eq!(rule, "signatures_per_minute");
        assert!(detail.starts_with("cosigner-"), "{detail}");
    }
}

/// A port that strangers pester serves its coordinator all the same.
#[tokio::test]
async fn garbage_on_the_port_changes_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new(&[2, 3]).await;
    let mut open = Vec::new();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xFF, 0xFF], &[0; 4096], b""] {
        for node in &world.nodes {
            let mut tcp = tokio::net::TcpStream::connect(node.address).await.unwrap();
            tcp.write_all(garbage).await.unwrap();
            open.push(tcp);
        }
    }
    assert_eq!(sign(&world.signer(Some(1))).await, Ok(()));
    // Plain HTTP is no handshake: the connection ends, with an alert or without a word.
    let mut said = Vec::new();
    let _reset = open[0].read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
}

/// The commitment of the answer to a call, for tests that speak for themselves.
pub fn commitment(answer: &(StatusCode, Vec<u8>)) -> Committed {
    let Ok(Reply::Done(committed)) = serde_json::from_slice(&answer.1) else { panic!("{answer:?}") };
    committed
}

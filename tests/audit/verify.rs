//! Every change to a record is found, and placed; signatures vouch for what they were made over and for nothing else.

use std::io::{self, BufReader, Cursor};
use std::sync::Arc;

use ed25519_dalek::{Signer as _, SigningKey};
use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use turnpike::audit::checkpoint::{Checkpoint, DOMAIN, Keys, Signed};
use turnpike::audit::entry::{Line, write_line};
use turnpike::audit::log::{AuditLog, Options};
use turnpike::audit::verify::{Broken, Demands, Problem, Report, verify};
use turnpike::audit::{Entry, Kind, Position, segment};
use turnpike::clock::{Clock, ManualClock, UnixMillis};
use turnpike::scheme::evm::signature::address_of;
use turnpike::x402::Key;
use turnpike::x402::evm::EvmSignature;
use turnpike::x402::key::Signature;

use crate::disk::MemoryFolder;

type Segments = Vec<(String, Vec<u8>)>;

const NOW: i64 = 1_764_368_899_000;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn by_ed25519(checkpoint: &Checkpoint) -> Signed {
    let signature = Signature(key().sign(&checkpoint.message()).to_bytes());
    Signed::Ed25519 { key: Key(key().verifying_key().to_bytes()), signature }
}

fn by_secp256k1(checkpoint: &Checkpoint) -> Signed {
    let secret = SecretKey::from_secret_bytes([5; 32]).unwrap();
    let message = Message::from_digest(checkpoint.evm_digest().0);
    let (id, compact) = RecoverableSignature::sign_ecdsa_recoverable(message, &secret).serialize_compact();
    let mut signature = [27 + id.to_u8(); 65];
    signature[..64].copy_from_slice(&compact);
    let address = address_of(&PublicKey::from_secret_key(&secret));
    Signed::Secp256k1 { address, signature: EvmSignature(signature) }
}

fn keys() -> Keys {
    let secret = SecretKey::from_secret_bytes([5; 32]).unwrap();
    Keys {
        ed25519: vec![Key(key().verifying_key().to_bytes())],
        secp256k1: vec![address_of(&PublicKey::from_secret_key(&secret))],
    }
}

fn demands() -> Demands {
    Demands { keys: keys(), holds: None }
}

/// A record that is being written.
struct Record {
    folder: MemoryFolder,
    clock: Arc<ManualClock>,
    log: AuditLog,
}

impl Record {
    fn new() -> Self {
        let (folder, clock) = (MemoryFolder::default(), Arc::new(ManualClock::new(UnixMillis(NOW))));
        let options =
            Options { segment_bytes_max: 1500, clock: Arc::<ManualClock>::clone(&clock), ..Options::default() };
        let log = AuditLog::open_in(Arc::new(folder.clone()), options).unwrap();
        Self { folder, clock, log }
    }

    fn charges(&self, count: u64) {
        for number in 0..count {
            let entry = Entry::new(Kind::Charge).text("payer", "=cmd").text("amount", number).number("after", 0);
            self.log.append_blocking(entry).unwrap();
        }
    }

    fn checkpoint(&self, sign: fn(&Checkpoint) -> Signed) -> Position {
        let head = self.log.state().head;
        let checkpoint = Checkpoint { record: self.log.record_id(), head, time: self.clock.now() };
        self.log.append_blocking(checkpoint.entry(&sign(&checkpoint))).unwrap();
        head
    }

    fn check(&self) -> Result<Report, Broken> {
        check(&self.folder.segments(), &demands())
    }
}

/// Some of everything, in several segments, with checkpoints of both kinds and a tail that is not signed.
fn sample() -> (Segments, Position) {
    let record = Record::new();
    record.charges(6);
    record.checkpoint(by_secp256k1);
    record.charges(3);
    let signed = record.checkpoint(by_ed25519);
    record.charges(3);
    (record.folder.segments(), signed)
}

fn check(segments: &Segments, demands: &Demands) -> Result<Report, Broken> {
    let readers = segments.iter().map(|(name, text)| {
        (segment::number(name).unwrap(), io::Result::Ok(BufReader::new(Cursor::new(text.clone()))))
    });
    verify(readers, demands, &mut |_| ())
}

fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn an_intact_record_says_how_far_it_is_signed() {
    let (segments, signed) = sample();
    let report = check(&segments, &demands()).unwrap();
    assert!(segments.len() >= 4, "{}", segments.len());
    assert_eq!(report.segments, u64::try_from(segments.len()).unwrap());
    assert_eq!(report.entries, report.head.seq);
    assert_eq!(report.kinds["charge"], 12);
    assert_eq!(report.signed, Some((signed.seq, UnixMillis(NOW))));
    assert_eq!(report.unsigned(), report.head.seq - signed.seq);
    assert!(report.checkpoints >= 2 && report.other_keys.is_empty());

    let strangers = check(&segments, &Demands::default()).unwrap();
    assert_eq!((strangers.signed, strangers.checkpoints, strangers.other_keys.len()), (None, 0, 2));
    let one = Keys { ed25519: Vec::new(), ..keys() };
    let one = check(&segments, &Demands { keys: one, holds: None }).unwrap();
    assert!(one.signed.unwrap().0 < signed.seq && one.other_keys.len() == 1);
}

/// Exhaustive: each bit pattern of three, at each byte of each segment.
#[test]
fn one_changed_byte_anywhere_is_found_in_its_line() {
    let (segments, _) = sample();
    let mut changes = 0;
    for (number, (name, text)) in segments.iter().enumerate() {
        let mut line = 1;
        for (at, byte) in text.iter().enumerate() {
            for mask in [0x01, 0x20, 0x80] {
                let mut changed = segments.clone();
                changed[number].1[at] ^= mask;
                let broken = check(&changed, &demands()).unwrap_err();
                assert_eq!((&broken.segment, broken.line), (name, line), "byte {at}, mask {mask}: {broken}");
                changes += 1;
            }
            line += u64::from(*byte == b'\n');
        }
    }
    assert!(changes > 10_000, "{changes}");
}

#[test]
fn removed_swapped_and_doubled_lines_are_found() {
    let (segments, _) = sample();
    for (number, (name, text)) in segments.iter().enumerate() {
        let whole = lines(text);
        let with = |lines: &[Vec<u8>]| {
            let mut changed = segments.clone();
            changed[number].1 = lines.concat();
            check(&changed, &demands())
        };
        for at in 0..whole.len() {
            let mut removed = whole.clone();
            removed.remove(at);
            let last = number + 1 == segments.len() && at + 1 == whole.len() && at > 0;
            match with(&removed) {
                // The end can only be missed by who knows that it was there.
                Ok(report) => assert!(last, "{name} without line {}: {report:?}", at + 1),
                Err(broken) => assert!(!last && broken.segment >= *name, "{broken}"),
            }
            let mut doubled = whole.clone();
            doubled.insert(at, whole[at].clone());
            let broken = with(&doubled).unwrap_err();
            assert_eq!((&broken.segment, usize::try_from(broken.line).unwrap()), (name, at + 2), "{broken}");
            if at > 0 {
                let mut swapped = whole.clone();
                swapped.swap(at - 1, at);
                let broken = with(&swapped).unwrap_err();
                assert_eq!((&broken.segment, usize::try_from(broken.line).unwrap()), (name, at), "{broken}");
            }
        }
    }
}

#[test]
fn removed_and_exchanged_segments_are_found() {
    let (segments, _) = sample();
    for number in 0..segments.len() - 1 {
        let mut removed = segments.clone();
        removed.remove(number);
        let broken = check(&removed, &demands()).unwrap_err();
        match number {
            0 => assert!(matches!(broken.what, Problem::BeginsLate), "{broken}"),
            _ => assert!(matches!(broken.what, Problem::Missing) && broken.segment == segments[number].0, "{broken}"),
        }
        let mut exchanged = segments.clone();
        let text = exchanged[number].1.clone();
        exchanged[number].1 = std::mem::replace(&mut exchanged[number + 1].1, text);
        assert_eq!(check(&exchanged, &demands()).unwrap_err().segment, segments[number].0);
    }
    // Of another record, with the right number.
    let (other, _) = sample();
    let mut mixed = segments.clone();
    mixed[1] = other[1].clone();
    assert!(check(&mixed, &demands()).is_err());
    assert!(matches!(check(&Vec::new(), &demands()).unwrap_err().what, Problem::Empty));

    // That the end is gone, only who knows of it can say.
    let head = check(&segments, &demands()).unwrap().head;
    let mut cut = segments.clone();
    cut.pop();
    assert!(check(&cut, &demands()).is_ok());
    let held = Demands { holds: Some(head), ..demands() };
    assert!(check(&segments, &held).is_ok());
    let broken = check(&cut, &held).unwrap_err();
    assert!(matches!(broken.what, Problem::NotHeld(place) if place == head), "{broken}");
}

/// Who has the disk: writes an entry anew, and everything after it so that all hashes are right.
fn written_anew(segments: &Segments, from: u64) -> Segments {
    let mut after = Position::default();
    let mut forged = Vec::new();
    for (name, text) in segments {
        let mut out = Vec::new();
        for bytes in lines(text) {
            let line = Line::parse(&bytes[..bytes.len() - 1]).unwrap();
            let kind = *Kind::ALL.iter().find(|kind| line.is(**kind)).unwrap();
            let mut fields = line.fields().unwrap();
            if line.position.seq == from {
                fields.insert("amount".into(), "999".into());
            }
            let entry = fields.iter().fold(Entry::new(kind), |entry, (name, value)| entry.json(name, value));
            if line.position.seq < from {
                out.extend_from_slice(&bytes);
                after = line.position;
            } else {
                after = write_line(&mut out, &after, line.time, &entry).unwrap();
            }
        }
        forged.push((name.clone(), out));
    }
    forged
}

#[test]
fn who_has_the_disk_can_rewrite_only_what_is_not_signed() {
    let (segments, signed) = sample();
    let head = check(&segments, &demands()).unwrap().head;
    for from in 2..=head.seq {
        let forged = written_anew(&segments, from);
        let result = check(&forged, &demands());
        if from <= signed.seq {
            let broken = result.unwrap_err();
            assert!(matches!(broken.what, Problem::OtherChain), "from {from}: {broken}");
            assert!(broken.seq > from);
        } else if from == signed.seq + 1 {
            // The checkpoint itself; its copies in later segments still vouch for what is before it.
            assert_eq!(result.unwrap().signed.unwrap().0, signed.seq);
        } else {
            let report = result.unwrap();
            assert_eq!((report.signed.unwrap().0, report.unsigned()), (signed.seq, head.seq - signed.seq));
        }
    }
}

#[test]
fn a_checkpoint_that_does_not_verify_is_found() {
    let record = Record::new();
    record.charges(1);
    let head = record.log.state().head;
    let checkpoint = Checkpoint { record: record.log.record_id(), head, time: UnixMillis(NOW) };
    let other = Checkpoint { time: UnixMillis(NOW + 1), ..checkpoint };
    record.log.append_blocking(checkpoint.entry(&by_ed25519(&other))).unwrap();
    assert!(matches!(record.check().unwrap_err().what, Problem::Signature));

    // One of another record is signed well and is none of this one.
    let record = Record::new();
    record.charges(1);
    record.log.append_blocking(checkpoint.entry(&by_ed25519(&checkpoint))).unwrap();
    assert!(matches!(record.check().unwrap_err().what, Problem::OtherRecord(_)));
}

#[tokio::test]
async fn retired_segments_are_missed_by_nobody() {
    let record = tokio::task::spawn_blocking(|| {
        let record = Record::new();
        record.charges(20);
        record
    })
    .await
    .unwrap();
    let later = UnixMillis(NOW + 1000);
    record.clock.advance(std::time::Duration::from_secs(2));
    assert_eq!(record.log.retire(later).await.unwrap(), 0, "nothing vouches for it yet");
    let record = tokio::task::spawn_blocking(|| {
        record.checkpoint(by_ed25519);
        record.charges(9);
        record
    })
    .await
    .unwrap();
    let before = record.folder.segments();
    let retired = record.log.retire(later).await.unwrap();
    assert!(retired >= 2, "{retired}");
    let after = record.folder.segments();
    assert_eq!(u64::try_from(before.len() - after.len()).unwrap(), retired);
    let report = record.check().unwrap();
    assert!(report.first > 1 && report.signed.is_some() && report.kinds["retired"] == 1);
    assert!(report.retired.is_some() && !report.retirement_is_signed(), "who has the disk could have said so");
    let record = tokio::task::spawn_blocking(|| {
        record.checkpoint(by_ed25519);
        record
    })
    .await
    .unwrap();
    assert!(record.check().unwrap().retirement_is_signed());
    let after = record.folder.segments();
    // What remains begins with the link and the checkpoint that it stands on, or has it further on.
    assert_eq!(record.log.retire(later).await.unwrap(), 0);
    let mut removed = after.clone();
    removed.remove(0);
    assert!(matches!(check(&removed, &demands()).unwrap_err().what, Problem::BeginsLate));
    // It is gone on with as ever.
    let folder = record.folder.clone();
    drop(record);
    let log = AuditLog::open_in(Arc::new(folder.clone()), Options::default()).unwrap();
    log.append(Entry::new(Kind::Start)).await.unwrap();
    drop(log);
    check(&folder.segments(), &demands()).unwrap();
}

/// The signed bytes begin as no message that a key of ours signs for money.
#[test]
fn the_domain_is_its_own() {
    assert_eq!(DOMAIN[0], 0xFF);
    assert_ne!(&DOMAIN[..2], &[0x56, 0x01], "a voucher");
    assert_ne!(&DOMAIN[..2], &[0x19, 0x01], "EIP-712");
}

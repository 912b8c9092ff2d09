use super::*;
use crate::amount::Amount;
use crate::ledger::passes::NotAPassId;
use crate::x402::Key;

fn pass(tag: u8, calls: u32, used: u32) -> PassRecord {
    PassRecord {
        id: PassId([tag; 32]),
        payer: Account::Svm(Key([tag; 32])),
        network: "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1".parse().unwrap(),
        scope: "/quote".into(),
        calls,
        used,
        price: Amount::new(40),
        sold_at: UnixMillis(i64::from(tag)),
        last_used: UnixMillis(i64::from(tag)),
        expires_at: UnixMillis(1_000_000),
        revoked_at: None,
    }
}

fn take(passes: &Passes, tag: u8, now: i64) -> Result<(), PassRefused> {
    passes.take(&PassId([tag; 32]), "/quote", UnixMillis(now)).map(drop)
}

#[test]
fn a_name_has_one_spelling_and_is_read_back() {
    let id = PassId([0xa5; 32]);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(id.to_string(), "a5".repeat(32));
    for wrong in ["", "a5", &"a5".repeat(31), &"a5".repeat(33), &"g5".repeat(32), &"é".repeat(32)] {
        assert_eq!(wrong.parse::<PassId>(), Err(NotAPassId), "{wrong}");
    }
}

#[test]
fn refusals_in_order_of_precedence() {
    let passes = Passes::new(10);
    let revoked_at = Some(UnixMillis(1));
    for record in [
        pass(1, 2, 1),
        pass(2, 2, 2),
        PassRecord { revoked_at, ..pass(3, 2, 2) },
        PassRecord { scope: "/other".into(), revoked_at, ..pass(4, 2, 2) },
        PassRecord { expires_at: UnixMillis(5), ..pass(5, 2, 2) },
        PassRecord { expires_at: UnixMillis(5), ..pass(6, 2, 1) },
        PassRecord { expires_at: UnixMillis(7), ..pass(7, 2, 1) },
    ] {
        passes.put(record);
    }
    assert_eq!(take(&passes, 1, 5), Ok(()));
    assert_eq!(take(&passes, 1, 5), Err(PassRefused::Busy));
    passes.release(&PassId([1; 32]));
    assert_eq!(take(&passes, 1, 5), Ok(()));
    assert_eq!(passes.used(&PassId([1; 32]), UnixMillis(6)), 0);
    assert_eq!(take(&passes, 1, 5), Err(PassRefused::Spent));
    for (tag, refused) in [
        (9, PassRefused::Unknown),
        (4, PassRefused::OtherRoute),
        (3, PassRefused::Revoked),
        (2, PassRefused::Spent),
        (5, PassRefused::Spent),
        (6, PassRefused::Expired),
    ] {
        assert_eq!(take(&passes, tag, 5), Err(refused), "{tag}");
    }
    assert_eq!(take(&passes, 7, 6), Ok(()), "until its last moment");
    assert_eq!(take(&passes, 7, 7), Err(PassRefused::Expired));
}

#[test]
fn room_is_taken_before_and_given_back() {
    let passes = Passes::new(2);
    let (first, second) = (passes.room().unwrap(), passes.room().unwrap());
    assert!(passes.room().is_none());
    passes.put(pass(1, 2, 1));
    drop(first);
    assert!(passes.room().is_none(), "a pass stands in it now");
    drop(second);
    let third = passes.room();
    assert!(third.is_some() && passes.room().is_none());
}

#[test]
fn what_has_ended_is_remembered_for_a_while_and_then_forgotten() {
    let keep = i64::try_from(ENDED_KEEP.as_millis()).unwrap();
    let passes = Passes::new(10);
    let step = |now: i64| passes.step(UnixMillis(now)).into_iter().map(|id| id.0[0]).collect::<Vec<_>>();
    passes.put(pass(1, 2, 1));
    passes.put(pass(2, 3, 1));
    passes.put(PassRecord { expires_at: UnixMillis(50), ..pass(3, 9, 1) });
    take(&passes, 1, 10).unwrap();
    take(&passes, 3, 10).unwrap();
    passes.used(&PassId([1; 32]), UnixMillis(20));
    passes.revoke(&PassId([2; 32]), UnixMillis(30)).unwrap();
    assert_eq!(step(keep + 19), [0; 0]);
    assert_eq!(take(&passes, 1, 21), Err(PassRefused::Spent));
    assert_eq!(step(keep + 30), [1, 2]);
    assert_eq!(take(&passes, 1, 21), Err(PassRefused::Unknown));
    assert_eq!(step(keep + 50), [0; 0], "a call on it is in flight");
    passes.used(&PassId([3; 32]), UnixMillis(60));
    assert_eq!((step(keep * 3), passes.len()), (vec![3], 0));
}

#[test]
fn the_newest_come_first() {
    let passes = Passes::new(10);
    [3, 1, 2].into_iter().for_each(|tag| passes.put(pass(tag, 2, 1)));
    let tags = |limit| passes.newest(limit).iter().map(|pass| pass.id.0[0]).collect::<Vec<_>>();
    assert_eq!((tags(9), tags(2)), (vec![3, 2, 1], vec![3, 2]));
}

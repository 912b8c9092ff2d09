use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::x402::Key;

const MAX: u64 = 100;

fn payer(number: u8) -> Account {
    Account::Svm(Key([number; 32]))
}

fn daily(scope: &str, day: i32, max: u64) -> PayerLimits {
    PayerLimits { daily: Some(DailyLimit { scope: scope.into(), day: Day(day), max: max.into() }), exposure_max: None }
}

fn units(amount: u64) -> Amount {
    amount.into()
}

#[derive(Clone, Debug)]
enum Step {
    Ask {
        payer: u8,
        scope: bool,
        amount: u64,
    },
    /// One of the requests in flight ends, charged this part of what it holds, or not at all.
    End {
        which: usize,
        charge: Option<u64>,
    },
    Pass(i32),
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ask = (0u8..2, any::<bool>(), 0u64..60).prop_map(|(payer, scope, amount)| Step::Ask { payer, scope, amount });
    let end = (any::<usize>(), proptest::option::weighted(0.7, 0u64..=60));
    let end = end.prop_map(|(which, charge)| Step::End { which, charge });
    proptest::collection::vec(
        prop_oneof![6 => ask, 6 => end, 1 => (-1i32..=2).prop_map(Step::Pass), 1 => Just(Step::Crash)],
        0..120,
    )
}

proptest! {
    /// Whatever the order in which requests come, end and days change, with crashes between: what was charged to the
    /// requests of one day is never above the limit, and nothing is refused that would have been within it.
    #[test]
    fn no_order_of_requests_passes_a_daily_limit(steps in steps()) {
        let mut payers = Arc::new(Payers::default());
        let mut stored: HashMap<(Account, Arc<str>), (Day, Amount)> = HashMap::new();
        let mut charged: HashMap<(u8, bool, i32), u64> = HashMap::new();
        let mut flying: Vec<(u8, bool, i32, u64, Allowance)> = Vec::new();
        // The clock, and the latest day that each sum has seen.
        let mut today = 10;
        let mut seen: HashMap<(u8, bool), i32> = HashMap::new();
        for step in steps {
            match step {
                Step::Ask { payer: who, scope, amount } => {
                    let name = if scope { "" } else { "/v1" };
                    let day = *seen.entry((who, scope)).and_modify(|seen| *seen = today.max(*seen)).or_insert(today);
                    let held: u64 = flying.iter().filter(|f| (f.0, f.1, f.2) == (who, scope, day)).map(|f| f.3).sum();
                    let fits = charged.get(&(who, scope, day)).unwrap_or(&0) + held + amount <= MAX;
                    match payers.hold(payer(who), units(amount), &daily(name, today, MAX)) {
                        Ok(held) => {
                            prop_assert!(fits);
                            flying.push((who, scope, day, amount, held));
                        }
                        Err(over) => prop_assert!(!fits && over == Over::Daily),
                    }
                }
                Step::End { which, charge } if !flying.is_empty() => {
                    let (who, scope, day, amount, held) = flying.swap_remove(which % flying.len());
                    let Some(charge) = charge.map(|charge| charge.min(amount)) else { continue };
                    let held = held.charging(units(charge));
                    if let Some(spend) = held.spend() {
                        let of = (spend.payer, Arc::clone(&spend.scope));
                        let after = spend.after(stored.get(&of).copied());
                        stored.insert(of, after);
                    }
                    held.counted();
                    *charged.entry((who, scope, day)).or_default() += charge;
                }
                Step::End { .. } => {}
                Step::Pass(days) => today += days,
                Step::Crash => {
                    flying.clear();
                    payers = Arc::new(Payers::default());
                    let record = |((payer, scope), (day, amount)): (&(Account, Arc<str>), &(Day, Amount))| {
                        SpentRecord { payer: *payer, scope: Arc::clone(scope), day: *day, amount: *amount }
                    };
                    payers.restore(stored.iter().map(record).collect());
                    // What was seen and charged nothing is not stored, so that a clock that goes back over a restart
                    // begins an earlier day again: it has been charged in that day no more than the model knows.
                    seen = stored.iter().map(|((payer, scope), (day, _))| {
                        ((if *payer == self::payer(0) { 0 } else { 1 }, scope.is_empty()), day.0)
                    }).collect();
                }
            }
            for (&(_, _, day), &sum) in &charged {
                prop_assert!(sum <= MAX, "{sum} on day {day}");
            }
        }
    }
}

#[test]
fn a_limit_may_be_met_exactly_and_what_is_given_back_can_be_had_again() {
    let payers = Arc::new(Payers::default());
    let limits = daily("", 1, 100);
    let first = payers.hold(payer(1), units(60), &limits).unwrap();
    let second = payers.hold(payer(1), units(40), &limits).unwrap();
    assert_eq!(payers.hold(payer(1), units(1), &limits).unwrap_err(), Over::Daily);
    let other = payers.hold(payer(2), units(100), &limits).unwrap();
    first.charging(units(10)).counted();
    assert_eq!(payers.spent(&payer(1), ""), (units(10), units(40)));
    let third = payers.hold(payer(1), units(50), &limits).unwrap();
    drop((second, other));
    assert_eq!(payers.hold(payer(1), units(41), &limits).unwrap_err(), Over::Daily);
    third.counted();
    assert_eq!(payers.spent(&payer(1), ""), (units(60), Amount::ZERO));
    assert!(payers.hold(payer(1), Amount::new(u128::MAX), &limits).is_err(), "a sum that does not fit is above it");
}

#[test]
fn a_request_counts_for_the_day_on_which_it_was_let_in() {
    let payers = Arc::new(Payers::default());
    let before = payers.hold(payer(1), units(100), &daily("", 1, 100)).unwrap();
    let after = payers.hold(payer(1), units(100), &daily("", 2, 100)).unwrap();
    assert_eq!(before.spend().unwrap().day, Day(1));
    before.counted();
    assert_eq!(payers.spent(&payer(1), ""), (Amount::ZERO, units(100)), "yesterday's is not today's");
    after.counted();
    assert!(payers.hold(payer(1), units(1), &daily("", 1, 100)).is_err(), "a clock that goes back begins no day again");
    assert!(payers.hold(payer(1), units(1), &daily("", 3, 100)).is_ok());
}

#[test]
fn exposure_counts_what_is_charged_and_what_is_held_over_all_channels() {
    let payers = Arc::new(Payers::new(true));
    let limits = PayerLimits { daily: None, exposure_max: Some(units(100)) };
    payers.expose(payer(1), Amount::ZERO, units(50));
    let held = payers.hold(payer(1), units(50), &limits).unwrap();
    assert_eq!(payers.hold(payer(1), units(1), &limits).unwrap_err(), Over::Exposure);
    assert!(payers.hold(payer(2), units(100), &limits).is_ok());
    // As a commit does it: the channel shows it, then nothing is held for it any more.
    payers.expose(payer(1), Amount::ZERO, units(50));
    held.counted();
    assert_eq!(payers.hold(payer(1), units(1), &limits).unwrap_err(), Over::Exposure);
    payers.expose(payer(1), units(100), units(99));
    assert!(payers.hold(payer(1), units(1), &limits).is_ok());
}

#[test]
fn payers_of_whom_nothing_counts_any_more_are_forgotten() {
    let payers = Arc::new(Payers::default());
    let known = || payers.book.lock().payers.len();
    for number in 0..PAYERS_MIN {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
        payers.hold(Account::Svm(Key(key)), units(1), &daily("", 1, 100)).unwrap().counted();
    }
    let flying = payers.hold(payer(1), units(1), &daily("", 1, 100)).unwrap();
    assert_eq!(known(), PAYERS_MIN + 1, "today they count");
    payers.hold(payer(2), units(1), &daily("/v2", 3, 100)).unwrap().counted();
    let tidied = |day| {
        payers.book.lock().tidy_at = 0;
        drop(payers.hold(payer(3), units(1), &daily("/v2", day, 100)).unwrap());
    };
    tidied(3);
    assert_eq!(known(), PAYERS_MIN + 3, "in another time zone it may be two days earlier");
    tidied(4);
    tidied(4);
    assert_eq!(known(), 3, "three days later only who is in flight or was charged");
    drop(flying);
}

#[test]
fn what_is_stored_follows_the_latest_day() {
    let spend = |day, amount: u64, back| Spend {
        payer: payer(1),
        scope: "".into(),
        day: Day(day),
        amount: units(amount),
        back,
    };
    for (before, spend, after) in [
        (None, spend(5, 7, false), (5, 7)),
        (None, spend(5, 7, true), (5, 0)),
        (Some((5, 1)), spend(5, 7, false), (5, 8)),
        (Some((5, 9)), spend(5, 7, true), (5, 2)),
        (Some((4, 9)), spend(5, 7, false), (5, 7)),
        (Some((6, 9)), spend(5, 7, false), (6, 9)),
        (Some((6, 9)), spend(5, 7, true), (6, 9)),
    ] {
        let before: Option<(i32, u64)> = before;
        let found = spend.after(before.map(|(day, amount)| (Day(day), units(amount))));
        assert_eq!(found, (Day(after.0), units(after.1)), "{before:?} {spend:?}");
    }
}

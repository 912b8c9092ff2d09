//! Writing and opening: on a real directory, and on one that crashes at every call.

use std::fs;
use std::sync::Arc;

use turnpike::audit::entry::Line;
use turnpike::audit::log::{AuditLog, Options};
use turnpike::audit::{AuditError, Entry, Kind, Position, Recorder};

use crate::disk::{Fault, Left, MemoryFolder};

/// Checks the chain of a record by itself, and gives every entry's place and kind.
pub fn chain(segments: &[(String, Vec<u8>)]) -> Vec<(Position, String)> {
    let mut at = Position::default();
    let mut entries = Vec::new();
    for (name, text) in segments {
        assert!(text.is_empty() || text.ends_with(b"\n"), "{name} ends in the middle of an entry");
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let line = Line::parse(&line[..line.len() - 1]).unwrap();
            line.follows(&at).unwrap();
            at = line.position;
            entries.push((at, line.kind.to_owned()));
        }
    }
    entries
}

fn small() -> Options {
    Options { segment_bytes_max: 700, room_bytes: 300, ..Options::default() }
}

/// Segments and room that several groups fit into.
fn roomy() -> Options {
    Options { segment_bytes_max: 5000, room_bytes: 4000, ..Options::default() }
}

fn entry(number: u64) -> Entry {
    Entry::new(Kind::Charge).text("amount", number).text("words", "\"\n\\ é \u{1}")
}

/// Adds entries until one is refused; the places of those that were answered.
fn add(log: &AuditLog, count: u64) -> Vec<Position> {
    (0..count).map_while(|number| log.append_blocking(entry(number)).ok()).collect()
}

#[test]
fn a_directory_is_gone_on_with_and_rotated() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    let log = AuditLog::open(&path, small()).unwrap();
    let refused = AuditLog::open(&path, small()).err().unwrap();
    assert!(matches!(&refused, AuditError::Unusable(why) if why.contains("another process")), "{refused}");
    let id = log.record_id();
    let first = add(&log, 5);
    drop(log);
    let log = AuditLog::open(&path, small()).unwrap();
    assert_eq!((log.record_id(), log.state().head), (id, *first.last().unwrap()));
    let second = add(&log, 5);
    assert_eq!(log.state().head, *second.last().unwrap());
    drop(log);
    let mut names: Vec<_> =
        fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names.retain(|name| name.ends_with(".jsonl"));
    let segments: Vec<_> = names.into_iter().map(|name| (name.clone(), fs::read(path.join(name)).unwrap())).collect();
    assert!(segments.len() > 3, "{}", segments.len());
    let entries = chain(&segments);
    for position in first.iter().chain(&second) {
        assert!(entries.contains(&(*position, "charge".to_owned())));
    }
    assert_eq!(entries.iter().filter(|(_, kind)| kind == "segment").count(), segments.len());
}

#[tokio::test]
async fn calls_that_come_together_share_a_flush() {
    let folder = MemoryFolder::default();
    let log = Arc::new(AuditLog::open_in(Arc::new(folder.clone()), Options::default()).unwrap());
    let before = folder.calls();
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.append(entry(number)).await.unwrap() })
        })
        .collect();
    let mut seqs = Vec::new();
    for task in tasks {
        seqs.push(task.await.unwrap().seq);
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (2..202).collect::<Vec<_>>());
    assert!(folder.calls() - before <= 400, "a write and a flush for each call at most");
    drop(log);
    assert_eq!(chain(&folder.segments()).len(), 201);
}

#[test]
fn what_is_handed_over_together_stands_together_or_not_at_all() {
    let folder = MemoryFolder::default();
    let log = AuditLog::open_in(Arc::new(folder.clone()), Options::default()).unwrap();
    let long = Entry::new(Kind::Admin).text("what", "x".repeat(300_000));
    assert!(matches!(log.record_blocking(&[entry(1), long, entry(2)]), Err(AuditError::TooLong(_))));
    let place = log.record_blocking(&[entry(1), entry(2)]).unwrap();
    assert_eq!(place.seq, 3);
    assert_eq!(log.health(), Ok(()));
    drop(log);
    assert_eq!(chain(&folder.segments()).len(), 3);
}

#[test]
fn from_the_first_failed_write_on_everything_is_refused_and_a_restart_heals() {
    let calls = {
        let folder = MemoryFolder::default();
        let log = AuditLog::open_in(Arc::new(folder.clone()), small()).unwrap();
        add(&log, 8);
        folder.calls()
    };
    for at in 1..=calls {
        let folder = MemoryFolder::with_fault(at, Fault::Fail);
        let Ok(log) = AuditLog::open_in(Arc::new(folder.clone()), small()) else { continue };
        let answered = add(&log, 8);
        assert!(answered.len() < 8, "call {at}");
        assert!(log.append_blocking(entry(9)).is_err());
        assert!(matches!(log.health(), Err(AuditError::Failed(_))));
        assert!(log.state().failed.is_some());
        drop(log);
        let log = AuditLog::open_in(Arc::new(folder.clone()), small()).unwrap();
        assert_eq!(add(&log, 1).len(), 1);
        drop(log);
        let entries = chain(&folder.segments());
        answered.iter().for_each(|place| assert!(entries.iter().any(|(there, _)| there == place), "call {at}"));
    }
}

/// Adds entries in groups of three until one is refused; the last places of those that were answered.
fn add_groups(log: &AuditLog, count: u64) -> Vec<Position> {
    let group = |number| log.record_blocking(&[entry(number), entry(number), entry(number)]).ok();
    (0..count).map_while(group).collect()
}

#[test]
fn a_crash_at_any_write_keeps_what_was_answered() {
    crash_at_any_write(&small(), add);
}

#[test]
fn a_crash_at_any_write_in_room_keeps_what_was_answered() {
    crash_at_any_write(&roomy(), add_groups);
}

/// At every call that changes something, with whatever the disk keeps; and again at every call of the repair.
fn crash_at_any_write(options: &Options, add: fn(&AuditLog, u64) -> Vec<Position>) {
    let lefts =
        [Left::Nothing, Left::OneByte, Left::Half, Left::AllButOneByte, Left::All, Left::OddSectors, Left::EvenSectors];
    let open = |folder: &MemoryFolder| AuditLog::open_in(Arc::new(folder.clone()), options.clone());
    let mut repaired = 0;
    for at in 1.. {
        let folder = MemoryFolder::with_fault(at, Fault::Crash);
        let answered = open(&folder).map(|log| add(&log, 8)).unwrap_or_default();
        if answered.len() == 8 {
            assert!(at > 20, "{at}");
            break;
        }
        for left in lefts {
            for again in 1.. {
                let second = folder.crash(left, Some((again, Fault::Crash)));
                let whole = open(&second).is_ok_and(|log| add(&log, 3).len() == 3);
                for left in lefts {
                    let third = second.crash(left, None);
                    let log = open(&third).unwrap_or_else(|why| panic!("call {at}, {left:?}, {again}: {why}"));
                    assert_eq!(add(&log, 2).len(), 2);
                    drop(log);
                    let entries = chain(&third.segments());
                    for place in &answered {
                        assert!(entries.iter().any(|(there, _)| there == place), "call {at}, {left:?}, {again}");
                    }
                    repaired += entries.iter().filter(|(_, kind)| kind == "repaired").count();
                    // A cut is never silent: its copy is there, and so is its entry.
                    let cut = (0..40).any(|seq| third.has(&format!("cut-{seq:012}-1.bin")));
                    assert_eq!(cut, entries.iter().any(|(_, kind)| kind == "repaired"), "call {at}, {left:?}, {again}");
                }
                if whole {
                    break;
                }
            }
        }
    }
    assert!(repaired > 100, "{repaired}");
}

#[test]
fn what_no_crash_can_leave_is_not_opened() {
    let folder = MemoryFolder::default();
    let log = AuditLog::open_in(Arc::new(folder.clone()), Options::default()).unwrap();
    add(&log, 4);
    drop(log);
    let (name, text) = folder.segments().remove(0);
    let lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let mut changed = text.clone();
    changed[lines[0].len() + 60] ^= 1;
    let swapped = [lines[0], lines[2], lines[1], lines[3], lines[4]].concat();
    let removed = [lines[0], lines[1], lines[3], lines[4]].concat();
    for (what, bytes) in [("changed", changed), ("swapped", swapped), ("removed", removed)] {
        folder.set(&name, &bytes);
        let error = AuditLog::open_in(Arc::new(folder.clone()), Options::default()).err().unwrap();
        assert!(error.to_string().contains("audit verify"), "{what}: {error}");
    }
    // An entry of room in the middle, as no crash leaves it where a disk writes sectors.
    let hollow: Vec<_> = [lines[0], &b"\n".repeat(lines[1].len()), lines[2], lines[3]].concat();
    folder.set(&name, &hollow);
    assert!(lines[1].len() < 512 && lines[0].len() % 512 != 0);
    assert!(AuditLog::open_in(Arc::new(folder.clone()), Options::default()).is_err());
    // A tail that holds no entry is cut off, and kept.
    folder.set(&name, &[&*text, &lines[1][..30]].concat());
    drop(AuditLog::open_in(Arc::new(folder.clone()), Options::default()).unwrap());
    let entries = chain(&folder.segments());
    assert_eq!(entries.last().unwrap().1, "repaired");
    assert!(folder.has("cut-000000000005-1.bin"));
}

#[test]
fn room_is_kept_while_a_record_is_written_and_given_back_at_its_end() {
    let folder = MemoryFolder::default();
    let log = AuditLog::open_in(Arc::new(folder.clone()), roomy()).unwrap();
    let made = folder.whole_segments().remove(0).1.len();
    add(&log, 4);
    let text = folder.whole_segments().remove(0).1;
    assert_eq!(text.len(), made, "four entries have room");
    assert!(text.ends_with(b"\n\n\n"));
    // A crash here leaves nothing to repair, and the room is used.
    let found = folder.crash(Left::Nothing, None);
    let again = AuditLog::open_in(Arc::new(found.clone()), roomy()).unwrap();
    add(&again, 1);
    assert_eq!(found.whole_segments().remove(0).1.len(), made);
    drop(again);
    let entries = chain(&found.whole_segments());
    assert_eq!(entries.len(), 6);
    drop(log);
    assert_eq!(chain(&folder.whole_segments()).len(), 5);
    assert!(folder.whole_segments().remove(0).1.len() < made);
}

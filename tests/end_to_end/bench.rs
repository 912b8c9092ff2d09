//! `turnpike bench` measures every contender that this machine has, and leaves nothing behind.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::support::{BINARY, Process, directory, project};

#[test]
fn every_contender_is_measured_and_nothing_is_left_behind() {
    let place = directory();
    let output = Command::new(BINARY)
        .args([
            "bench",
            "--rounds",
            "1",
            "--connections",
            "2",
            "--requests",
            "4",
            "--channels",
            "2000",
            "--json",
            "--dir",
            ".",
        ])
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let contenders = report["contenders"].as_array().unwrap();
    let names: Vec<_> = contenders.iter().map(|contender| contender["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "bare hyper proxy",
            "nginx, plain proxy",
            "Turnpike, free route",
            "Turnpike, unpaid: 402",
            "Turnpike, paid, Ed25519",
            "bare proxy that checks and records",
            "Turnpike, on a pass",
            "Turnpike, paid, Ed25519, ledger in memory",
            "Turnpike, paid, EVM",
            "Turnpike, few channels known: 1000",
            "Turnpike, many channels known: 2000",
        ]
    );
    for contender in contenders {
        let [sample] = &contender["samples"].as_array().unwrap()[..] else { panic!("one round: {contender}") };
        for figure in ["per_second", "p50", "p99", "p999", "cpu"] {
            assert!(sample[figure].as_f64().unwrap() > 0.0, "{figure} of {contender}");
        }
    }
    assert_eq!(report["ratios"].as_array().unwrap().len(), 7);
    assert!(report["idle_channel_bytes"].is_number());
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "its directory goes with it");
}

/// The processes that work in a directory.
fn at_work(place: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|process| process.path().join("cwd").read_link().is_ok_and(|cwd| cwd.starts_with(place))).count()
}

#[test]
fn a_signal_ends_the_run_and_all_that_it_started() {
    let place = directory();
    let arguments = ["bench", "--rounds", "1000", "--connections", "2", "--only", "free", "--dir"];
    let mut bench = Process::start(Command::new(BINARY).args(arguments).arg(place.path()).current_dir(project("")));
    while at_work(place.path()) == 0 {
        assert!(bench.child.try_wait().unwrap().is_none(), "it runs until it is told to end");
        std::thread::yield_now();
    }
    bench.signal("-TERM");
    assert_eq!(bench.child.wait().unwrap().code(), Some(1));
    bench.wait_for("why it ended", |line| line.contains("stopped by a signal").then_some(()));
    assert_eq!(at_work(place.path()), 0);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn more_than_can_be_prepared_is_refused_before_anything_starts() {
    let output = Command::new(BINARY).args(["bench", "--connections", "1024", "--requests", "1000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("500000") && error.contains("lower one of them"), "{error}");
}

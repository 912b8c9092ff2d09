//! Instructions instead of time: what valgrind counts of this same program, against what is written down.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use super::Work;

/// How many of a step are counted together.
pub const TIMES: usize = 200;
/// How many percent a step may grow without being written down anew.
const GROWTH_PERCENT_MAX: u64 = 5;
const RECORD: &str = "cargo bench --profile counted --bench primitives -- --record";
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// What is counted; known to valgrind by this name.
#[inline(never)]
pub fn measured(work: Work<'_>) {
    work();
}

/// Compares all steps with what is written down, and ends with status 1 where one has grown.
pub fn check<'n>(names: impl Iterator<Item = &'n str>) {
    let recorded = read();
    let mut grown = false;
    println!("{:>12} {:>12} {:>8}  step", "recorded", "now", "change");
    for (name, now) in count(names) {
        let Some(&before) = recorded.get(name) else {
            println!("{:>12} {now:>12} {:>8}  {name}", "-", "new");
            grown = true;
            continue;
        };
        let is_grown = now * 100 > before * (100 + GROWTH_PERCENT_MAX);
        grown |= is_grown;
        let change = i128::from(now) * 1000 / i128::from(before) - 1000;
        let mark = if is_grown { "  too much" } else { "" };
        let sign = if change < 0 { '-' } else { '+' };
        let change = format!("{sign}{}.{}%", change.abs() / 10, change.abs() % 10);
        println!("{before:>12} {now:>12} {change:>8}  {name}{mark}");
    }
    if grown {
        eprintln!(
            "\nA step takes over {GROWTH_PERCENT_MAX} percent more instructions than benches/instructions.txt says. \
             Make it cheaper; or, where it has to cost that, write it down: {RECORD}"
        );
        std::process::exit(1);
    }
}

/// Writes down what all steps take now.
pub fn record<'n>(names: impl Iterator<Item = &'n str>) {
    let mut text = format!("# Instructions that each step takes, by valgrind. Written by `{RECORD}`.\n");
    for (name, count) in count(names) {
        writeln!(text, "{count:>9}  {name}").unwrap();
    }
    print!("{text}");
    std::fs::write(FILE, text).unwrap();
}

fn read() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(FILE).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (count, name) = line.trim().split_once(' ').unwrap();
            (name.trim().to_owned(), count.parse().unwrap())
        })
        .collect()
}

/// Instructions of one of each step.
fn count<'n>(names: impl Iterator<Item = &'n str>) -> impl Iterator<Item = (&'n str, u64)> {
    names.map(|name| (name, count_one(name)))
}

fn count_one(name: &str) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*instructions*measured*"])
        .arg(std::env::current_exe().unwrap())
        .args(["--count", name])
        .stdin(Stdio::null())
        .output()
        .expect("valgrind runs; it is a package of that name");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let total =
        said.lines().find_map(|line| line.split_once("Collected :")).expect("valgrind says what it collected").1;
    total.trim().parse::<u64>().unwrap() / u64::try_from(TIMES).unwrap()
}

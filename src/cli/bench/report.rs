//! What a run has measured: figures for people, and for programs.

use serde::Serialize;

use super::compare::{BARE, Plan, Verified};
use super::load::Sample;
use super::stage::CROWDS;

/// A contender's rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Who.
    pub name: String,
    /// One for each round.
    pub samples: Vec<Sample>,
}

/// The middle of some figures, and how far they lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub least: f64,
    /// The one in the middle.
    pub median: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these figures; of none, zeros.
    #[must_use]
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<_> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.get(figures.len() / 2);
        match (figures.first(), middle, figures.last()) {
            (Some(least), Some(median), Some(most)) => Self { least: *least, median: *median, most: *most },
            _ => Self::default(),
        }
    }
}

/// A ratio that is watched.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Of what to what.
    pub name: &'static str,
    /// Made in each round.
    pub value: Spread,
    /// What it may be at most, or at least.
    pub goal: f64,
    /// Whether more is better.
    pub at_least: bool,
}

impl Ratio {
    /// Whether the median keeps to the goal.
    #[must_use]
    pub fn holds(&self) -> bool {
        if self.at_least { self.value.median >= self.goal } else { self.value.median <= self.goal }
    }
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: String,
    /// How.
    pub connections: u32,
    /// Requests on each connection in each round.
    pub requests: usize,
    /// Rounds that count.
    pub rounds: usize,
    /// Everybody's figures.
    pub contenders: Vec<Measured>,
    /// Microseconds of one Ed25519 check and of one EVM voucher's recovery.
    pub verification: (Spread, Spread),
    /// What is watched.
    pub ratios: Vec<Ratio>,
    /// Bytes of resident memory of an idle channel, where that was measured.
    pub idle_channel_bytes: Option<f64>,
}

/// What an idle channel may take of resident memory, in bytes.
pub const IDLE_BYTES_MAX: f64 = 400.0;

impl Report {
    pub(super) fn new(plan: &Plan, contenders: Vec<Measured>, verified: &[Verified], idle: Option<f64>) -> Self {
        let ratios = ratios(&contenders, verified);
        let verification = (Spread::of(verified.iter().map(|v| v.ed25519)), Spread::of(verified.iter().map(|v| v.evm)));
        let (connections, requests, rounds) = (plan.connections, plan.requests, plan.rounds);
        Self {
            machine: machine(),
            connections,
            requests,
            rounds,
            contenders,
            verification,
            ratios,
            idle_channel_bytes: idle,
        }
    }

    /// The contenders' figures as rows of a table, the heading first.
    #[must_use]
    pub fn rows(&self) -> Vec<Vec<String>> {
        let heading = ["", "requests/s", "p50 us", "p99 us", "p99.9 us", "CPU us/request", "to the bare proxy"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let bare = self.contenders.iter().find(|contender| contender.name == BARE);
        for contender in &self.contenders {
            let of = |figure: fn(&Sample) -> f64| {
                let Spread { least, median, most } = Spread::of(contender.samples.iter().map(figure));
                format!("{median:.0} ({least:.0}-{most:.0})")
            };
            let Spread { least, median, most } = Spread::of(contender.samples.iter().map(|sample| sample.cpu));
            let to_bare = bare.map_or_else(String::new, |bare| {
                let Spread { least, median, most } = paired(contender, bare, |ours, bare| ours.cpu / bare.cpu);
                format!("{median:.2} ({least:.2}-{most:.2})")
            });
            rows.push(vec![
                contender.name.clone(),
                of(|sample| sample.per_second),
                of(|sample| sample.p50),
                of(|sample| sample.p99),
                of(|sample| sample.p999),
                format!("{median:.1} ({least:.1}-{most:.1})"),
                to_bare,
            ]);
        }
        rows
    }

    /// The ratios as rows of a table, the heading first.
    #[must_use]
    pub fn ratio_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![["", "median (least-most)", "goal", ""].map(str::to_owned).to_vec()];
        for ratio in &self.ratios {
            let Spread { least, median, most } = ratio.value;
            let goal = if ratio.at_least { "at least" } else { "at most" };
            rows.push(vec![
                ratio.name.to_owned(),
                format!("{median:.2} ({least:.2}-{most:.2})"),
                format!("{goal} {:.2}", ratio.goal),
                if ratio.holds() { "holds".to_owned() } else { "missed".to_owned() },
            ]);
        }
        rows
    }
}

/// A figure of two contenders in each round.
fn paired(ours: &Measured, theirs: &Measured, figure: fn(&Sample, &Sample) -> f64) -> Spread {
    Spread::of(ours.samples.iter().zip(&theirs.samples).map(|(ours, theirs)| figure(ours, theirs)))
}

fn ratios(contenders: &[Measured], verified: &[Verified]) -> Vec<Ratio> {
    let find = |part: &str| contenders.iter().find(|contender| contender.name.ends_with(part));
    let Some(bare) = find(BARE) else { return Vec::new() };
    let cpu = |ours: &Sample, bare: &Sample| ours.cpu / bare.cpu;
    let mut ratios = Vec::new();
    let mut add = |name, value: Option<Spread>, goal, at_least| {
        ratios.extend(value.map(|value| Ratio { name, value, goal, at_least }));
    };
    add("free route, CPU / bare proxy", find("free route").map(|ours| paired(ours, bare, cpu)), 1.05, false);
    add("unpaid 402, CPU / bare proxy", find("402").map(|ours| paired(ours, bare, cpu)), 0.75, false);
    let with_check = |ours: &Measured, check: fn(&Verified) -> f64| {
        let rounds = ours.samples.iter().zip(&bare.samples).zip(verified);
        Spread::of(rounds.map(|((ours, bare), verified)| ours.cpu / (bare.cpu + check(verified))))
    };
    let (ed25519, evm) = (find("paid, Ed25519"), find("paid, EVM"));
    let value = ed25519.map(|ours| with_check(ours, |verified| verified.ed25519));
    add("paid Ed25519, CPU / (bare proxy + a check)", value, 1.15, false);
    let value = evm.map(|ours| with_check(ours, |verified| verified.evm));
    add("paid EVM, CPU / (bare proxy + a check)", value, 1.15, false);
    add("call on a pass, CPU / bare proxy", find("on a pass").map(|ours| paired(ours, bare, cpu)), 1.15, false);
    let value = ed25519.zip(find("in memory"));
    let value = value.map(|(disk, memory)| paired(disk, memory, |disk, memory| disk.per_second / memory.per_second));
    add("paid requests/s, ledger on disk / in memory", value, 0.85, true);
    let crowd = |name: &str| contenders.iter().find(|contender| contender.name.starts_with(name));
    let [few, many] = CROWDS.map(crowd);
    let value = many.zip(few).map(|(many, few)| paired(many, few, cpu));
    add("paid, CPU with many channels known / few", value, 1.2, false);
    let value = evm
        .zip(contenders.iter().find(|contender| contender.name.contains("reference")))
        .map(|(ours, theirs)| paired(ours, theirs, |ours, theirs| ours.per_second / theirs.per_second));
    add("paid requests/s / the reference middleware's", value, 50.0, true);
    ratios
}

/// One line about where this runs.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    format!(
        "{} x {}, Linux {}, turnpike {}; load average {}",
        cpus.matches("processor\t").count(),
        model.trim_start_matches(['\t', ':', ' ']),
        read("/proc/sys/kernel/osrelease").trim(),
        env!("CARGO_PKG_VERSION"),
        read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, cpu: [f64; 3]) -> Measured {
        let sample = |cpu| Sample { per_second: 1e6 / cpu, p50: 1.0, p99: 2.0, p999: 3.0, cpu };
        Measured { name: name.to_owned(), samples: cpu.map(sample).to_vec() }
    }

    #[test]
    fn ratios_are_made_within_a_round() {
        let contenders = [measured(BARE, [10.0, 20.0, 40.0]), measured("Turnpike, free route", [11.0, 20.0, 40.0])];
        let ratios = ratios(&contenders, &[Verified { ed25519: 1.0, evm: 1.0 }; 3]);
        let [free] = &ratios[..] else { panic!("only what was measured: {ratios:?}") };
        assert_eq!(free.value, Spread { least: 1.0, median: 1.0, most: 1.1 });
        assert!(free.holds());
        assert!(!Ratio { goal: 0.99, ..free.clone() }.holds());
        assert!(Ratio { goal: 0.99, at_least: true, ..free.clone() }.holds());
    }

    #[test]
    fn what_others_name_is_found_by_its_beginning_or_its_part() {
        let contenders = [
            measured(BARE, [10.0; 3]),
            measured("Turnpike, paid, EVM", [20.0; 3]),
            measured("Turnpike, few channels known: 1000", [20.0; 3]),
            measured("Turnpike, many channels known: 5000", [30.0; 3]),
            measured("the reference, on Node", [2000.0; 3]),
        ];
        let ratios = ratios(&contenders, &[Verified { ed25519: 1.0, evm: 10.0 }; 3]);
        let medians: Vec<_> = ratios.iter().map(|ratio| (ratio.value.median, ratio.holds())).collect();
        assert_eq!(medians, [(1.0, true), (1.5, false), (100.0, true)]);
    }

    #[test]
    fn a_check_is_part_of_the_yardstick_where_one_is_made() {
        let contenders = [measured(BARE, [10.0; 3]), measured("Turnpike, paid, Ed25519", [33.0; 3])];
        let ratios = ratios(&contenders, &[Verified { ed25519: 20.0, evm: 1.0 }; 3]);
        assert_eq!(ratios.iter().map(|ratio| ratio.value.median).collect::<Vec<_>>(), [1.1]);
    }
}

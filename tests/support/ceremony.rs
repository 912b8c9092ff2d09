//! Three participants of a ceremony, each with a process of its own for every step, and a courier that copies files between
//! their directories.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

pub const ALL: [u16; 3] = [1, 2, 3];

/// What one participant has.
pub struct Desk {
    /// Where its commands run. The ceremony's directory is `ceremony` below it.
    pub place: PathBuf,
    pub share: PathBuf,
    pub passphrase: PathBuf,
}

pub struct Desks(pub [Desk; 3]);

impl Desks {
    pub fn of(&self, me: u16) -> &Desk {
        &self.0[usize::from(me) - 1]
    }

    /// A command of one participant, in its own directory and with nothing of the others at hand.
    pub fn command(&self, me: u16, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnpike"));
        command.current_dir(&self.of(me).place).env_clear().args(arguments);
        command
    }

    pub fn start(&self, me: u16, what: &[&str]) -> Value {
        let Desk { share, passphrase, .. } = self.of(me);
        let mut command = self.command(me, &["ceremony", "start", "ceremony", "--json"]);
        command
            .args(what)
            .args(["--me", &me.to_string(), "--share"])
            .arg(share)
            .arg("--passphrase-file")
            .arg(passphrase);
        json(command.output().unwrap())
    }

    pub fn step(&self, me: u16, code: &[&str]) -> Value {
        let mut command = self.command(me, &["ceremony", "step", "ceremony", "--json"]);
        json(command.args(code).arg("--passphrase-file").arg(&self.of(me).passphrase).output().unwrap())
    }

    pub fn carry(&self) {
        for from in ALL {
            for entry in fs::read_dir(self.of(from).place.join("ceremony/out")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                for to in ALL.into_iter().filter(|to| *to != from) {
                    if name.starts_with("card") || name.ends_with(&format!("-to-{to}.json")) {
                        fs::copy(&path, self.of(to).place.join("ceremony/in").join(name)).unwrap();
                    }
                }
            }
        }
    }

    /// A whole ceremony, each with the arguments that `what` gives it. The address, which all agree on.
    pub fn ceremony(&self, what: impl Fn(u16) -> Vec<&'static str>) -> String {
        for me in ALL {
            let _ = fs::remove_dir_all(self.of(me).place.join("ceremony"));
            let begun = self.start(me, &what(me));
            assert_eq!(begun["stage"], "cards");
            assert_eq!(begun["waiting_for"].as_array().unwrap().len(), 2);
        }
        self.carry();
        let codes = ALL.map(|me| self.step(me, &[])["code"].as_str().unwrap().to_owned());
        assert!(codes.iter().all(|code| *code == codes[0]));
        for me in ALL {
            assert_eq!(self.step(me, &["--code", &codes[0]])["stage"]["round"], 1);
        }
        let done = |told: &Value| told["stage"]["done"]["address"].as_str().map(str::to_owned);
        for _ in 1..=12 {
            self.carry();
            let told = std::thread::scope(|scope| {
                ALL.map(|me| scope.spawn(move || self.step(me, &[]))).map(|step| step.join().unwrap())
            });
            if let [Some(first), Some(second), Some(third)] = told.each_ref().map(done) {
                assert!(first == second && second == third);
                return first;
            }
        }
        panic!("the ceremony has no end")
    }
}

pub fn json(output: Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

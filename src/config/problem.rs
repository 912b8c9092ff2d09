//! What is wrong with a file, said so that it can be put right: place, key, value, remedy.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::PROBLEMS_MAX;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Counted from 1; `None` where the whole file is meant.
    pub line: Option<usize>,
    /// Counted from 1; only told of syntax errors, where a line is not enough.
    pub column: Option<usize>,
    /// Where in the configuration: `routes[2].price`; empty for the whole file.
    pub key: String,
    /// The value, where there is one to show, and what is wrong with it.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Everything that is wrong with a file, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The file, as it was named.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
    /// How many more there are than [`PROBLEMS_MAX`].
    pub more: usize,
    /// The file could not be read at all.
    pub unreadable: bool,
}

/// Something that works and is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning(pub Problem);

impl Problems {
    /// The file cannot be read.
    pub(super) fn cannot_read(path: &Path, why: String) -> Self {
        let remedy = "Give the path of a readable YAML file, or write one with turnpike init.".to_owned();
        let problem = Problem { line: None, column: None, key: String::new(), message: why, remedy };
        Self { file: path.display().to_string(), problems: vec![problem], more: 0, unreadable: true }
    }

    /// The problems of a file that was read.
    pub(super) fn of(path: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| (p.line, p.column));
        let more = problems.len().saturating_sub(PROBLEMS_MAX);
        problems.truncate(PROBLEMS_MAX);
        Self { file: path.display().to_string(), problems, more, unreadable: false }
    }
}

impl fmt::Display for Problem {
    /// Begins with the place, so that a file's name can stand before it: `:14 routes[2].price: ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)?;
        if !self.remedy.is_empty() {
            write!(f, " {}", self.remedy)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    /// One line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}{problem}", self.file)?;
        }
        if self.more > 0 {
            write!(f, "\n{}: and {} more", self.file, self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

//! Reading a tree key by key: what is taken is known, what is left over is an unknown key, and whatever is wrong is
//! noted and read past, so that one pass finds every problem.
//!
//! No message shows a value other than as it stands in the file, with `${NAME}` unfilled, but for a token's symbol,
//! addresses and durations once they have been read as such. Values of keys that may hold a secret are never shown.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::problem::{Problem, Problems, Warning};
use super::yaml::{self, Entry, Kind, Node, join};
use super::{Env, value};

/// What every reader needs.
pub(super) struct Context<'c> {
    pub env: &'c Env<'c>,
    /// What relative paths are relative to.
    pub base: &'c Path,
    pub problems: RefCell<Vec<Problem>>,
    pub warnings: RefCell<Vec<Warning>>,
}

/// Reads a whole file: `want` says how it begins, `whole` reads it. Every problem at once, each with its place.
pub(super) fn document<T>(
    path: &Path,
    text: &str,
    env: &Env<'_>,
    want: &'static str,
    whole: impl FnOnce(&mut Map<'_, '_>) -> Option<T>,
) -> Result<(T, Vec<Warning>), Problems> {
    let (tree, problems) = yaml::parse(text);
    let cx = Context {
        env,
        base: path.parent().unwrap_or(Path::new("")),
        problems: RefCell::new(problems),
        warnings: RefCell::new(Vec::new()),
    };
    let read = tree.and_then(|tree| Value::root(&cx, &tree).map(want, whole).flatten());
    let mut problems = cx.problems.into_inner();
    match read {
        Some(read) if problems.is_empty() => Ok((read, cx.warnings.into_inner())),
        _ => {
            if problems.is_empty() {
                let message = "cannot be understood, and no reason was found.".to_owned();
                let remedy = "This is a fault of Turnpike; please report it with the file.".to_owned();
                problems.push(Problem { line: None, column: None, key: String::new(), message, remedy });
            }
            Err(Problems::of(path, problems))
        }
    }
}

/// What is wrong with a value, without the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub what: String,
    pub remedy: String,
    /// A better remedy that is made of the value; only told where the value stands in the file.
    pub suggestion: Option<String>,
}

impl Complaint {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), suggestion: None }
    }

    pub(super) fn suggest(self, suggestion: impl Into<String>) -> Self {
        Self { suggestion: Some(suggestion.into()), ..self }
    }
}

/// A value of the tree, with its key path.
#[derive(Clone)]
pub(super) struct Value<'c, 'n> {
    pub cx: &'c Context<'c>,
    pub key: String,
    pub line: usize,
    node: &'n Node,
    hidden: bool,
}

/// A mapping that is being read.
pub(super) struct Map<'c, 'n> {
    pub whole: Value<'c, 'n>,
    entries: &'n [Entry],
    known: Vec<&'static str>,
}

impl<'c, 'n> Value<'c, 'n> {
    /// The whole file.
    pub(super) fn root(cx: &'c Context<'c>, node: &'n Node) -> Self {
        Self { cx, key: String::new(), line: node.line, node, hidden: false }
    }

    /// The same value, never to be shown.
    pub(super) fn hide(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// Notes a problem that is not about what is written, but about its meaning here.
    pub(super) fn problem(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.cx.problem(self.line, self.key.clone(), message.into(), remedy.into());
    }

    /// Notes that the value is probably not meant.
    pub(super) fn warn(&self, message: impl Into<String>, remedy: impl Into<String>) {
        let problem = Problem {
            line: Some(self.line),
            column: None,
            key: self.key.clone(),
            message: message.into(),
            remedy: remedy.into(),
        };
        self.cx.warnings.borrow_mut().push(Warning(problem));
    }

    /// Notes a complaint about the value, and shows it.
    pub(super) fn reject(&self, complaint: Complaint) {
        let Complaint { what, remedy, suggestion } = complaint;
        let as_written = !self.hidden && self.written().is_some_and(|text| !text.contains("${"));
        let remedy = suggestion.filter(|_| as_written).unwrap_or(remedy);
        match self.shown() {
            Some(shown) => self.problem(format!("{shown} {what}."), remedy),
            None => self.problem(format!("{what}."), remedy),
        }
    }

    fn written(&self) -> Option<&'n str> {
        match &self.node.kind {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether it is this word: for keys that take a word or something else.
    pub(super) fn is_word(&self, word: &str) -> bool {
        self.written() == Some(word)
    }

    /// The value as it stands in the file, in quotes and cut where it is long.
    fn shown(&self) -> Option<String> {
        if self.hidden { None } else { self.written().map(value::quote) }
    }

    /// What kind of value this is, for messages.
    fn kind(&self) -> &'static str {
        match &self.node.kind {
            Kind::Scalar { .. } => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
            Kind::Refused => "refused",
        }
    }

    /// Whether this is `${NAME}` and nothing else.
    pub(super) fn is_one_variable(&self) -> bool {
        let name = self.written().and_then(|text| text.strip_prefix("${")?.strip_suffix('}'));
        name.is_some_and(|name| !name.contains(['$', '{', '}']))
    }

    /// Whether a variable is part of it.
    pub(super) fn holds_a_variable(&self) -> bool {
        self.written().is_some_and(|text| text.replace("$$", "").contains("${"))
    }

    fn wrong_kind(&self, want: &str) {
        if !matches!(self.node.kind, Kind::Refused) {
            self.problem(format!("is {}.", self.kind()), format!("Write {want}."));
        }
    }

    /// Text with its variables filled in. `want` completes "Write ...".
    pub(super) fn text(&self, want: &str) -> Option<String> {
        let Some(text) = self.written() else {
            self.wrong_kind(want);
            return None;
        };
        match value::fill(text, self.cx.env) {
            Ok(text) => Some(text),
            Err(complaint) => {
                self.reject(complaint);
                None
            }
        }
    }

    /// Text that `parse` makes something of.
    pub(super) fn parse<T>(&self, want: &str, parse: impl FnOnce(&str) -> Result<T, Complaint>) -> Option<T> {
        let text = self.text(want)?;
        parse(&text).map_err(|complaint| self.reject(complaint)).ok()
    }

    /// Exactly `true` or `false`, without quotes.
    pub(super) fn boolean(&self) -> Option<bool> {
        match &self.node.kind {
            Kind::Scalar { text, quoted: false } if text == "true" => Some(true),
            Kind::Scalar { text, quoted: false } if text == "false" => Some(false),
            Kind::Scalar { .. } => {
                self.reject(Complaint::new("is neither true nor false", "Write true or false, without quotes."));
                None
            }
            _ => {
                self.wrong_kind("true or false");
                None
            }
        }
    }

    /// One of `choices`.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let all = value::or_list(&names);
        self.parse(&all, |text| {
            let found = choices.iter().find(|(name, _)| *name == text);
            found.map(|(_, choice)| *choice).ok_or_else(|| {
                let complaint = Complaint::new("is not known here", format!("Write {all}."));
                match value::nearest(text, &names) {
                    Some(near) => complaint.suggest(format!("Did you mean {near}? It may be {all}.")),
                    None => complaint,
                }
            })
        })
    }

    /// A path; relative ones are relative to the file. Whether it exists is another question.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let text = self.parse("the path of a file", |text| {
            let bad = text.is_empty() || text.contains('\0');
            if bad { Err(Complaint::new("is no path", "Write the path of a file.")) } else { Ok(text.to_owned()) }
        })?;
        Some(self.cx.base.join(text))
    }

    /// The path of a file that is there.
    pub(super) fn existing_file(&self) -> Option<PathBuf> {
        let path = self.path()?;
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => Some(path),
            Ok(_) => {
                self.reject(Complaint::new("is not a file", "Write the path of a file."));
                None
            }
            Err(error) => {
                let remedy = "Write the path of a readable file; it is relative to this one.";
                self.reject(Complaint::new(format!("cannot be read ({})", error.kind()), remedy));
                None
            }
        }
    }

    /// Each of a list's items.
    pub(super) fn items(&self, want: &str) -> Option<Vec<Value<'c, 'n>>> {
        let Kind::List(items) = &self.node.kind else {
            self.wrong_kind(want);
            return None;
        };
        let item = |(i, node): (usize, &'n Node)| Value {
            cx: self.cx,
            key: format!("{}[{i}]", self.key),
            line: node.line,
            node,
            hidden: self.hidden,
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A list's items, or the value itself where it is none: for keys that take one or several.
    pub(super) fn one_or_many(&self) -> Vec<Value<'c, 'n>> {
        match self.node.kind {
            Kind::List(_) => self.items("").unwrap_or_default(),
            _ => vec![self.clone()],
        }
    }

    /// Whether it is a mapping: for keys that take one or a word.
    pub(super) const fn is_map(&self) -> bool {
        matches!(self.node.kind, Kind::Map(_))
    }

    /// Whether it is a list: for keys that take one or a word.
    pub(super) const fn is_list(&self) -> bool {
        matches!(self.node.kind, Kind::List(_))
    }

    /// The keys of a mapping whose keys are names.
    pub(super) fn names(&self) -> Vec<String> {
        match &self.node.kind {
            Kind::Map(entries) => entries.iter().map(|entry| entry.key.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// The line of one of a mapping's keys.
    pub(super) fn line_of(&self, name: &str) -> usize {
        match &self.node.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == name).map_or(self.line, |entry| entry.line),
            _ => self.line,
        }
    }

    /// Reads a mapping; keys that `read` did not take are unknown.
    pub(super) fn map<T>(&self, want: &str, read: impl FnOnce(&mut Map<'c, 'n>) -> T) -> Option<T> {
        let Kind::Map(entries) = &self.node.kind else {
            self.wrong_kind(want);
            return None;
        };
        let mut map = Map { whole: self.clone(), entries, known: Vec::new() };
        let result = read(&mut map);
        map.finish();
        Some(result)
    }
}

impl<'c, 'n> Map<'c, 'n> {
    /// The value of a key, where it is written.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'c, 'n>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        let value = self.value(entry);
        if entry.value.is_empty() {
            value.problem("has no value.", "Write one, or leave the key out.");
            return None;
        }
        Some(value)
    }

    /// The value of a key that must be there.
    pub(super) fn require(&mut self, key: &'static str, remedy: &str) -> Option<Value<'c, 'n>> {
        let value = self.take(key);
        if !self.has(key) {
            let whole = &self.whole;
            whole.cx.problem(whole.line, join(&whole.key, key), "is missing.".to_owned(), remedy.to_owned());
        }
        value
    }

    /// Whether a key is written, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// The line of a key, or of the mapping where it is not written.
    pub(super) fn line_of(&self, key: &str) -> usize {
        self.whole.line_of(key)
    }

    /// Refuses a key that would do nothing here.
    pub(super) fn inert(&mut self, key: &'static str, why: &str, remedy: &str) {
        self.known.push(key);
        if let Some(entry) = self.entries.iter().find(|entry| entry.key == key) {
            self.value(entry).problem(format!("does nothing {why}."), remedy);
        }
    }

    /// Every entry, for mappings whose keys are names.
    pub(super) fn take_all(&mut self) -> Vec<(&'n str, Value<'c, 'n>)> {
        let entries = self.entries;
        self.entries = &[];
        entries.iter().map(|entry| (entry.key.as_str(), self.value(entry))).collect()
    }

    fn value(&self, entry: &'n Entry) -> Value<'c, 'n> {
        let whole = &self.whole;
        let key = join(&whole.key, &entry.key);
        Value { cx: whole.cx, key, line: entry.value.line, node: &entry.value, hidden: whole.hidden }
    }

    fn finish(self) {
        let mut known = self.known.clone();
        known.sort_unstable();
        known.dedup();
        for entry in self.entries.iter().filter(|entry| !self.known.contains(&entry.key.as_str())) {
            let remedy = match value::nearest(&entry.key, &self.known) {
                Some(near) => format!("Did you mean {near}?"),
                None => format!("The keys here are {}.", known.join(", ")),
            };
            let key = join(&self.whole.key, &entry.key);
            self.whole.cx.problem(entry.line, key, "is not a key.".to_owned(), remedy);
        }
    }
}

impl Context<'_> {
    pub(super) fn problem(&self, line: usize, key: String, message: String, remedy: String) {
        self.problems.borrow_mut().push(Problem { line: Some(line), column: None, key, message, remedy });
    }
}

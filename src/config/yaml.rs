//! YAML text to a tree of located values. The only file that names the YAML library.
//!
//! Every scalar stays text, so that no price is ever a float; what a text means is decided by the key that reads it.
//! Refused, with their places: duplicate keys, keys that are not text, anchors, aliases, tags, a second document, and
//! nesting deeper than [`DEPTH_MAX`]. After a syntax error nothing further is known and only that is reported.

use std::collections::HashSet;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::Problem;
use super::{DEPTH_MAX, NODES_MAX};

/// A value and where it begins, counted from 1.
#[derive(Debug)]
pub(super) struct Node {
    pub line: usize,
    pub kind: Kind,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Text; `quoted` tells `"true"` from `true` and `""` from nothing.
    Scalar { text: String, quoted: bool },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the file's order, without duplicates.
    Map(Vec<Entry>),
    /// Something refused, of which a problem was told.
    Refused,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

impl Node {
    /// Nothing was written: `key:`, `~` or `null`.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, quoted: false } if matches!(text.as_str(), "" | "~" | "null"))
    }
}

/// Reads a text. The tree is whole unless the answer's tree is `None`; problems may be there in both cases.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<Problem>) {
    let mut builder = Builder::default();
    let mut options = granit_parser::options! {
        emit_unresolved_aliases: true,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    options.set_emit_comments(false);
    for next in Parser::new_from_str_with_options(text, options) {
        let stop = match next {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                let marker = error.marker();
                let message = format!("is not YAML: {}.", error.kind());
                let remedy = "Look at the indentation, quotes and brackets here and in the line before.";
                builder.problem(marker.line(), Some(marker.col().saturating_add(1)), String::new(), message, remedy);
                true
            }
        };
        if stop {
            return (None, builder.problems);
        }
    }
    if builder.root.is_none() && builder.problems.is_empty() {
        let remedy = "Write one with turnpike init.";
        builder.problem(1, None, String::new(), "holds no configuration.".to_owned(), remedy);
    }
    (builder.root, builder.problems)
}

/// A mapping or list that is not yet closed.
enum Open {
    List(Node, Vec<Node>),
    Map { node: Node, entries: Vec<Entry>, keys: HashSet<String>, key: Option<(String, usize, bool)> },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    problems: Vec<Problem>,
    documents: usize,
    nodes: usize,
}

impl Builder {
    /// Takes up an event; answers whether to stop.
    fn take(&mut self, event: Event<'_>, span: Span) -> bool {
        let line = span.start.line();
        match &event {
            Event::Scalar(_, _, anchor, tag) => self.refuse_decoration(line, *anchor, tag.is_some()),
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) => {
                self.refuse_decoration(line, *anchor, tag.is_some());
            }
            _ => {}
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents = self.documents.saturating_add(1);
                if self.documents > 1 {
                    let message = "begins a second document.".to_owned();
                    self.problem(line, None, String::new(), message, "Keep one document in a file.");
                    return true;
                }
            }
            Event::Scalar(text, style, ..) => {
                let quoted = !matches!(style, ScalarStyle::Plain);
                return self.add(Node { line, kind: Kind::Scalar { text: text.into_owned(), quoted } });
            }
            Event::SequenceStart(..) => self.open.push(Open::List(Node { line, kind: Kind::Refused }, Vec::new())),
            Event::MappingStart(..) => {
                let node = Node { line, kind: Kind::Refused };
                self.open.push(Open::Map { node, entries: Vec::new(), keys: HashSet::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => return self.close(),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let remedy = "Write the value out; where it is text that begins with *, put it in quotes.";
                self.problem(line, None, self.key(), "is an alias, which this file may not hold.".to_owned(), remedy);
                return self.add(Node { line, kind: Kind::Refused });
            }
            _ => {}
        }
        if self.open.len() > DEPTH_MAX {
            let message = format!("is nested deeper than {DEPTH_MAX} levels.");
            self.problem(line, None, self.key(), message, "No key needs that; look at the indentation.");
            return true;
        }
        false
    }

    fn refuse_decoration(&mut self, line: usize, anchor: usize, tag: bool) {
        if anchor != 0 {
            let remedy = "Leave it out; where it is text that begins with &, put it in quotes.";
            self.problem(line, None, self.key(), "has an anchor, which this file may not hold.".to_owned(), remedy);
        }
        if tag {
            let remedy = "Leave it out; where it is text that begins with !, put it in quotes.";
            self.problem(line, None, self.key(), "has a tag, which this file may not hold.".to_owned(), remedy);
        }
    }

    fn close(&mut self) -> bool {
        match self.open.pop() {
            Some(Open::List(node, items)) => self.add(Node { kind: Kind::List(items), ..node }),
            Some(Open::Map { node, entries, .. }) => self.add(Node { kind: Kind::Map(entries), ..node }),
            None => true,
        }
    }

    /// Puts a whole value where it belongs; answers whether to stop.
    fn add(&mut self, value: Node) -> bool {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > NODES_MAX {
            let message = format!("is the value after the first {NODES_MAX}.");
            self.problem(value.line, None, self.key(), message, "Split the file.");
            return true;
        }
        let path = self.key();
        let refused = match self.open.last_mut() {
            None => {
                self.root = Some(value);
                None
            }
            Some(Open::List(_, items)) => {
                items.push(value);
                None
            }
            Some(Open::Map { entries, keys, key, .. }) => match key.take() {
                None => begin_key(key, keys, value),
                Some((name, line, good)) => {
                    if good {
                        // An empty value has its place where the next thing begins; its key's line says more.
                        let value = if value.is_empty() { Node { line, ..value } } else { value };
                        entries.push(Entry { key: name, line, value });
                    }
                    None
                }
            },
        };
        if let Some((line, name, message, remedy)) = refused {
            self.problem(line, None, join(&path, &name), message.to_owned(), remedy);
        }
        false
    }

    /// The key path of what is being built.
    fn key(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match open {
                Open::List(_, items) => path.push_str(&format!("[{}]", items.len())),
                Open::Map { key: Some((name, ..)), .. } => path = join(&path, name),
                Open::Map { .. } => {}
            }
        }
        path
    }

    fn problem(&mut self, line: usize, column: Option<usize>, key: String, message: String, remedy: &str) {
        self.problems.push(Problem { line: Some(line), column, key, message, remedy: remedy.to_owned() });
    }
}

/// Takes a mapping's key; answers what is wrong with it.
fn begin_key(
    key: &mut Option<(String, usize, bool)>,
    keys: &mut HashSet<String>,
    value: Node,
) -> Option<(usize, String, &'static str, &'static str)> {
    let line = value.line;
    let Kind::Scalar { text, .. } = value.kind else {
        *key = Some((String::new(), line, false));
        return Some((line, String::new(), "has a key that is not text.", "Write a plain key, such as path."));
    };
    if keys.insert(text.clone()) {
        *key = Some((text, line, true));
        return None;
    }
    *key = Some((text.clone(), line, false));
    Some((line, text, "is written twice.", "Keep one of the two."))
}

/// A key path with one more name. Long names are cut: a key may be anything at all.
pub(super) fn join(path: &str, name: &str) -> String {
    let name: String = name.chars().take(40).flat_map(char::escape_debug).collect();
    if path.is_empty() || name.is_empty() { format!("{path}{name}") } else { format!("{path}.{name}") }
}

//! The tree of patterns: one level for each segment.
//!
//! At every level a text beats a parameter and a parameter beats a final `*`, from left to right; where a better branch
//! ends in nothing, the next one is tried. (The `matchit` router was considered: it refuses `/v1/{id}` beside
//! `/v1/*`, which operators will write.)

use super::pattern::{Pattern, Segment};

/// Leaves of type `L` by pattern.
#[derive(Debug)]
pub(super) struct Tree<L> {
    nodes: Vec<Node<L>>,
}

#[derive(Debug)]
struct Node<L> {
    /// Sorted by text.
    texts: Vec<(Box<str>, usize)>,
    any: Option<usize>,
    /// For a path that ends here.
    here: Option<L>,
    /// For a path that ends here or anywhere below.
    open: Option<L>,
}

impl<L> Default for Node<L> {
    fn default() -> Self {
        Self { texts: Vec::new(), any: None, here: None, open: None }
    }
}

impl<L> Default for Tree<L> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl<L> Tree<L> {
    /// The leaf of `pattern`, made where there is none. `None` never happens: every index is of this tree.
    pub(super) fn entry(&mut self, pattern: &Pattern, new: impl FnOnce() -> L) -> Option<&mut L> {
        let mut at = 0;
        for segment in &pattern.segments {
            at = self.child(at, segment)?;
        }
        let node = self.nodes.get_mut(at)?;
        Some(if pattern.open { &mut node.open } else { &mut node.here }.get_or_insert_with(new))
    }

    fn child(&mut self, at: usize, segment: &Segment) -> Option<usize> {
        let next = self.nodes.len();
        let node = self.nodes.get_mut(at)?;
        let child = match segment {
            Segment::Any => *node.any.get_or_insert(next),
            Segment::Text(text) => match node.texts.binary_search_by(|(t, _)| t.cmp(text)) {
                Ok(i) => node.texts.get(i)?.1,
                Err(i) => {
                    node.texts.insert(i, (text.clone(), next));
                    next
                }
            },
        };
        if child == next {
            self.nodes.push(Node::default());
        }
        Some(child)
    }

    /// The leaf of the most specific pattern that matches a canonical path. Visits each node at most once, and goes no
    /// deeper than the longest pattern.
    pub(super) fn find(&self, path: &str) -> Option<&L> {
        self.find_below(self.nodes.first()?, (!path.is_empty()).then_some(path))
    }

    fn find_below<'t>(&'t self, node: &'t Node<L>, rest: Option<&str>) -> Option<&'t L> {
        let Some(rest) = rest else { return node.here.as_ref().or(node.open.as_ref()) };
        let (segment, below) = match rest.split_once('/') {
            Some((segment, below)) => (segment, Some(below)),
            None => (rest, None),
        };
        let text = node.texts.binary_search_by(|(text, _)| text.as_ref().cmp(segment)).ok();
        let text = text.and_then(|i| node.texts.get(i)).map(|(_, child)| *child);
        [text, node.any]
            .into_iter()
            .flatten()
            .filter_map(|child| self.nodes.get(child))
            .find_map(|child| self.find_below(child, below))
            .or(node.open.as_ref())
    }
}

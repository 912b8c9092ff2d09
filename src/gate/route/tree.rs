//! The tree of patterns, by the `wayfind` router.
//!
//! At every level a text beats a parameter and a parameter beats a final `*`, from left to right; where a better branch
//! ends in nothing, the next one is tried. How the choice of the library was made is in `docs/decisions/0005`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use wayfind::{Router, RouterBuilder};

use super::pattern::{Pattern, Segment};

/// What stands for the library's own angle brackets where a path has them as text. No path has control characters.
const MASKS: [(&str, &str); 2] = [("<", "\u{1}"), (">", "\u{2}")];

/// Leaves of type `L` by pattern.
pub(super) struct Tree<L> {
    router: Router<Arc<L>>,
}

impl<L> Tree<L> {
    /// The tree of these leaves.
    ///
    /// # Errors
    /// The pattern that the router does not take, and why. Not seen for any [`Pattern`].
    pub(super) fn build(leaves: HashMap<Pattern, L>) -> Result<Self, String> {
        let leaves: HashMap<Pattern, Arc<L>> =
            leaves.into_iter().map(|(pattern, leaf)| (pattern, Arc::new(leaf))).collect();
        let mut router = RouterBuilder::new();
        let mut insert = |template: &str, leaf: &Arc<L>| {
            router.insert(template, Arc::clone(leaf)).map_err(|error| format!("{template}: {error}"))
        };
        for (pattern, leaf) in &leaves {
            let base = template(&pattern.segments);
            if !pattern.open {
                insert(&base, leaf)?;
                continue;
            }
            // What is open matches where it begins too, unless a pattern of its own ends there.
            let closed = Pattern { segments: pattern.segments.clone(), open: false };
            if !leaves.contains_key(&closed) {
                insert(&base, leaf)?;
            }
            insert(&format!("{}/<*rest>", base.trim_end_matches('/')), leaf)?;
        }
        Ok(Self { router: router.build() })
    }

    /// The leaf of the most specific pattern that matches a canonical path. Allocates nothing for up to four
    /// parameters.
    pub(super) fn find(&self, path: &str) -> Option<&L> {
        self.router.search(&masked(path)).map(|found| found.data().as_ref())
    }
}

/// A pattern's segments in the router's own spelling.
fn template(segments: &[Segment]) -> String {
    let mut template = String::new();
    for (index, segment) in segments.iter().enumerate() {
        // Writing to a text does not fail.
        let _written = match segment {
            Segment::Text(text) => write!(template, "/{}", masked(text)),
            Segment::Any => write!(template, "/<p{index}>"),
        };
    }
    if template.is_empty() { "/".to_owned() } else { template }
}

fn masked(text: &str) -> Cow<'_, str> {
    if !text.contains(['<', '>']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(MASKS.iter().fold(text.to_owned(), |text, (plain, mask)| text.replace(plain, mask)))
}

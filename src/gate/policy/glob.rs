//! Globs: text in which `*` stands for any run of characters, of no length too.
//!
//! Only `*`, so that no pattern can cost much: what stands between two stars is looked for once, from left to right, in
//! time linear in the text. A regular expression could say more, and what it costs could be chosen by who sends the
//! text.

use std::fmt;

/// The longest glob.
pub const GLOB_BYTES_MAX: usize = 256;

/// A pattern for a whole text.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob {
    text: Box<str>,
}

/// Why a text is no glob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It is empty, and would match nothing that there is.
    #[error("is empty")]
    Empty,
    /// It would match everything.
    #[error("matches everything")]
    Everything,
    /// More than [`GLOB_BYTES_MAX`].
    #[error("is longer than 256 bytes")]
    TooLong,
}

impl Glob {
    /// Reads a glob.
    ///
    /// # Errors
    /// [`GlobError`].
    pub fn parse(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() {
            Err(GlobError::Empty)
        } else if text.bytes().all(|byte| byte == b'*') {
            Err(GlobError::Everything)
        } else if text.len() > GLOB_BYTES_MAX {
            Err(GlobError::TooLong)
        } else {
            Ok(Self { text: text.into() })
        }
    }

    /// The same for texts in lower case.
    #[must_use]
    pub fn lowered(&self) -> Self {
        Self { text: self.text.to_lowercase().into() }
    }

    /// Whether the whole of `text` is what the glob says.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let mut pieces = self.text.split('*');
        // There is always a first piece; without a star it is the whole.
        let first = pieces.next().unwrap_or_default();
        let Some(last) = pieces.next_back() else { return text == first };
        let Some(rest) = text.strip_prefix(first) else { return false };
        let Some(mut rest) = rest.strip_suffix(last) else { return false };
        // The leftmost place of each piece leaves the most for those after it.
        pieces.all(|piece| match rest.find(piece) {
            Some(at) => {
                rest = rest.get(at.saturating_add(piece.len())..).unwrap_or_default();
                true
            }
            None => false,
        })
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(glob: &str, text: &str) -> bool {
        Glob::parse(glob).unwrap().matches(text)
    }

    #[test]
    fn a_star_is_any_run_and_everything_else_is_itself() {
        for (glob, yes, no) in [
            ("/v1/a", &["/v1/a"][..], &["/v1/", "/v1/ab", "x/v1/a", ""][..]),
            ("/v1/*", &["/v1/", "/v1/a/b"], &["/v1", "/v2/a"]),
            ("*.test", &[".test", "a.b.test"], &["test", "a.test.com"]),
            ("*bot*", &["bot", "a bot b"], &["bo", "b ot"]),
            ("a*b*c", &["abc", "a-b-c", "abbc", "a b b c c"], &["ab", "acb", "abcx", "ac"]),
            ("aa*aa", &["aaaa", "aaxaa"], &["aaa", "aa"]),
            ("a**b", &["ab", "axb"], &["a", "b"]),
            ("?.[a]", &["?.[a]"], &["x.a"]),
            ("é*ü", &["éü", "éxü"], &["e", "é"]),
        ] {
            yes.iter().for_each(|text| assert!(matches(glob, text), "{glob} {text}"));
            no.iter().for_each(|text| assert!(!matches(glob, text), "{glob} {text}"));
        }
        assert_eq!(Glob::parse(""), Err(GlobError::Empty));
        assert_eq!(Glob::parse("**"), Err(GlobError::Everything));
        assert_eq!(Glob::parse(&"a".repeat(GLOB_BYTES_MAX + 1)), Err(GlobError::TooLong));
    }

    /// The definition, without regard to cost.
    fn model(glob: &[char], text: &[char]) -> bool {
        match (glob.first(), text.first()) {
            (None, None) => true,
            (Some('*'), _) => model(&glob[1..], text) || (!text.is_empty() && model(glob, &text[1..])),
            (Some(a), Some(b)) if a == b => model(&glob[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_it_is_defined_to_be(glob in "[ab*]{1,8}", text in "[ab]{0,10}") {
            prop_assume!(Glob::parse(&glob).is_ok());
            let (g, t): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
            prop_assert_eq!(matches(&glob, &text), model(&g, &t), "{} {}", glob, text);
        }
    }
}

//! One spelling for every path: what a request asks for, in the form that patterns are matched in.
//!
//! Frameworks disagree on which spellings are the same path. A priced route must not be had for free, or at another
//! route's price, by a spelling that the upstream takes for the same. So spellings that common frameworks take for the
//! same path are made the same here, and those that are read in different ways are refused:
//!
//! | spelling | rule |
//! |---|---|
//! | letter case (`/V1/Quote`) | ignored: matched in lower case, as Express and IIS do |
//! | one slash at the end | ignored |
//! | percent-escapes (`/v1/%71uote`) | decoded once, then matched |
//! | empty segments (`//`), dot segments (`/./`, `/../`), escaped or not | refused |
//! | escaped `/`, any `\`, escaped `?` and `#` | refused: what stands behind them depends on who decodes when |
//! | `;`, escaped or not | refused: Java servers cut it off with what follows |
//! | control characters, escapes that are broken, not UTF-8, or decode to escapes (`%2561`) | refused |
//!
//! The upstream still receives the path as the client sent it; only the match goes by this form.

use std::borrow::Cow;

/// Why a path is refused: the request is malformed, and nothing was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadPath {
    /// It does not begin with a slash.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// Two slashes in a row.
    #[error("the path has an empty segment (two slashes in a row)")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the path has a dot segment")]
    DotSegment,
    /// An escaped slash, or a backslash.
    #[error("the path has an escaped slash or a backslash")]
    Separator,
    /// A semicolon, or an escaped `?` or `#`.
    #[error("the path has a semicolon, or an escaped question mark or number sign")]
    Delimiter,
    /// A control character.
    #[error("the path has a control character")]
    Control,
    /// A percent sign without two hexadecimal digits.
    #[error("the path has a percent sign without two hexadecimal digits")]
    Escape,
    /// An escape that decodes to another escape.
    #[error("the path is escaped twice")]
    EscapedTwice,
    /// The escapes are not UTF-8.
    #[error("the path is not UTF-8")]
    NotUtf8,
}

/// Paths up to this size are brought to their canonical form without allocation.
const STACK_BYTES: usize = 256;

/// Where a canonical path is written that differs from its spelling.
pub(in crate::gate) struct Scratch([u8; STACK_BYTES]);

impl Scratch {
    pub(in crate::gate) const fn new() -> Self {
        Self([0; STACK_BYTES])
    }
}

/// The canonical form of a path, without a slash at its end; the root is `/`.
///
/// # Errors
/// [`BadPath`] for what cannot be read in one way only.
pub(in crate::gate) fn canonical<'a>(path: &'a str, scratch: &'a mut Scratch) -> Result<Cow<'a, str>, BadPath> {
    if !path.starts_with('/') {
        return Err(BadPath::NotAbsolute);
    }
    let canonical = if path.bytes().all(is_plain) { Cow::Borrowed(path) } else { rewrite(path, scratch)? };
    if canonical == "/" {
        return Ok(canonical);
    }
    let canonical = match canonical {
        Cow::Borrowed(text) => Cow::Borrowed(text.strip_suffix('/').unwrap_or(text)),
        Cow::Owned(mut text) => {
            if text.ends_with('/') {
                text.pop();
            }
            Cow::Owned(text)
        }
    };
    check_segments(&canonical)?;
    Ok(canonical)
}

/// Bytes that are already as they are matched, wherever they stand.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !byte.is_ascii_uppercase() && !matches!(byte, b'%' | b';' | b'\\' | b'?' | b'#')
}

/// Decodes and lowers what is not plain.
fn rewrite<'a>(text: &str, scratch: &'a mut Scratch) -> Result<Cow<'a, str>, BadPath> {
    let mut heap = Vec::new();
    let target: &'a mut [u8] = if text.len() <= STACK_BYTES {
        &mut scratch.0
    } else {
        heap.resize(text.len(), 0);
        &mut []
    };
    let on_heap = !heap.is_empty();
    let length = if on_heap { decode(text.as_bytes(), &mut heap)? } else { decode(text.as_bytes(), target)? };
    if on_heap {
        heap.truncate(length);
        let text = String::from_utf8(heap).map_err(|_| BadPath::NotUtf8)?;
        return Ok(Cow::Owned(if text.is_ascii() { text } else { text.to_lowercase() }));
    }
    let target: &'a [u8] = target;
    let text = std::str::from_utf8(target.get(..length).unwrap_or_default()).map_err(|_| BadPath::NotUtf8)?;
    Ok(if text.is_ascii() { Cow::Borrowed(text) } else { Cow::Owned(text.to_lowercase()) })
}

/// Writes the decoded bytes, ASCII letters in lower case, and answers how many. `target` is as long as `source`.
fn decode(source: &[u8], target: &mut [u8]) -> Result<usize, BadPath> {
    let mut bytes = source.iter().copied();
    let mut slots = target.iter_mut();
    let mut length: usize = 0;
    // The bytes written last, to see escapes that decode to escapes.
    let mut last = [0, 0];
    while let Some(raw) = bytes.next() {
        let byte = if raw == b'%' {
            let high = bytes.next().and_then(hex).ok_or(BadPath::Escape)?;
            let low = bytes.next().and_then(hex).ok_or(BadPath::Escape)?;
            let decoded = (high << 4) | low;
            if decoded == b'/' {
                return Err(BadPath::Separator);
            }
            decoded
        } else {
            raw
        };
        match byte {
            b'\\' => return Err(BadPath::Separator),
            b';' | b'?' | b'#' => return Err(BadPath::Delimiter),
            0..=0x1F | 0x7F => return Err(BadPath::Control),
            _ => {}
        }
        if last[0] == b'%' && last[1].is_ascii_hexdigit() && byte.is_ascii_hexdigit() {
            return Err(BadPath::EscapedTwice);
        }
        last = [last[1], byte];
        if let Some(slot) = slots.next() {
            *slot = byte.to_ascii_lowercase();
            length = length.saturating_add(1);
        }
    }
    Ok(length)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(digit.wrapping_sub(b'a').wrapping_add(10)),
        b'A'..=b'F' => Some(digit.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

/// Refuses empty and dot segments in what is not the root.
fn check_segments(canonical: &str) -> Result<(), BadPath> {
    for segment in canonical.split('/').skip(1) {
        match segment {
            "" => return Err(BadPath::EmptySegment),
            "." | ".." => return Err(BadPath::DotSegment),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(path: &str) -> Result<String, BadPath> {
        canonical(path, &mut Scratch::new()).map(|canonical| canonical.strip_prefix('/').unwrap().to_owned())
    }

    #[test]
    fn spellings_of_one_path_are_one() {
        let long = "x".repeat(STACK_BYTES);
        for (path, want) in [
            ("/", ""),
            ("/v1/quote", "v1/quote"),
            ("/v1/quote/", "v1/quote"),
            ("/V1/Quote", "v1/quote"),
            ("/v1/%71uote", "v1/quote"),
            ("/v1/%51uote", "v1/quote"),
            ("/%76%31/quot%65/", "v1/quote"),
            ("/caf%C3%A9", "café"),
            ("/CAF%C3%89", "café"),
            ("/a%20b", "a b"),
            ("/100%25", "100%"),
            ("/a@b:c", "a@b:c"),
            ("/a%40b%3Ac", "a@b:c"),
            ("/...", "..."),
            ("/.well-known/x", ".well-known/x"),
            (&format!("/{long}%41"), &format!("{long}a")),
        ] {
            assert_eq!(of(path).as_deref(), Ok(want), "{path}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let long = format!("/{}%2f", "x".repeat(STACK_BYTES));
        for (path, why) in [
            ("", BadPath::NotAbsolute),
            ("*", BadPath::NotAbsolute),
            ("v1", BadPath::NotAbsolute),
            ("//", BadPath::EmptySegment),
            ("//v1/quote", BadPath::EmptySegment),
            ("/v1//quote", BadPath::EmptySegment),
            ("/v1/quote//", BadPath::EmptySegment),
            ("/v1/./quote", BadPath::DotSegment),
            ("/v1/x/../quote", BadPath::DotSegment),
            ("/v1/x/%2e%2E/quote", BadPath::DotSegment),
            ("/v1/.%2e/quote", BadPath::DotSegment),
            ("/..", BadPath::DotSegment),
            ("/v1%2fquote", BadPath::Separator),
            ("/v1%2Fquote", BadPath::Separator),
            (&long, BadPath::Separator),
            ("/v1\\quote", BadPath::Separator),
            ("/v1%5cquote", BadPath::Separator),
            ("/v1/quote;x=1", BadPath::Delimiter),
            ("/v1/quote%3Bx", BadPath::Delimiter),
            ("/v1/quote%3fx", BadPath::Delimiter),
            ("/v1/quote%23x", BadPath::Delimiter),
            ("/v1/quote%00", BadPath::Control),
            ("/v1/quote%0a", BadPath::Control),
            ("/v1/quote%7F", BadPath::Control),
            ("/v1/quote%", BadPath::Escape),
            ("/v1/quote%4", BadPath::Escape),
            ("/v1/%u0071uote", BadPath::Escape),
            ("/v1/%2571uote", BadPath::EscapedTwice),
            ("/v1/%25%37%31uote", BadPath::EscapedTwice),
            ("/v1%C0%AFquote", BadPath::NotUtf8),
            ("/%ff", BadPath::NotUtf8),
        ] {
            assert_eq!(of(path), Err(why), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_and_the_form_is_final(path in "/?[/.%;a-zA-Z0-9é\\\\ ]{0,300}") {
            if let Ok(form) = of(&path) {
                prop_assert!(!form.starts_with('/') && !form.ends_with('/'));
                // Its own escaping is read back as the same path.
                let spelled: String = form.bytes().map(|b| if b == b'/' { "/".to_owned() } else { format!("%{b:02x}") }).collect();
                prop_assert_eq!(of(&format!("/{spelled}")), Ok(form));
            }
        }

        #[test]
        fn escaping_any_byte_changes_nothing(path in "(/[a-zA-Z0-9~@:._-]{1,8}){1,6}", at in any::<prop::sample::Index>()) {
            let at = at.index(path.len());
            let byte = path.as_bytes()[at];
            prop_assume!(byte != b'/');
            let escaped = format!("{}%{byte:02X}{}", &path[..at], &path[at + 1..]);
            prop_assert_eq!(of(&escaped), of(&path));
        }
    }
}

//! Counts in an answer's body: fields of a JSON document, or of the events of a stream (`text/event-stream`).
//!
//! In a stream each field is taken from the last event that has it, since providers send a field in several events, or
//! in another one than the last: OpenAI's usage comes before `[DONE]`, Anthropic's in `message_start` and
//! `message_delta`. Pointers are those of RFC 6901; events those of the HTML standard, section 9.2.

use serde_json::Value;

/// The most bytes of a pointer.
pub const POINTER_BYTES_MAX: usize = 200;

/// What a body says at a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Count(u64),
    /// There is no such field, or it is `null`, or the body is of another kind.
    Missing,
    /// It is no whole number.
    Unreadable,
}

/// The fields that the pointers name, in their order.
pub(super) fn read(body: &[u8], is_stream: bool, pointers: &[&str]) -> Vec<Field> {
    let mut fields = vec![Field::Missing; pointers.len()];
    if !is_stream {
        fill(&mut fields, body, pointers);
        return fields;
    }
    for event in events(body).iter().rev() {
        if !fields.contains(&Field::Missing) {
            break;
        }
        fill(&mut fields, event, pointers);
    }
    fields
}

/// Fills in what is still missing from one document.
fn fill(fields: &mut [Field], document: &[u8], pointers: &[&str]) {
    let Ok(document) = serde_json::from_slice::<Value>(document) else { return };
    for (field, pointer) in fields.iter_mut().zip(pointers).filter(|(field, _)| **field == Field::Missing) {
        *field = match document.pointer(pointer) {
            None | Some(Value::Null) => Field::Missing,
            Some(value) => value.as_u64().map_or(Field::Unreadable, Field::Count),
        };
    }
}

/// The data of each event. One that the end of the stream cut off counts: its sender had nothing more to say.
fn events(stream: &[u8]) -> Vec<Vec<u8>> {
    let mut events = Vec::new();
    let mut data: Option<Vec<u8>> = None;
    for line in stream.split(|byte| *byte == b'\n').flat_map(lines) {
        if line.is_empty() {
            events.extend(data.take());
        } else if let Some(value) = line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut data {
                None => data = Some(value.to_vec()),
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            }
        }
    }
    events.extend(data);
    events
}

/// A line may end with CR, LF or both.
fn lines(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.strip_suffix(b"\r").unwrap_or(line).split(|byte| *byte == b'\r')
}

/// Whether a text is a pointer to a field (RFC 6901, section 3).
#[must_use]
pub fn is_pointer(text: &str) -> bool {
    let escapes = text.split('~').skip(1).all(|rest| rest.starts_with('0') || rest.starts_with('1'));
    text.starts_with('/') && text.len() <= POINTER_BYTES_MAX && escapes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(body: &str, is_stream: bool) -> Field {
        read(body.as_bytes(), is_stream, &["/usage/total_tokens"])[0]
    }

    #[test]
    fn a_field_is_a_whole_number_or_is_not_read() {
        for (body, expected) in [
            (r#"{"usage":{"total_tokens":12}}"#, Field::Count(12)),
            (r#"{"usage":{"total_tokens":18446744073709551615}}"#, Field::Count(u64::MAX)),
            (r#"{"usage":{"total_tokens":0}}"#, Field::Count(0)),
            (r#"{"usage":{"total_tokens":null}}"#, Field::Missing),
            (r#"{"usage":null}"#, Field::Missing),
            ("[]", Field::Missing),
            ("", Field::Missing),
            ("<html>", Field::Missing),
            (r#"{"usage":{"total_tokens":-1}}"#, Field::Unreadable),
            (r#"{"usage":{"total_tokens":1.5}}"#, Field::Unreadable),
            (r#"{"usage":{"total_tokens":"12"}}"#, Field::Unreadable),
            (r#"{"usage":{"total_tokens":18446744073709551616}}"#, Field::Unreadable),
            (r#"{"usage":{"total_tokens":[12]}}"#, Field::Unreadable),
        ] {
            assert_eq!(one(body, false), expected, "{body}");
        }
        let fields = read(br#"{"a/b":1,"m~n":[2]}"#, false, &["/a~1b", "/m~0n/0", "/none"]);
        assert_eq!(fields, [Field::Count(1), Field::Count(2), Field::Missing]);
    }

    #[test]
    fn a_streams_last_word_counts() {
        let openai = "data: {\"usage\":null,\"choices\":[1]}\n\ndata: {\"usage\":{\"total_tokens\":7},\"choices\":[]}\n\n\
                      data: [DONE]\n\n";
        assert_eq!(one(openai, true), Field::Count(7));
        let anthropic =
            b"event: message_start\r\ndata: {\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\r\n\
            \r\nevent: message_delta\r\ndata: {\"usage\":{\"output_tokens\":3}}\r\n\r\n\
            event: message_delta\r\ndata: {\"usage\":{\"output_tokens\":15}}\r\n\r\ndata:{}\r\n\r\n";
        let fields = read(anthropic, true, &["/message/usage/input_tokens", "/usage/output_tokens"]);
        assert_eq!(fields, [Field::Count(25), Field::Count(15)]);
        // Data over several lines, every end of line, a comment, and an end that was cut off.
        assert_eq!(one(":x\rdata: {\"usage\":\rdata: {\"total_tokens\":9}}\r\r", true), Field::Count(9));
        assert_eq!(one("data: {\"usage\":{\"total_tokens\":9}}", true), Field::Count(9));
        assert_eq!(one("data: {\"usage\":{\"total_tokens\":\"9\"}}\n\n", true), Field::Unreadable);
        assert_eq!(one("", true), Field::Missing);
        assert_eq!(one(r#"{"usage":{"total_tokens":9}}"#, true), Field::Missing, "no event");
    }

    #[test]
    fn pointers() {
        for text in ["/usage/total_tokens", "/", "/0", "/a~0b~1c"] {
            assert!(is_pointer(text), "{text}");
        }
        for text in ["", "usage", "#/usage", "/~", "/~2", "/a~"] {
            assert!(!is_pointer(text), "{text}");
        }
        assert!(!is_pointer(&"/".repeat(POINTER_BYTES_MAX + 1)));
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200), is_stream in any::<bool>()) {
            let _ = read(&body, is_stream, &["/usage/total_tokens", "/"]);
        }

        #[test]
        fn events_come_out_as_they_went_in(
            counts in proptest::collection::vec(0_u64..1000, 1..20), end in prop_oneof!["\n", "\r\n", "\r"],
        ) {
            let event = |count: &u64| format!("id: 1{end}data: {{\"usage\":{{\"total_tokens\":{count}}}}}{end}{end}");
            let stream: String = counts.iter().map(event).collect();
            prop_assert_eq!(one(&stream, true), Field::Count(*counts.last().unwrap()));
        }
    }
}

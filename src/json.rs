//! Strict reading of JSON that a person or another program wrote: the document and the LUKS vault. Pure.
//!
//! serde_json alone lets a key stand twice, nests 128 deep, takes an array for a struct, and puts values into its
//! error texts. Here the structure is checked first, and every error is one line that names the place and never
//! shows a value: a value may be a password. This is not a schema; what keys mean is the caller's matter.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Containers inside each other, at most. The deepest known document has four.
pub const MAX_DEPTH: usize = 64;

/// Longest path that is printed, in characters: a key can be megabytes long.
const MAX_PATH: usize = 200;

/// Why a text could not be read. One line each, with no value of the text in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Bytes that are no text.
    #[error("not valid UTF-8: byte {offset} cannot be read as text")]
    NotUtf8 {
        /// Position of the first bad byte.
        offset: usize,
    },
    /// Not JSON, or something after its end.
    #[error("not valid JSON: {sentence}")]
    Syntax {
        /// The parser's words, with line and column.
        sentence: String,
    },
    /// More than [`MAX_DEPTH`] containers inside each other.
    #[error("{path}: nested deeper than {MAX_DEPTH} levels")]
    TooDeep {
        /// Where.
        path: String,
    },
    /// The same key twice in one object: nobody can tell which one was meant.
    #[error("{path}: the key is given twice")]
    Duplicate {
        /// The key with its path.
        path: String,
    },
    /// A value of a wrong type.
    #[error("{path}: {sentence}")]
    Shape {
        /// Where, e.g. `network_mappings[2].source`.
        path: String,
        /// `expected a string, found a number`.
        sentence: String,
    },
    /// The outermost value is of a wrong type.
    #[error("{sentence}")]
    Top {
        /// `expected an object, found an array`.
        sentence: String,
    },
}

/// Checks the structure of `bytes` and gives them back as text.
pub fn check(bytes: &[u8]) -> Result<&str, JsonError> {
    let text =
        std::str::from_utf8(bytes).map_err(|error| JsonError::NotUtf8 { offset: error.valid_up_to() })?;
    let mut walk = Walk::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    // Our own limit comes first; serde_json's stays as a second one.
    let result = Step { walk: &mut walk }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (result, walk.found) {
        (_, Some(found)) => Err(found),
        (Err(error), None) => Err(JsonError::Syntax { sentence: error.to_string() }),
        (Ok(()), None) => Ok(text),
    }
}

/// Reads a value out of a text that [`check`] passed. Paths of keys that nobody asked for go to `ignored`.
pub fn read<'de, S: DeserializeSeed<'de>>(
    seed: S,
    text: &'de str,
    ignored: &mut Vec<String>,
) -> Result<S::Value, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut note = |path: serde_ignored::Path<'_>| ignored.push(shorten(&ignored_path(&path)));
    let mut track = serde_path_to_error::Track::new();
    let outer = serde_ignored::Deserializer::new(&mut deserializer, &mut note);
    let result = seed.deserialize(serde_path_to_error::Deserializer::new(outer, &mut track));
    result.map_err(|error| {
        let path = track.path().to_string();
        let sentence = sentence(&error.to_string());
        if path == "." {
            JsonError::Top { sentence }
        } else {
            JsonError::Shape { path: shorten(&path), sentence }
        }
    })
}

/// A text on one line and not longer than it is useful: control characters become escapes.
pub fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == most {
            line.push_str("...");
            break;
        }
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}

fn shorten(path: &str) -> String {
    one_line(path, MAX_PATH)
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", ignored_path(parent)),
        Path::Map { parent, key } => match ignored_path(parent) {
            above if above.is_empty() => key.clone(),
            above => format!("{above}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            ignored_path(parent)
        }
    }
}

/// serde's text without values: `invalid type: string "hunter2", expected a boolean at line 1 column 9` becomes
/// `expected a boolean, found a string`. What serde found stands before the *last* `, expected `, which is ours.
pub(crate) fn sentence(text: &str) -> String {
    let text = text.rfind(" at line ").map_or(text, |end| &text[..end]);
    let Some(at) = text.rfind(", expected ") else {
        return match text.strip_prefix("missing field ") {
            Some(field) => format!("{} is missing", field.replace('`', "\"")),
            None => one_line(text, MAX_PATH),
        };
    };
    let expected = match &text[at + ", expected ".len()..] {
        "a sequence" => "an array",
        "a map" => "an object",
        "u16" => "a number from 0 to 65535",
        other => other,
    };
    let found = text.strip_prefix("invalid type: ").and_then(|rest| {
        [
            ("string", "a string"),
            ("boolean", "a boolean"),
            ("integer", "a number"),
            ("floating", "a number"),
            ("null", "null"),
            ("sequence", "an array"),
            ("map", "an object"),
        ]
        .into_iter()
        .find_map(|(kind, word)| rest.starts_with(kind).then_some(word))
    });
    match found {
        Some(found) => format!("expected {expected}, found {found}"),
        None => format!("expected {expected}"),
    }
}

/// The walk over a text's structure: where it is and what was wrong there.
#[derive(Default)]
struct Walk {
    path: Vec<Segment>,
    found: Option<JsonError>,
}

enum Segment {
    Key(String),
    Index(usize),
}

impl Walk {
    fn path_text(&self) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) if text.is_empty() => text.push_str(key),
                Segment::Key(key) => {
                    text.push('.');
                    text.push_str(key);
                }
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        shorten(&text)
    }

    /// Notes what was found. serde's error only ends the walk; its text is not used.
    fn stop<E: serde::de::Error>(&mut self, found: JsonError) -> E {
        self.found = Some(found);
        E::custom("stopped")
    }

    /// The walk stands before a container that lies inside `path.len()` others.
    fn open<E: serde::de::Error>(&mut self) -> Result<(), E> {
        if self.path.len() >= MAX_DEPTH {
            self.path.truncate(3);
            let path = format!("{}...", self.path_text());
            return Err(self.stop(JsonError::TooDeep { path }));
        }
        Ok(())
    }
}

struct Step<'a> {
    walk: &'a mut Walk,
}

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        self.walk.open()?;
        let mut index = 0;
        loop {
            self.walk.path.push(Segment::Index(index));
            if sequence.next_element_seed(Step { walk: &mut *self.walk })?.is_none() {
                self.walk.path.pop();
                return Ok(());
            }
            self.walk.path.pop();
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.walk.open()?;
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.walk.path.push(Segment::Key(key.clone()));
            if !seen.insert(key) {
                let path = self.walk.path_text();
                return Err(self.walk.stop(JsonError::Duplicate { path }));
            }
            map.next_value_seed(Step { walk: &mut *self.walk })?;
            self.walk.path.pop();
        }
        Ok(())
    }
}

/// Reads `T` from a JSON object only: what serde derives for a struct also takes an array.
pub struct Object<T>(pub std::marker::PhantomData<T>);

impl<T> Object<T> {
    /// The seed.
    pub fn seed() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, T: serde::Deserialize<'de>> DeserializeSeed<'de> for Object<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: serde::Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(serde::de::value::MapAccessDeserializer::new(map))
    }
}

/// A list of JSON objects; fails at the element that is none.
pub struct Objects<T>(pub std::marker::PhantomData<T>);

impl<'de, T: serde::Deserialize<'de>> DeserializeSeed<'de> for Objects<T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: serde::Deserialize<'de>> Visitor<'de> for Objects<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
        let mut objects = Vec::new();
        while let Some(object) = sequence.next_element_seed(Object::seed())? {
            objects.push(object);
        }
        Ok(objects)
    }
}

/// Walks over a value of any shape without keeping it, and without calling its keys unknown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anything;

impl<'de> serde::Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut walk = Walk::default();
        Step { walk: &mut walk }.deserialize(deserializer).map(|()| Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_never_hold_a_value() {
        for (serde, ours) in [
            (
                r#"invalid type: string "MARKER", expected a boolean at line 1 column 9"#,
                "expected a boolean, found a string",
            ),
            (
                r#"invalid type: string "MARKER, expected x at line 3", expected a map at line 1 column 9"#,
                "expected an object, found a string",
            ),
            (
                "invalid type: integer `5`, expected a string at line 1 column 2",
                "expected a string, found a number",
            ),
            ("invalid type: null, expected a sequence", "expected an array, found null"),
            ("invalid value: integer `70000`, expected u16", "expected a number from 0 to 65535"),
            ("missing field `key` at line 1 column 2", "\"key\" is missing"),
        ] {
            assert_eq!(sentence(serde), ours);
        }
    }

    #[test]
    fn structure_is_judged_before_types() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(check(deep(MAX_DEPTH).as_bytes()).is_ok());
        for (text, expected) in [
            (r#"{"a":1,"a":2}"#.to_owned(), "a: the key is given twice"),
            (r#"{"a":[{},{"b":{"c":1,"d":2,"c":3}}]}"#.to_owned(), "a[1].b.c: the key is given twice"),
            (r#"{"a\nb":1,"a\nb":2}"#.to_owned(), "a\\nb: the key is given twice"),
            (deep(MAX_DEPTH + 1), "[0][0][0]...: nested deeper than 64 levels"),
            ("{".to_owned(), "not valid JSON: EOF while parsing an object at line 1 column 1"),
            ("{} x".to_owned(), "not valid JSON: trailing characters at line 1 column 4"),
        ] {
            assert_eq!(check(text.as_bytes()).unwrap_err().to_string(), expected);
        }
        assert_eq!(check(b"{\"a\":\"\xff\"}").unwrap_err(), JsonError::NotUtf8 { offset: 6 });
    }
}

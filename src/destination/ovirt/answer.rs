//! An engine's answers, read leniently: its JSON holds numbers and booleans as text, and an empty collection as `{}`. Pure.
//!
//! Used by everything beside it. Not here: the requests ([`super::client`]), and what an answer means.

use serde_json::Value;

/// A text that is there and not empty.
pub fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// A number, as such or as text.
pub fn number(value: &Value, key: &str) -> Option<u64> {
    let value = value.get(key)?;
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// A boolean, as such or as text.
pub fn flag(value: &Value, key: &str) -> Option<bool> {
    let value = value.get(key)?;
    value.as_bool().or_else(|| value.as_str()?.trim().parse().ok())
}

/// The id of what a thing refers to by `key`; a link ends with it.
pub fn id_of<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    let other = value.get(key)?;
    let link = || text(other, "href")?.trim_end_matches('/').rsplit('/').next();
    text(other, "id").or_else(link)
}

/// The elements of a collection; `None` for something else than one. Of one element some servers make no list.
pub fn list<'a>(value: &'a Value, key: &str) -> Option<&'a [Value]> {
    match value {
        Value::Array(elements) => Some(elements),
        Value::Object(object) => match object.get(key) {
            Some(Value::Array(elements)) => Some(elements),
            Some(Value::Null) => Some(&[]),
            Some(element @ Value::Object(_)) => Some(std::slice::from_ref(element)),
            Some(_) => None,
            None if object.is_empty() => Some(&[]),
            None => None,
        },
        Value::Null => Some(&[]),
        _ => None,
    }
}

/// What a search takes to find everything of this name. Its language has quotes but no way to write one inside, and `*`
/// stands for anything: so more may be found, and whoever asks compares the names.
pub fn search(name: &str) -> String {
    let plain: String =
        name.chars().map(|character| if is_special(character) { '*' } else { character }).collect();
    format!("name=\"{plain}\"")
}

/// Whether a search may not find this name where its language is understood otherwise.
pub fn is_odd(name: &str) -> bool {
    name.chars().any(|character| is_special(character) || matches!(character, '*' | '?' | '%'))
}

fn is_special(character: char) -> bool {
    matches!(character, '"' | '\\') || character.is_control()
}

/// Does a description or a comment hold this mark, as a whole word?
pub fn is_marked(value: &Value, mark: &str) -> bool {
    ["description", "comment"]
        .iter()
        .any(|key| text(value, key).is_some_and(|text| text.split_whitespace().any(|word| word == mark)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_booleans_may_be_texts() {
        let value = json!({"a": "12", "b": 12, "c": "true", "d": false, "e": "", "f": "x"});
        assert_eq!(
            (number(&value, "a"), number(&value, "b"), number(&value, "f")),
            (Some(12), Some(12), None)
        );
        assert_eq!(
            (flag(&value, "c"), flag(&value, "d"), flag(&value, "a")),
            (Some(true), Some(false), None)
        );
        assert_eq!((text(&value, "e"), text(&value, "f")), (None, Some("x")));
    }

    #[test]
    fn a_reference_is_an_id_or_a_link() {
        let thing =
            json!({"a": {"id": "x", "href": "/api/things/y"}, "b": {"href": "/api/things/y/"}, "c": {}});
        assert_eq!((id_of(&thing, "a"), id_of(&thing, "b")), (Some("x"), Some("y")));
        assert_eq!((id_of(&thing, "c"), id_of(&thing, "d")), (None, None));
    }

    #[test]
    fn an_empty_collection_is_told_from_something_else() {
        for (value, length) in [
            (json!({}), Some(0)),
            (json!(null), Some(0)),
            (json!({"vm": []}), Some(0)),
            (json!({"vm": [{}, {}]}), Some(2)),
            (json!({"vm": {"id": "a"}}), Some(1)),
            (json!([{}]), Some(1)),
            (json!({"vm": "x"}), None),
            (json!({"disk": []}), None),
            (json!("x"), None),
        ] {
            assert_eq!(list(&value, "vm").map(<[Value]>::len), length, "{value}");
        }
    }

    #[test]
    fn a_name_is_quoted_and_what_cannot_be_quoted_stands_for_anything() {
        for (name, expected) in [
            ("My Virtual", "name=\"My Virtual\""),
            ("a*b?c%", "name=\"a*b?c%\""),
            ("a\"b\\c\nd", "name=\"a*b*c*d\""),
            ("名前 or name=x", "name=\"名前 or name=x\""),
        ] {
            assert_eq!(search(name), expected);
        }
        assert!(is_odd("a*") && is_odd("\"") && !is_odd("My Virtual"));
    }

    #[test]
    fn a_mark_is_a_whole_word() {
        let thing = json!({"description": "Converted by x t-1-disk-1", "comment": "t-machine"});
        assert!(is_marked(&thing, "t-1-disk-1") && is_marked(&thing, "t-machine"));
        assert!(!is_marked(&thing, "t-1-disk") && !is_marked(&json!({}), "t"));
    }
}

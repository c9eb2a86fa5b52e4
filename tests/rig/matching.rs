//! Compares JSON with what is expected of it. An expected value is plain JSON (objects may hold more keys than
//! named, arrays have exactly the named length, numbers compare by value) or one of the matchers
//! `{"$any": [..]}`, `{"$re": ".."}`, `{"$ge": n}`, `{"$text": true}`, `{"$int": true}`.

use regex::Regex;
use serde_json::Value;

/// Where `got` is not what `want` says: one line per difference, with the path to it.
pub fn differences(path: &str, want: &Value, got: Option<&Value>) -> Vec<String> {
    let Some(got) = got else { return vec![format!("{path}: expected {want}, got nothing")] };
    let wrong = || vec![format!("{path}: expected {want}, got {got}")];
    let check = |good: bool| if good { Vec::new() } else { wrong() };
    match want {
        Value::Object(map) if map.len() == 1 && map.keys().all(|key| key.starts_with('$')) => {
            let (matcher, argument) = map.iter().next().expect("one");
            check(match matcher.as_str() {
                "$any" => {
                    let choices = argument.as_array().expect("$any takes an array");
                    choices.iter().any(|choice| differences(path, choice, Some(got)).is_empty())
                }
                "$re" => {
                    let pattern = Regex::new(argument.as_str().expect("$re takes a text")).expect("pattern");
                    got.as_str().is_some_and(|text| pattern.is_match(text))
                }
                "$ge" => {
                    let least = argument.as_f64().expect("$ge takes a number");
                    got.as_f64().is_some_and(|number| number >= least)
                }
                "$text" => got.as_str().is_some_and(|text| !text.trim().is_empty()),
                "$int" => got.is_i64() || got.is_u64(),
                other => panic!("no such matcher: {other}"),
            })
        }
        Value::Object(map) => match got {
            Value::Object(have) => map
                .iter()
                .flat_map(|(key, want)| differences(&format!("{path}.{key}"), want, have.get(key)))
                .collect(),
            _ => wrong(),
        },
        Value::Array(items) => match got {
            Value::Array(have) if have.len() == items.len() => items
                .iter()
                .zip(have)
                .enumerate()
                .flat_map(|(at, (want, have))| differences(&format!("{path}[{at}]"), want, Some(have)))
                .collect(),
            _ => wrong(),
        },
        Value::Number(number) => check(got.is_number() && number.as_f64() == got.as_f64()),
        plain => check(plain == got),
    }
}

/// Does it match?
pub fn matches(want: &Value, got: &Value) -> bool {
    differences("", want, Some(got)).is_empty()
}

/// Is `part` a run of neighbours somewhere in `all`?
pub fn has_run(all: &[String], part: &[String]) -> bool {
    !part.is_empty() && all.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_matcher_tells_right_from_wrong() {
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("json");
    for (want, good, bad) in [
        (r#"{"$any": [1, {"$text": true}]}"#, vec!["1", "1.0", "\"a\""], vec!["2", "\"\"", "null"]),
        (r#"{"$re": "^a.c"}"#, vec!["\"abcd\""], vec!["\"xabc\"", "1"]),
        (r#"{"$ge": 2}"#, vec!["2", "2.5"], vec!["1.9", "\"3\""]),
        (r#"{"$int": true}"#, vec!["-15", "3"], vec!["1.5", "\"1\""]),
        (
            r#"{"a": [{"b": 1}]}"#,
            vec![r#"{"a": [{"b": 1.0, "c": 2}], "d": 3}"#],
            vec![r#"{"a": [{"b": 1}, 2]}"#, "[]"],
        ),
        ("true", vec!["true"], vec!["1", "false"]),
    ] {
        for text in good {
            assert!(matches(&json(want), &json(text)), "{want} should take {text}");
        }
        for text in bad {
            assert!(!matches(&json(want), &json(text)), "{want} should refuse {text}");
        }
    }
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(has_run(&words("-o local -os x"), &words("local -os")));
    assert!(!has_run(&words("-o local -os x"), &words("-o x")));
}

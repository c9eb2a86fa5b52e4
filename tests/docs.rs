//! What the documentation shows must work: its documents are read by the program's own schema, its configuration by the
//! program's own reader. Nothing is started here.

use std::fs;
use std::path::Path;

use serde_json::Value;

fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every JSON example of the README is strict JSON, uses only keys of the schema, and has values of the right type.
#[test]
fn examples_of_the_readme_are_documents() {
    let schema: Value = serde_json::from_str(&read("schemas/document.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let readme = read("README.md");
    let examples: Vec<&str> =
        readme.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 8, "one example for each source and destination, found {}", examples.len());
    for example in examples {
        let document: Value =
            serde_json::from_str(example).unwrap_or_else(|error| panic!("{error} in\n{example}"));
        for key in document.as_object().unwrap().keys() {
            assert!(schema["properties"].get(key).is_some(), "the schema has no key {key}:\n{example}");
        }
        let errors: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in\n{example}");
    }
}

/// The packaged configuration shows only keys and values that the program accepts.
#[test]
fn the_packaged_configuration_can_be_uncommented() {
    let text = read("packaging/config.toml");
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    for text in [&text, &uncommented] {
        virt_v2v_wrapper::site::Site::parse(text, Path::new("packaging/config.toml")).unwrap();
    }
}

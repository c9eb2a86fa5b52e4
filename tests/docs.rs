//! What the documentation shows must work: its documents are read by the program's own schema, its configuration by the
//! program's own reader, its verbs are those that the program names. No job is started here.

use std::fs;
use std::path::Path;
use std::process::Command;

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

/// Every key in the README's tables of keys is one of its schema.
#[test]
fn keys_of_the_readme_are_those_of_the_schemas() {
    let readme = read("README.md");
    for (heading, schema, least) in [
        ("### Other keys", "document", 20),
        ("## The state file", "state", 20),
        ("In two-phase each of", "state", 8),
    ] {
        let schema: Value = serde_json::from_str(&read(&format!("schemas/{schema}.schema.json"))).unwrap();
        let names = if heading.starts_with("In two-phase") { &schema["$defs"]["Disk"] } else { &schema };
        let (_, after) =
            readme.split_once(heading).unwrap_or_else(|| panic!("{heading} is not in README.md"));
        let table =
            after.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        let mut found = 0;
        for cell in table.skip(2).filter_map(|row| row.split('|').nth(1)) {
            for key in cell.split('`').skip(1).step_by(2) {
                let key = key.trim_end_matches("[]");
                assert!(names["properties"].get(key).is_some(), "{heading}: the schema has no {key}");
                found += 1;
            }
        }
        assert!(found >= least, "{heading}: {found} keys");
    }
}

/// Every verb is in the README, in the manual page and in the completion; its options in the latter two.
#[test]
fn verbs_are_documented_wherever_verbs_are() {
    let help = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = help(&["--help"]);
    let (_, after) = text.split_once("Commands:\n").unwrap();
    let verbs: Vec<&str> =
        after.lines().map_while(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    assert!(verbs.len() >= 11 && verbs.contains(&"cutover"), "{verbs:?}");
    let (readme, page, completion) =
        (read("README.md"), read("packaging/virt-v2v-wrapper.1"), read("packaging/completion.bash"));
    let words: Vec<&str> = completion.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
    for verb in verbs {
        assert!(verb == "help" || readme.contains(&format!("`{verb}")), "{verb} is not in README.md");
        assert!(
            page.lines().any(|line| [format!(".B {verb}"), format!(".BI {verb} ")]
                .iter()
                .any(|begin| line.starts_with(begin))),
            "{verb} has no entry in the manual page"
        );
        assert!(words.contains(&verb), "{verb} is not completed");
        // `help --help` is asked for a verb called so.
        let text = if verb == "help" { String::new() } else { help(&[verb, "--help"]) };
        for option in text.split_whitespace().filter(|word| word.starts_with("--") && *word != "--help") {
            let shown = option.replace('-', "\\-");
            assert!(page.contains(&shown), "{verb} {option} is not in the manual page");
            assert!(words.contains(&option), "{verb} {option} is not completed");
        }
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

//! Rules of the document: shapes, error texts, and that nothing a client sends can make it panic or leak.

use proptest::prelude::{any, proptest};
use secrecy::ExposeSecret;

use super::{MAX_BYTES, parse};

fn error(text: &str) -> String {
    parse(text.as_bytes()).expect_err(text).to_string()
}

#[test]
fn every_error_is_one_clear_line() {
    for (text, expected) in [
        ("", "the document on stdin is empty: send one JSON object"),
        (" \n\t", "the document on stdin is empty: send one JSON object"),
        ("{", "the document on stdin: not valid JSON: EOF while parsing an object at line 1 column 1"),
        ("{} {}", "the document on stdin: not valid JSON: trailing characters at line 1 column 4"),
        ("[]", "the document on stdin: expected an object, found an array"),
        ("\"x\"", "the document on stdin: expected an object, found a string"),
        ("null", "the document on stdin: expected an object, found null"),
        (r#"{"vm_name": 1}"#, "vm_name: expected a string, found a number"),
        (r#"{"vm_name": "a", "vm_name": "b"}"#, "vm_name: the key is given twice"),
        (r#"{"osp_environment": {"os-a": 1, "os-a": 2}}"#, "osp_environment.os-a: the key is given twice"),
        (r#"{"daemonize": "false"}"#, "daemonize: expected a boolean, found a string"),
        (r#"{"two_phase": 1}"#, "two_phase: expected a boolean, found a number"),
        (r#"{"source_disks": "a"}"#, "source_disks: expected an array, found a string"),
        (r#"{"source_disks": ["a", null]}"#, "source_disks[1]: expected a string, found null"),
        (
            r#"{"network_mappings": [{}, {}, {"source": 3}]}"#,
            "network_mappings[2].source: expected a string, found a number",
        ),
        (
            r#"{"network_mappings": [["a", "b", "c", "d"]]}"#,
            "network_mappings[0]: expected an object, found an array",
        ),
        (r#"{"osp_environment": ["a"]}"#, "osp_environment: expected an object, found an array"),
        (
            r#"{"osp_environment": {"os-x": ["a"]}}"#,
            "osp_environment.os-x: expected a string, number or boolean, found an array",
        ),
        (
            r#"{"osp_security_groups_ids": [1]}"#,
            "osp_security_groups_ids[0]: expected a string, found a number",
        ),
        (
            r#"{"nbd_export_only": {"/dev/x": 70000}}"#,
            "nbd_export_only./dev/x: expected a number from 0 to 65535",
        ),
        (r#"{"throttling": []}"#, "throttling: expected an object, found an array"),
        (
            r#"{"throttling": {"cpu": {}}}"#,
            "throttling.cpu: expected a string, number or boolean, found an object",
        ),
        (r#"{"iteration_seconds": []}"#, "iteration_seconds: expected a number of seconds, found an array"),
    ] {
        assert_eq!(error(text), expected);
    }
    let invalid = parse(b"{\"vm_name\": \"\xff\"}").unwrap_err().to_string();
    assert_eq!(invalid, "the document on stdin: not valid UTF-8: byte 13 cannot be read as text");
    let large = parse(&vec![b' '; MAX_BYTES + 1]).unwrap_err().to_string();
    assert_eq!(large, "the document on stdin is larger than 16 MiB");
    let deep = format!("{{\"foo\": {}{}}}", "[".repeat(64), "]".repeat(64));
    assert_eq!(error(&deep), "foo[0][0]...: nested deeper than 64 levels");
    // A stack overflow would kill the test, not fail it.
    assert!(error(&"[".repeat(1_000_000)).contains("nested deeper than 64 levels"));
}

#[test]
fn secrets_stand_in_no_error_and_no_debug_text() {
    for text in [
        r#"{"vmware_password": ["MARKER"]}"#,
        r#"{"vmware_password": {"MARKER": 1}}"#,
        r#"{"daemonize": "MARKER"}"#,
        r#"{"daemonize": "MARKER, expected x"}"#,
        r#"{"osp_environment": {"os-password": ["MARKER"]}}"#,
        r#"{"ssh_key": "MARKER"#,
        r#"{"ssh_key": "MARKER" x"#,
        r#"{"ssh_key": MARKER}"#,
    ] {
        let text = error(text);
        assert!(!text.contains("MARKER") && !text.contains('\n'), "{text}");
    }
    let parsed = parse(
        br#"{"vmware_password": "MARKER", "rhv_password": "MARKER", "ssh_key": "MARKER",
        "osp_environment": {"os-password": "MARKER", "os-n": "MARKER"}, "osp_source_environment": {"p": "MARKER"},
        "vm_name": "ssh://u:MARKER@h/x.vmx", "vmware_uri": "esx://u:MARKER@h", "rhv_url": "https://u:MARKER@h",
        "vmware_password_file": "MARKER", "rhv_debug": {"a": "MARKER"}}"#,
    )
    .unwrap();
    assert!(!format!("{parsed:?}").contains("MARKER"));
}

#[test]
fn null_is_absent_everywhere() {
    let schema: serde_json::Value =
        serde_json::from_str(&crate::schema::render(crate::schema::Schema::Document)).unwrap();
    let keys = schema["properties"].as_object().unwrap();
    let nulls: serde_json::Map<_, _> =
        keys.keys().map(|key| (key.clone(), serde_json::Value::Null)).collect();
    let parsed = parse(&serde_json::to_vec(&nulls).unwrap()).unwrap();
    assert_eq!(parsed.unknown_keys, Vec::<String>::new());
    let absent = parse(b"{}").unwrap();
    assert_eq!(format!("{:?}", parsed.document), format!("{:?}", absent.document));
}

#[test]
fn unknown_keys_are_named_and_known_ones_are_not() {
    let parsed = parse(
        br#"{"foo": {"a": 1}, "backend": {"x": [1]}, "vm_uuid": 7, "network_mappings": [{"source": "a", "nic": 1}],
        "throttling": {"cpu": "50%", "disk": 1}, "luks_keys_files": [{"device": "a"}], "vm_nmae": "x",
        "osp_security_groups_ids": {"a": {"b": 1}}}"#,
    )
    .unwrap();
    assert_eq!(parsed.unknown_keys, ["foo", "network_mappings[0].nic", "throttling.disk", "vm_nmae"]);
}

#[test]
fn environment_keeps_its_order_and_formats_values() {
    let parsed = parse(
        br#"{"osp_environment": {"OS_Z": "z", "os-a": 3, "os_b": true, "OS_N": null, "os-f": 3.0, "os-i": -1}}"#,
    )
    .unwrap();
    let pairs = parsed.document.osp_environment.unwrap().0;
    let shown: Vec<_> =
        pairs.iter().map(|(key, value)| format!("{key}={}", value.0.expose_secret())).collect();
    assert_eq!(shown, ["OS_Z=z", "os-a=3", "os_b=true", "os-f=3.0", "os-i=-1"]);
}

#[test]
fn loose_values_are_left_to_the_plan() {
    use super::{List, Seconds};
    for value in ["1", "\"x\"", "{\"a\":{\"b\":[1]}}", "true", "1.5", "-1"] {
        let text = format!("{{\"network_mappings\": {value}, \"osp_security_groups_ids\": {value}}}");
        let document = parse(text.as_bytes()).unwrap().document;
        assert!(matches!(document.network_mappings, Some(List::NotAList)), "{value}");
        assert!(matches!(document.osp_security_groups_ids, Some(List::NotAList)), "{value}");
    }
    for (value, seconds) in [
        ("60", Seconds::Whole(60)),
        ("\"60\"", Seconds::Whole(60)),
        ("\" 7 \"", Seconds::Whole(7)),
        ("-1", Seconds::Whole(-1)),
        ("1.9", Seconds::Cut(1)),
        ("60.0", Seconds::Whole(60)),
        ("\"ten\"", Seconds::Invalid),
    ] {
        let text = format!("{{\"iteration_seconds\": {value}}}");
        assert_eq!(parse(text.as_bytes()).unwrap().document.iteration_seconds, Some(seconds), "{value}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_json_panics(key in "[a-z_]{1,20}", value in any::<String>(), number in any::<f64>(), depth in 0usize..70) {
        let schema = ["vm_name", "osp_environment", "network_mappings", "throttling", "iteration_seconds", &key];
        for key in schema {
            let value = serde_json::json!({"a": value, "b": [number, null, {"c": value}]});
            let text = format!("{{\"{key}\": {}{value}{}}}", "[".repeat(depth), "]".repeat(depth));
            if let Err(error) = parse(text.as_bytes()) {
                assert!(!error.to_string().chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn no_mangled_document_panics(cut in 0usize..400, byte: u8) {
        let mut bytes = br#"{"vm_name":"a","network_mappings":[{"source":"\u00e4","destination":"b"}],"osp_environment":{"os-a":1.5e3,"os-b":true},"throttling":{"cpu":"5%"},"iteration_seconds":"60","osp_security_groups_ids":["a"],"nbd_export_only":{"/dev/x":1}}"#.to_vec();
        let at = cut % bytes.len();
        bytes[at] = byte;
        let _ = parse(&bytes);
        bytes.truncate(at);
        let _ = parse(&bytes);
    }
}

//! Rules of the vault, on real files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn vault(directory: &Path, content: &str, mode: u32) -> LuksVault {
    let file = directory.join("vault.json");
    std::fs::write(&file, content).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    LuksVault { paths: vec![file], explicit: true, names: vec!["My VM".into(), "other".into()] }
}

fn problem(content: &str, mode: u32, uid: u32) -> String {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path(), content, mode);
    let error = read(&vault, uid).map(|(keys, _)| keys).unwrap_err().to_string();
    error.replace(&*directory.path().to_string_lossy(), "DIR")
}

#[test]
fn owner_others_and_group_are_judged_in_this_order() {
    for (mode, other_owner, expected) in [
        (0o666, true, "LUKS keys vault does'nt belong touser running virt-v2v-wrapper"),
        (0o600, true, "LUKS keys vault does'nt belong touser running virt-v2v-wrapper"),
        (0o644, false, "LUKS keys vault is accessible to others"),
        (0o602, false, "LUKS keys vault is accessible to others"),
        (0o601, false, "LUKS keys vault is accessible to others"),
        (0o640, false, "LUKS keys vault is accessible to group"),
        (0o610, false, "LUKS keys vault is accessible to group"),
    ] {
        assert_eq!(problem("{}", mode, uid() + u32::from(other_owner)), expected, "{mode:o}");
    }
}

#[test]
fn keys_are_found_by_the_first_name_that_has_some() {
    let directory = tempfile::tempdir().unwrap();
    let shown = |content: &str| -> Vec<String> {
        let (keys, warning) = read(&vault(directory.path(), content, 0o600), uid()).unwrap();
        assert_eq!(warning, None);
        keys.iter().map(|key| format!("{}={}", key.device, key.key.expose_secret())).collect()
    };
    let (one, two) = (r#"[{"device":"/dev/sda1","key":"k1"},{"device":"/dev/sda2","key":"k2","x":1}]"#, "[]");
    assert_eq!(shown(&format!(r#"{{"My VM":{one}}}"#)), ["/dev/sda1=k1", "/dev/sda2=k2"]);
    assert_eq!(shown(&format!(r#"{{"other":{one},"x":{{"bad":[1]}}}}"#)), ["/dev/sda1=k1", "/dev/sda2=k2"]);
    assert_eq!(shown(&format!(r#"{{"other":{one},"My VM":{two}}}"#)), Vec::<String>::new());
    assert_eq!(shown(&format!(r#"{{"My VM":{two},"other":{one}}}"#)), Vec::<String>::new());
    assert_eq!(shown("{}"), Vec::<String>::new());
}

#[test]
fn a_broken_vault_is_named_and_its_values_are_not() {
    for (content, expected) in [
        ("", "LUKS keys vault DIR/vault.json: not valid JSON: EOF while parsing a value at line 1 column 0"),
        (
            "[]",
            "LUKS keys vault DIR/vault.json: expected an object with the names of virtual machines, found an array",
        ),
        (
            r#"{"My VM": {"device": "MARKER"}}"#,
            "LUKS keys vault DIR/vault.json: My VM: expected an array, found an object",
        ),
        (
            r#"{"My VM": ["MARKER"]}"#,
            "LUKS keys vault DIR/vault.json: My VM[0]: expected an object, found a string",
        ),
        (
            r#"{"My VM": [{"device": "MARKER"}]}"#,
            r#"LUKS keys vault DIR/vault.json: My VM[0]: "key" is missing"#,
        ),
        (
            r#"{"My VM": [{"device": "d", "key": 77553311}]}"#,
            "LUKS keys vault DIR/vault.json: My VM[0].key: expected a string, found a number",
        ),
        (
            r#"{"My VM": [{"device": "d", "key": ""}]}"#,
            "LUKS keys vault DIR/vault.json: My VM[0].key: the key is empty",
        ),
        (
            r#"{"My VM": [{"device": "a:b", "key": "MARKER"}]}"#,
            "LUKS keys vault DIR/vault.json: My VM[0].device: a device must not be empty or contain : or control characters",
        ),
        (r#"{"My VM": [], "My VM": []}"#, "LUKS keys vault DIR/vault.json: My VM: the key is given twice"),
    ] {
        let text = problem(content, 0o600, uid());
        assert_eq!(text, expected);
        assert!(!text.contains("MARKER") && !text.contains("77553311"));
    }
}

#[test]
fn a_vault_that_is_missing_is_ignored() {
    let missing =
        |explicit| LuksVault { paths: vec!["/nonexistent/vault.json".into()], explicit, names: vec![] };
    let (keys, warning) = read(&missing(true), uid()).unwrap();
    assert!(keys.is_empty());
    assert_eq!(warning.unwrap(), "luks_keys_vault /nonexistent/vault.json does not exist: no keys are used");
    assert_eq!(read(&missing(false), uid()).unwrap().1, None);
    assert_eq!(read(&LuksVault::default(), uid()).unwrap().1, None);
}

#[test]
fn a_pipe_or_a_directory_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for path in [pipe, directory.path().to_owned()] {
        let vault = LuksVault { paths: vec![path.clone()], explicit: true, names: vec![] };
        assert!(matches!(read(&vault, uid()), Err(VaultError::NotAFile { file }) if file == path));
    }
}

//! The format of a case, and what is made of it before the program starts. A key nobody knows is an error.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::rig::sandbox::{NOBODY, Sandbox};

/// One run of the program.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    /// Name of the folder.
    pub(super) name: String,
    /// `offline`, or `cloud`: needs services.
    pub(super) group: String,
    /// The test that runs it.
    pub(super) category: String,
    /// Name of the case in the old wrapper's contract.
    #[serde(default, rename = "from")]
    pub(super) _from: Option<String>,
    /// The rule, in a sentence.
    #[serde(default, rename = "rule")]
    pub(super) _rule: Option<String>,
    /// Arguments of the program; none unless said.
    #[serde(default)]
    pub(super) args: Vec<String>,
    /// The document.
    #[serde(default)]
    pub(super) input: Value,
    /// Instead of it: text as it stands.
    pub(super) stdin_raw: Option<String>,
    /// Instead of it: bytes built from parts.
    pub(super) stdin_parts: Option<Vec<Part>>,
    /// Made before the start.
    #[serde(default)]
    pub(super) files: Vec<File>,
    /// Added to the site configuration.
    #[serde(default)]
    pub(super) site: Map<String, Value>,
    /// `uci` unless said.
    pub(super) layout: Option<String>,
    /// `022` unless said.
    pub(super) umask: Option<String>,
    /// `nobody`: not as the caller (who must be root).
    pub(super) run_as: Option<String>,
    /// Environment of the program; `null` removes a variable.
    #[serde(default)]
    pub(super) env: BTreeMap<String, Option<String>>,
    /// What the services hold before.
    #[serde(default)]
    pub(super) cloud: Value,
    /// Secrets that stand elsewhere than under a key that says so.
    #[serde(default)]
    pub(super) secrets: Vec<String>,
    /// Scenario of the fake.
    #[serde(default)]
    pub(super) virt_v2v: Value,
    /// A signal half a second after the start of virt-v2v.
    pub(super) act: Option<Act>,
    /// Written into the throttling file, one after the other, while virt-v2v runs; then `${DIR}/go` is made.
    #[serde(default)]
    pub(super) throttle: Vec<Throttle>,
    /// Another document while virt-v2v runs.
    pub(super) second: Option<Second>,
    /// What a client observes.
    pub(super) expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    #[serde(default)]
    pub(super) text: String,
    #[serde(default)]
    pub(super) hex: String,
    pub(super) times: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) mode: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) json: Option<Value>,
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) directory: bool,
    pub(super) link_to: Option<String>,
    /// Its absence is the case: removed where the conventions made it.
    #[serde(default)]
    pub(super) absent: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Act {
    pub(super) signal: String,
    pub(super) to: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Throttle {
    pub(super) json: Option<Value>,
    pub(super) text: Option<String>,
    /// `nobody`: written by that user, into a file that must be there, and is there again (empty) afterwards.
    pub(super) run_as: Option<String>,
    /// The next state that is waited for.
    pub(super) state: Value,
    /// Then virt-v2v's `--bandwidth-file` holds this.
    pub(super) bandwidth: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Second {
    pub(super) input: Value,
    pub(super) expect: Expect,
}

/// What a client observes.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expect {
    pub(super) exit: Value,
    pub(super) stdout: Option<Value>,
    pub(super) stderr: Option<Value>,
    pub(super) stderr_first_line: Option<Value>,
    pub(super) stderr_not_empty: bool,
    /// Lines of stderr, in this order, perhaps among others.
    pub(super) stderr_lines: Vec<String>,
    pub(super) reply: bool,
    /// Parts of the reply, where its paths are not those of the conventions.
    pub(super) reply_has: Option<Value>,
    pub(super) reply_within_s: Option<f64>,
    pub(super) closed_within_s: Option<f64>,
    pub(super) end_within_s: Option<f64>,
    pub(super) started: Option<bool>,
    pub(super) argv: Option<Vec<String>>,
    pub(super) argv_prefix: Option<Vec<String>>,
    pub(super) argv_has: Vec<Vec<String>>,
    pub(super) argv_lacks: Vec<String>,
    pub(super) argv_drop: Option<String>,
    pub(super) env: Map<String, Value>,
    pub(super) env_lacks: Vec<String>,
    /// Part of an argument -> texts that the file it names holds, in this order.
    pub(super) record_files: BTreeMap<String, Vec<String>>,
    pub(super) log_has: Vec<String>,
    /// All files of `${OUT}` at the end.
    pub(super) out_files: Option<Vec<String>>,
    pub(super) state: Option<Value>,
    pub(super) state_exact: bool,
    pub(super) state_lacks: Vec<String>,
    pub(super) state_none_or_failed: bool,
    pub(super) state_mode: Option<String>,
    pub(super) seen: Vec<SeenState>,
    pub(super) disks_contain: Vec<Value>,
    /// What the services hold at the end.
    pub(super) effects: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeenState {
    #[serde(default)]
    pub(super) has: Value,
    #[serde(default)]
    pub(super) lacks: Vec<String>,
    #[serde(default)]
    pub(super) disks_contain: Vec<Value>,
}

/// The table, by name.
pub(super) fn cases() -> Vec<(String, Case)> {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/contract");
    let mut cases: Vec<(String, Case)> = fs::read_dir(&table)
        .expect("fixtures/contract")
        .map(|entry| {
            let path = entry.expect("entry").path().join("case.json");
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let case =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.parent().and_then(Path::file_name).expect("folder").to_string_lossy().into_owned(), case)
        })
        .collect();
    cases.sort_by(|one, other| one.0.cmp(&other.0));
    cases
}

/// What the program gets on stdin.
pub(super) fn input_of(case: &Case, sandbox: &Sandbox) -> Vec<u8> {
    if let Some(raw) = &case.stdin_raw {
        return sandbox.substitute_text(raw).into_bytes();
    }
    let Some(parts) = &case.stdin_parts else {
        return serde_json::to_vec(&sandbox.substitute(&case.input)).expect("json");
    };
    let mut bytes = Vec::new();
    for part in parts {
        let mut piece = sandbox.substitute_text(&part.text).into_bytes();
        piece.extend(part.hex.as_bytes().chunks(2).map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).expect("hexadecimal"), 16).expect("hexadecimal")
        }));
        bytes.extend(piece.repeat(part.times.unwrap_or(1)));
    }
    bytes
}

/// Makes (or removes) a file before the start.
pub(super) fn make(file: &File, sandbox: &Sandbox) {
    let path = PathBuf::from(sandbox.substitute_text(&file.path));
    if file.absent {
        fs::remove_dir(&path).expect("remove a directory");
        return;
    }
    fs::create_dir_all(path.parent().expect("parent")).expect("directory");
    if let Some(target) = &file.link_to {
        symlink(sandbox.substitute_text(target), &path).expect("link");
        return;
    } else if file.directory {
        fs::create_dir_all(&path).expect("directory");
    } else if let Some(json) = &file.json {
        fs::write(&path, serde_json::to_vec(&sandbox.substitute(json)).expect("json")).expect("file");
    } else {
        fs::write(&path, sandbox.substitute_text(file.text.as_deref().unwrap_or_default())).expect("file");
    }
    if let Some(mode) = &file.mode {
        let mode = u32::from_str_radix(mode, 8).expect("mode");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
    }
    if file.owner.as_deref() == Some("other") || sandbox.as_nobody && file.owner.is_some() {
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("owner");
    }
}

//! What no job may break, whatever it is asked to do: each rule returns what broke it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::job::{Seen, Stream};
use super::processes::contains;
use super::sandbox::Sandbox;

/// Keys that design.md adds to the contract's state.
pub const ADDITIVE: [&str; 12] = [
    "version",
    "sequence",
    "updated_at",
    "stage",
    "progress",
    "bytes_copied",
    "bytes_total",
    "rate",
    "eta_seconds",
    "wrapper_pid",
    "waiting_for",
    "warnings",
];

/// Rules about the states that were seen, one after the other.
pub fn states(seen: &Seen) -> Vec<String> {
    let mut broken = seen.faults.clone();
    broken.extend(seen.leaks.iter().cloned());
    let mut furthest: BTreeMap<String, f64> = BTreeMap::new();
    let mut whole = 0.0;
    let mut sequence = None;
    let mut finished: Option<&Value> = None;
    for state in &seen.states {
        if let Some(last) = finished {
            broken.push(format!("state changed after finished:\n    was {last}\n    is  {state}"));
            break;
        }
        if state["finished"] == true {
            finished = Some(state);
        }
        match state["disks"].as_array() {
            None => broken.push(format!("state without disks: {state}")),
            Some(disks) => {
                for disk in disks {
                    let (Some(path), Some(progress)) = (disk["path"].as_str(), disk["progress"].as_f64())
                    else {
                        broken.push(format!("disk without path or numeric progress: {disk}"));
                        continue;
                    };
                    let furthest = furthest.entry(path.to_owned()).or_default();
                    if progress < *furthest || !(0.0..=100.0).contains(&progress) {
                        broken.push(format!("progress of {path} went from {furthest} to {progress}"));
                    }
                    *furthest = progress;
                }
            }
        }
        if let Some(progress) = state["progress"].as_f64() {
            if progress < whole || !(0.0..=100.0).contains(&progress) {
                broken.push(format!("progress of the job went from {whole} to {progress}"));
            }
            whole = progress;
        }
        let next = state["sequence"].as_u64();
        if next.is_none() || next <= sequence {
            broken.push(format!("sequence went from {sequence:?} to {next:?}"));
        }
        sequence = next;
        if state["failed"] == true
            && state["finished"] == true
            && state["last_message"]["message"].as_str().is_none_or(|text| text.trim().is_empty())
        {
            broken.push(format!("failed without a last_message that is a text: {state}"));
        }
        if state.get("started").is_some() && state["pid"].as_i64().is_none() {
            broken.push(format!("started without pid: {state}"));
        }
        if state.get("failed").is_some() && state["finished"] != true {
            broken.push(format!("failed before the end: {state}"));
        }
    }
    broken
}

/// Rules about what a job leaves behind: nothing in `tmp_dir`, no secret in any file.
pub fn leftovers(sandbox: &Sandbox, secrets: &[String], streams: &[(&str, &Stream)]) -> Vec<String> {
    let mut broken = Vec::new();
    if let Ok(entries) = fs::read_dir(sandbox.path("tmp")) {
        let left: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        if !left.is_empty() {
            broken.push(format!("left in tmp_dir: {left:?}"));
        }
    }
    for (name, stream) in streams {
        for secret in secrets.iter().filter(|secret| contains(&stream.bytes, secret.as_bytes())) {
            broken.push(format!("secret {secret:?} on {name}"));
        }
    }
    for part in ["state", "log", "tmp", "out"] {
        each_file(&sandbox.path(part), &mut |path| {
            let bytes = fs::read(path).unwrap_or_default();
            for secret in secrets.iter().filter(|secret| contains(&bytes, secret.as_bytes())) {
                broken.push(format!("secret {secret:?} in {}", path.display()));
            }
        });
    }
    broken
}

/// Rules about how virt-v2v was started: its own process group, nothing on stdin, no descriptor it was not
/// handed, no signal blocked.
pub fn started(record: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    if record["pgid"] != record["pid"] {
        broken.push(format!("virt-v2v {} is in the process group {}", record["pid"], record["pgid"]));
    }
    if record["stdin"] != "/dev/null" {
        broken.push(format!("stdin of virt-v2v is {}", record["stdin"]));
    }
    let handed: Vec<&str> =
        record["files"].as_array().into_iter().flatten().filter_map(|file| file["path"].as_str()).collect();
    for (number, target) in record["fds"].as_object().into_iter().flatten() {
        let standard = ["0", "1", "2"].contains(&number.as_str());
        let path = format!("/proc/self/fd/{number}");
        // The file of clouds is named by a variable: no option of virt-v2v's is for it.
        let handed_over = handed.contains(&path.as_str()) || record["env"]["OS_CLIENT_CONFIG_FILE"] == *path;
        if !standard && !handed_over {
            broken.push(format!("virt-v2v got descriptor {number}: {target}"));
        }
    }
    if record["sig_blocked"].as_str() != Some("0000000000000000") {
        broken.push(format!("virt-v2v got blocked signals: {}", record["sig_blocked"]));
    }
    // SIGHUP, SIGINT, SIGQUIT, SIGTERM: what it does with them must be its own choice.
    let ignored = u64::from_str_radix(record["sig_ignored"].as_str().unwrap_or("0"), 16).unwrap_or(0);
    if ignored & 0b100_0000_0000_0111 != 0 {
        broken.push(format!("virt-v2v got ignored signals: {ignored:x}"));
    }
    broken
}

/// Every regular file below.
pub fn each_file(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => each_file(&entry.path(), visit),
            Ok(kind) if kind.is_file() => visit(&entry.path()),
            _ => {}
        }
    }
}

#[test]
fn a_broken_rule_is_found() {
    use serde_json::json;
    let good = [
        json!({"sequence": 1, "status": "Preparing", "disks": [{"path": "a", "progress": 0}]}),
        json!({"sequence": 2, "disks": [{"path": "a", "progress": 5.5}], "started": true, "pid": 7}),
        json!({"sequence": 3, "disks": [{"path": "b", "progress": 0}, {"path": "a", "progress": 5.5}],
               "failed": true, "finished": true, "last_message": {"message": "x"}}),
    ];
    let judge = |number: usize, change: Option<(&str, Value)>| {
        let mut seen = Seen { states: good.to_vec(), ..Seen::default() };
        if let Some((pointer, value)) = change {
            let (parent, key) = pointer.rsplit_once('/').expect("pointer");
            seen.states[number].pointer_mut(parent).expect("parent")[key] = value;
        }
        states(&seen)
    };
    assert_eq!(judge(0, None), Vec::<String>::new());
    for (number, pointer, value, complaint) in [
        (0, "/disks", json!(null), "without disks"),
        (1, "/disks/0/progress", json!(null), "numeric progress"),
        (1, "/disks/0/path", json!(1), "without path"),
        (1, "/disks/0/progress", json!(101), "went from"),
        (2, "/disks/1/progress", json!(5), "went from"),
        (1, "/sequence", json!(1), "sequence"),
        (1, "/pid", json!(null), "without pid"),
        (1, "/failed", json!(false), "before the end"),
        (1, "/finished", json!(true), "changed after finished"),
        (2, "/last_message/message", json!(2), "last_message"),
    ] {
        let broken = judge(number, Some((pointer, value)));
        assert!(broken.iter().any(|text| text.contains(complaint)), "{pointer}: {broken:?}");
    }
    let mut seen = Seen { states: good.to_vec(), ..Seen::default() };
    seen.leaks.push("leak".to_owned());
    seen.faults.push("fault".to_owned());
    assert_eq!(states(&seen), ["fault", "leak"]);
}

#[test]
fn a_virt_v2v_that_was_started_wrongly_is_found() {
    use serde_json::json;
    let good = json!({"pid": 7, "pgid": 7, "stdin": "/dev/null", "sig_blocked": "0000000000000000",
        "sig_ignored": "0000000000001000", "files": [{"path": "/proc/self/fd/5"}],
        "fds": {"0": "/dev/null", "1": "pipe", "2": "pipe", "5": "/memfd:x"}});
    assert_eq!(started(&good), Vec::<String>::new());
    let mut clouds = good.clone();
    clouds["fds"]["6"] = json!("/memfd:secret");
    assert_eq!(started(&clouds).len(), 1);
    clouds["env"] = json!({"OS_CLIENT_CONFIG_FILE": "/proc/self/fd/6"});
    assert_eq!(started(&clouds), Vec::<String>::new());
    for (pointer, value) in [
        ("pgid", json!(6)),
        ("stdin", json!("/dev/pts/1")),
        ("sig_blocked", json!("0000000000004000")),
        ("sig_ignored", json!("0000000000004000")),
        ("files", json!([])),
    ] {
        let mut bad = good.clone();
        bad[pointer] = value;
        assert_eq!(started(&bad).len(), 1, "{pointer}");
    }
}

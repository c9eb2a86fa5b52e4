//! What a client observes, against what a case expects: streams, reply, virt-v2v's arguments, states.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use serde_json::Value;

use super::case::Expect;
use crate::rig::always::{self, ADDITIVE};
use crate::rig::job::{Job, Seen};
use crate::rig::matching::{differences, has_run, matches};
use crate::rig::sandbox::Sandbox;

/// What a client sees, against what it should.
pub(super) fn observe(expect: &Expect, job: &mut Job, seen: &Seen, sandbox: &Sandbox) -> Vec<String> {
    let mut broken = Vec::new();
    let (stdout, stderr) = (job.stdout(), job.stderr());
    let texts = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = job.poll_exit().and_then(|status| status.code());
    let one_of = |want: &Value, got: Value, what: &str| match want {
        Value::Array(choices) if choices.iter().any(|choice| matches(choice, &got)) => Vec::new(),
        Value::Array(_) => vec![format!("{what}: expected one of {want}, got {got}")],
        want => differences(what, &sandbox.substitute(want), Some(&got)),
    };
    broken.extend(one_of(&expect.exit, code.map_or(Value::Null, Into::into), "exit"));
    if let Some(want) = &expect.stdout {
        broken.extend(one_of(want, texts(&stdout.bytes).into(), "stdout"));
    }
    if let Some(want) = &expect.stderr {
        broken.extend(one_of(want, texts(&stderr.bytes).into(), "stderr"));
    }
    if let Some(want) = &expect.stderr_first_line {
        let first = texts(&stderr.bytes).lines().next().unwrap_or_default().to_owned();
        broken.extend(one_of(want, first.into(), "stderr_first_line"));
    }
    if expect.stderr_not_empty && texts(&stderr.bytes).trim().is_empty() {
        broken.push("stderr is empty".to_owned());
    }
    let text = texts(&stderr.bytes);
    let mut lines = text.lines();
    for want in &expect.stderr_lines {
        if !lines.any(|line| line == want) {
            broken.push(format!(
                "stderr lacks the line {want:?} (in its place):\n    {}",
                text.replace('\n', "\n    ")
            ));
            break;
        }
    }
    if let Some(want) = &expect.reply_has {
        broken.extend(differences("reply", &sandbox.substitute(want), job.reply().as_ref()));
    }
    if expect.reply {
        broken.extend(check_reply(&stdout.bytes, sandbox));
    }
    for (what, limit, at) in [
        ("reply", expect.reply_within_s, stdout.first_line),
        ("end of stdout", expect.closed_within_s, stdout.closed),
    ] {
        let Some(limit) = limit else { continue };
        match at.map(|at| at - job.spawned) {
            Some(took) if took <= Duration::from_secs_f64(limit) => {}
            took => broken.push(format!("{what} after {took:?}, not within {limit} s")),
        }
    }
    if !broken.is_empty() && !stderr.bytes.is_empty() && expect.stderr.is_none() {
        broken.push(format!("  stderr: {}", texts(&stderr.bytes).trim_end()));
    }
    broken.extend(check_virt_v2v(expect, seen, sandbox));
    broken.extend(check_states(expect, seen, sandbox));
    if let Some(want) = &expect.out_files {
        let mut have: Vec<String> = fs::read_dir(sandbox.path("out"))
            .expect("output directory")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        have.sort();
        if have != *want {
            broken.push(format!("output directory: expected {want:?}, got {have:?}"));
        }
    }
    for want in &expect.log_has {
        let mut logs = String::new();
        always::each_file(&sandbox.path("log"), &mut |path| {
            if path.ends_with("virt-v2v-wrapper.log") {
                logs += &texts(&fs::read(path).unwrap_or_default());
            }
        });
        if !Regex::new(want).expect("pattern").is_match(&logs) {
            broken.push(format!("the log has nothing like {want:?}:\n    {}", logs.replace('\n', "\n    ")));
        }
    }
    broken
}

fn check_reply(stdout: &[u8], sandbox: &Sandbox) -> Vec<String> {
    let text = String::from_utf8_lossy(stdout);
    if text.matches('\n').count() != 1 || !text.ends_with('\n') {
        return vec![format!("the reply is not one line: {text:?}")];
    }
    let Ok(reply) = serde_json::from_str::<Value>(&text) else {
        return vec![format!("the reply is {text:?}")];
    };
    let mut broken = Vec::new();
    let state = PathBuf::from(reply["state_file"].as_str().unwrap_or_default());
    let job = state.parent().unwrap_or(Path::new("/")).to_owned();
    let (state_dir, log_dir) = (sandbox.path("state"), sandbox.path("log"));
    let log = match job.strip_prefix(state_dir.join("jobs")) {
        Ok(tag) => {
            let form = Regex::new(r"^\d{8}T\d{6}-\d+$").expect("pattern");
            if !form.is_match(&tag.to_string_lossy()) || sandbox.layout != "job" {
                broken.push(format!("tag of the job is {tag:?}"));
            }
            log_dir.join(tag)
        }
        Err(_) => {
            if job != state_dir || sandbox.layout == "job" {
                broken.push(format!("state_file lies in {}", job.display()));
            }
            log_dir
        }
    };
    for (key, path) in [
        ("state_file", job.join("state.json")),
        ("throttling_file", job.join("throttling.json")),
        ("cutover_file", job.join("cutover")),
        ("v2v_log", log.join("virt-v2v.log")),
        ("wrapper_log", log.join("virt-v2v-wrapper.log")),
    ] {
        if reply[key].as_str().map(Path::new) != Some(&path) {
            broken.push(format!("reply.{key}: expected {}, got {}", path.display(), reply[key]));
        }
    }
    for key in ["v2v_log", "wrapper_log"] {
        // Clients fetch them as the user who logged in.
        let path = reply[key].as_str().unwrap_or_default();
        match fs::metadata(path) {
            Ok(meta) if meta.mode() & 0o777 == 0o644 => {}
            Ok(meta) => broken.push(format!("{key} has mode {:04o}", meta.mode() & 0o7777)),
            Err(error) => broken.push(format!("{key}: {error}")),
        }
    }
    broken
}

fn check_virt_v2v(expect: &Expect, seen: &Seen, sandbox: &Sandbox) -> Vec<String> {
    let Some(record) = sandbox.record() else {
        let wanted = expect.started == Some(true)
            || expect.argv.is_some()
            || expect.argv_prefix.is_some()
            || !expect.argv_has.is_empty();
        return if wanted { vec!["virt-v2v was not run".to_owned()] } else { Vec::new() };
    };
    if expect.started == Some(false) {
        return vec![format!("virt-v2v was run: {}", record["argv"])];
    }
    let mut broken = always::started(&record);
    if !seen.states.is_empty()
        && !seen.states.iter().any(|state| state["started"] == true && state["pid"] == record["pid"])
    {
        broken.push(format!("no state had started with the pid of virt-v2v, {}", record["pid"]));
    }
    let argv: Vec<String> = record["argv"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|arg| arg.as_str().unwrap_or_default().to_owned())
        .collect();
    let wanted =
        |args: &[String]| -> Vec<String> { args.iter().map(|arg| sandbox.substitute_text(arg)).collect() };
    if let Some(want) = &expect.argv {
        let have = drop_pairs(&argv, expect.argv_drop.as_deref());
        broken.extend(compare_args("argv", &wanted(want), &have, have.len(), &record));
    }
    if let Some(want) = &expect.argv_prefix {
        broken.extend(compare_args("argv_prefix", &wanted(want), &argv, want.len(), &record));
    }
    for run in &expect.argv_has {
        if !has_run(&argv, &wanted(run)) {
            broken.push(format!("argv lacks {:?}: {argv:?}", wanted(run)));
        }
    }
    for lack in wanted(&expect.argv_lacks) {
        if argv.contains(&lack) {
            broken.push(format!("argv has {lack:?}: {argv:?}"));
        }
    }
    for (key, want) in &expect.env {
        let want = sandbox.substitute(want);
        broken.extend(differences(&format!("env.{key}"), &want, record["env"].get(key)));
    }
    for key in &expect.env_lacks {
        if record["env"].get(key).is_some() {
            broken.push(format!("env.{key} is set: {}", record["env"][key]));
        }
    }
    for (part, texts) in &expect.record_files {
        let file = record["files"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|file| file["arg"].as_str().is_some_and(|arg| arg.contains(part.as_str())));
        let Some(content) = file.and_then(|file| file["content"].as_str()) else {
            broken
                .push(format!("no file with {part:?} in its argument was handed over: {}", record["files"]));
            continue;
        };
        let mut at = 0;
        for text in wanted(texts) {
            match content[at..].find(&text) {
                Some(found) => at += found + text.len(),
                None => broken.push(format!("the file {part:?} lacks {text:?} (in its place):\n{content}")),
            }
        }
    }
    broken
}

/// `-oo` pairs whose value begins as `drop` says do not count.
fn drop_pairs(argv: &[String], drop: Option<&str>) -> Vec<String> {
    let Some(drop) = drop else { return argv.to_vec() };
    let pattern = Regex::new(drop).expect("argv_drop");
    let mut have = Vec::new();
    let mut args = argv.iter().peekable();
    while let Some(arg) = args.next() {
        if arg == "-oo" && args.peek().is_some_and(|value| pattern.is_match(value)) {
            args.next();
        } else {
            have.push(arg.clone());
        }
    }
    have
}

fn compare_args(what: &str, want: &[String], have: &[String], count: usize, record: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    if want.len() != count || have.len() < count {
        broken.push(format!("{what}: expected {} arguments, got {}", want.len(), have.len()));
    }
    for (at, (want, have)) in want.iter().zip(have).enumerate() {
        if let Err(why) = compare_arg(want, have, record) {
            broken.push(format!("{what}[{at}]: expected {want:?}, got {have:?}{why}"));
        }
    }
    if !broken.is_empty() {
        broken.push(format!("  all of it: {have:?}"));
    }
    broken
}

fn compare_arg(want: &str, have: &str, record: &Value) -> Result<(), String> {
    let password = |arg: &str| ["-ip", "--password-file"].contains(&arg);
    if want == have || password(want) && password(have) {
        return Ok(());
    }
    if let Some((before, after)) = want.split_once("${MR_LOG}") {
        let path = have.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        return path.filter(|path| path.starts_with('/')).map(drop).ok_or_else(String::new);
    }
    let Some((before, rest)) = want.split_once("${FILE:") else { return Err(String::new()) };
    let content = rest.strip_suffix('}').expect("${FILE:x} ends an argument");
    let path = have.strip_prefix(before).ok_or_else(String::new)?;
    let file = record["files"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|file| file["arg"] == have)
        .ok_or_else(|| ": there was no such file".to_owned())?;
    if file["content"] != content {
        return Err(format!(": the file held {}", file["content"]));
    }
    // A memfd has no name: nobody else can open it. A file must be closed to others by itself or its directory.
    let memfd = file["link"].as_str().is_some_and(|link| link.starts_with("/memfd:"));
    let private = |mode: &Value| mode.as_str().is_some_and(|mode| mode.ends_with("00"));
    if !memfd && !private(&file["mode"]) {
        return Err(format!(": others may read it, mode {}", file["mode"]));
    }
    if !path.starts_with("/proc/self/fd/") && Path::new(path).exists() {
        return Err(": it is still there".to_owned());
    }
    Ok(())
}

fn check_states(expect: &Expect, seen: &Seen, sandbox: &Sandbox) -> Vec<String> {
    let mut broken = Vec::new();
    let last = seen.states.last();
    if let Some(want) = &expect.state {
        let want = sandbox.substitute(want);
        let wrong = differences("state", &want, last);
        if !wrong.is_empty() {
            broken.extend(wrong);
            broken.push(format!("  last state: {}", last.unwrap_or(&Value::Null)));
        }
        if expect.state_exact {
            for key in last.and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key) {
                if want.get(key).is_none() && !ADDITIVE.contains(&key.as_str()) {
                    broken.push(format!("state has the key {key}"));
                }
            }
        }
    }
    for key in &expect.state_lacks {
        if last.is_some_and(|state| state.get(key).is_some()) {
            broken.push(format!("the last state has {key}: {}", last.unwrap_or(&Value::Null)));
        }
    }
    if expect.state_none_or_failed
        && last.is_some_and(|state| state["failed"] != true || state["finished"] != true)
    {
        broken.push(format!("the last state is not failed and finished: {}", last.unwrap_or(&Value::Null)));
    }
    if let Some(mode) = &expect.state_mode {
        match sandbox.state_file().and_then(|path| fs::metadata(path).ok()) {
            Some(meta) if format!("{:04o}", meta.mode() & 0o7777) == *mode => {}
            Some(meta) => broken.push(format!("state_mode: {:04o}", meta.mode() & 0o7777)),
            None => broken.push("state_mode: there is no state file".to_owned()),
        }
    }
    if !contains_disks(&expect.disks_contain, last.unwrap_or(&Value::Null)) {
        broken.push(format!("the last state lacks a disk of {:?}", expect.disks_contain));
    }
    let mut from = 0;
    for (number, want) in expect.seen.iter().enumerate() {
        let has = sandbox.substitute(&want.has);
        let fits = |state: &Value| {
            (has.is_null() || matches(&has, state))
                && want.lacks.iter().all(|key| state.get(key).is_none())
                && contains_disks(&want.disks_contain, state)
        };
        match seen.states[from..].iter().position(fits) {
            Some(at) => from += at,
            None => {
                let all: Vec<String> = seen.states.iter().map(|state| format!("    {state}")).collect();
                broken.push(format!(
                    "seen[{number}]: no state (from the {}. on) had {has}, disks {:?}, lacked {:?}:\n{}",
                    from + 1,
                    want.disks_contain,
                    want.lacks,
                    all.join("\n")
                ));
                break;
            }
        }
    }
    broken
}

fn contains_disks(wanted: &[Value], state: &Value) -> bool {
    wanted.iter().all(|want| state["disks"].as_array().into_iter().flatten().any(|disk| matches(want, disk)))
}

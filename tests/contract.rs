//! The client contract as a table. Every folder of `fixtures/contract` holds a `case.json`: what the program gets,
//! what its virt-v2v does, what a client must observe. One test per category; each reports all its failing cases.
//!
//! The format is that of the conformance examples, with these additions: `stdin_parts` (input built from
//! repeated texts and hexadecimal bytes), `run_as: nobody`, `env`, `args`, `reply_has`, `files` that are directories or links,
//! `layout`, `stderr` as a matcher, `second` (another document while the job runs, with its own expectations),
//! `record_files` (content of files handed to virt-v2v), `log_has` (a line of the wrapper's log), and
//! `act.to: supervisor`. Cases of the group `cloud` need services that speak the oVirt and OpenStack APIs.
//!
//! The conventions of the format: see [`Case`] and [`Expect`].

#![allow(clippy::print_stdout)] // A case that is skipped says why.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::rig::always::{self, ADDITIVE};
use crate::rig::job::{Job, Seen, secrets_in};
use crate::rig::matching::{differences, has_run, matches};
use crate::rig::sandbox::{NOBODY, Sandbox};

/// One run of the program.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Name of the folder.
    name: String,
    /// `offline`, or `cloud`: needs services.
    group: String,
    /// The test that runs it.
    category: String,
    /// Name of the case in the old wrapper's contract.
    #[serde(default, rename = "from")]
    _from: Option<String>,
    /// The rule, in a sentence.
    #[serde(default, rename = "rule")]
    _rule: Option<String>,
    /// Arguments of the program; none unless said.
    #[serde(default)]
    args: Vec<String>,
    /// The document.
    #[serde(default)]
    input: Value,
    /// Instead of it: text as it stands.
    stdin_raw: Option<String>,
    /// Instead of it: bytes built from parts.
    stdin_parts: Option<Vec<Part>>,
    /// Made before the start.
    #[serde(default)]
    files: Vec<File>,
    /// Added to the site configuration.
    #[serde(default)]
    site: Map<String, Value>,
    /// `uci` unless said.
    layout: Option<String>,
    /// `022` unless said.
    umask: Option<String>,
    /// `nobody`: not as the caller (who must be root).
    run_as: Option<String>,
    /// Environment of the program; `null` removes a variable.
    #[serde(default)]
    env: BTreeMap<String, Option<String>>,
    /// What the services hold before.
    #[serde(default, rename = "cloud")]
    _cloud: Value,
    /// Secrets that stand elsewhere than under a key that says so.
    #[serde(default)]
    secrets: Vec<String>,
    /// Scenario of the fake.
    #[serde(default)]
    virt_v2v: Value,
    /// A signal half a second after the start of virt-v2v.
    act: Option<Act>,
    /// Another document while virt-v2v runs.
    second: Option<Second>,
    /// What a client observes.
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(default)]
    text: String,
    #[serde(default)]
    hex: String,
    times: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    mode: Option<String>,
    owner: Option<String>,
    json: Option<Value>,
    text: Option<String>,
    #[serde(default)]
    directory: bool,
    link_to: Option<String>,
    /// Its absence is the case: removed where the conventions made it.
    #[serde(default)]
    absent: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Act {
    signal: String,
    to: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Second {
    input: Value,
    expect: Expect,
}

/// What a client observes.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Expect {
    exit: Value,
    stdout: Option<Value>,
    stderr: Option<Value>,
    stderr_first_line: Option<Value>,
    stderr_not_empty: bool,
    /// Lines of stderr, in this order, perhaps among others.
    stderr_lines: Vec<String>,
    reply: bool,
    /// Parts of the reply, where its paths are not those of the conventions.
    reply_has: Option<Value>,
    reply_within_s: Option<f64>,
    closed_within_s: Option<f64>,
    end_within_s: Option<f64>,
    started: Option<bool>,
    argv: Option<Vec<String>>,
    argv_prefix: Option<Vec<String>>,
    argv_has: Vec<Vec<String>>,
    argv_lacks: Vec<String>,
    argv_drop: Option<String>,
    env: Map<String, Value>,
    env_lacks: Vec<String>,
    /// Part of an argument -> texts that the file it names holds, in this order.
    record_files: BTreeMap<String, Vec<String>>,
    log_has: Vec<String>,
    /// All files of `${OUT}` at the end.
    out_files: Option<Vec<String>>,
    state: Option<Value>,
    state_exact: bool,
    state_lacks: Vec<String>,
    state_none_or_failed: bool,
    state_mode: Option<String>,
    seen: Vec<SeenState>,
    disks_contain: Vec<Value>,
    #[serde(rename = "effects")]
    _effects: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenState {
    #[serde(default)]
    has: Value,
    #[serde(default)]
    lacks: Vec<String>,
    #[serde(default)]
    disks_contain: Vec<Value>,
}

/// The tests, one per category of the table.
macro_rules! categories {
    ($($test:ident: $category:literal,)*) => {
        const CATEGORIES: &[&str] = &[$($category),*];
        $(#[test] fn $test() { run_category($category); })*
    };
}

categories! {
    a_wrong_document_is_refused_with_the_exact_text: "validation",
    a_broken_input_is_refused_and_says_where: "input",
    a_luks_vault_is_taken_only_when_it_is_private: "luks",
    virt_v2v_gets_the_arguments_of_the_contract: "argv",
    an_ssh_source_is_found_where_any_client_puts_it: "ssh",
    a_local_source_is_taken_in_every_form: "local",
    progress_is_read_from_every_generation_of_log: "parser",
    a_failure_ends_in_the_state_with_a_sentence: "failure",
    a_signal_ends_the_job_and_says_so: "signal",
    the_state_file_tells_the_course_of_the_job: "state",
    the_reply_names_the_files_and_lets_the_client_go: "reply",
    the_site_configuration_is_honoured: "site",
    the_options_of_old_clients_are_answered: "options",
    an_openstack_destination_is_served: "openstack",
    an_ovirt_destination_is_served: "ovirt",
}

#[test]
fn every_case_is_whole_and_has_a_test() {
    let cases = cases();
    for (folder, case) in &cases {
        assert_eq!(folder, &case.name, "a case is named as its folder");
        assert!(
            CATEGORIES.contains(&case.category.as_str()),
            "{folder}: category {} has no test",
            case.category
        );
        assert!(["offline", "cloud"].contains(&case.group.as_str()), "{folder}: group {}", case.group);
    }
    for category in CATEGORIES {
        assert!(cases.iter().any(|(_, case)| case.category == *category), "no case of category {category}");
    }
    assert!(cases.len() >= 66, "only {} cases", cases.len());
}

fn cases() -> Vec<(String, Case)> {
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

fn run_category(category: &str) {
    let only = std::env::var("V2V_TEST_ONLY").unwrap_or_default();
    let mut mine: Vec<Case> = cases()
        .into_iter()
        .map(|(_, case)| case)
        .filter(|case| case.category == category && case.name.contains(&only))
        .collect();
    mine.reverse();
    let queue = Mutex::new(mine);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(case) = queue.lock().expect("queue").pop() else { return };
                    if let Some(reason) = reason_to_skip(&case) {
                        println!("skipped {}: {reason}", case.name);
                        continue;
                    }
                    let _turn = Turn::wait();
                    let broken = run(&case);
                    if !broken.is_empty() {
                        let text = broken.join("\n  ");
                        failures.lock().expect("failures").push(format!("{}:\n  {text}", case.name));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("failures");
    failures.sort();
    assert!(failures.is_empty(), "{} of {category} fail\n\n{}\n", failures.len(), failures.join("\n\n"));
}

fn reason_to_skip(case: &Case) -> Option<&'static str> {
    let root = nix::unistd::geteuid().is_root();
    let nobody =
        case.run_as.is_some() || case.files.iter().any(|file| file.owner.as_deref() == Some("other"));
    if case.group == "cloud" {
        Some("it needs services that speak the oVirt and OpenStack APIs")
    } else if nobody && !root {
        Some("it needs root, to be somebody else")
    } else if case.run_as.is_some() && !reachable_by_nobody() {
        Some("the program lies where another user cannot execute it")
    } else {
        None
    }
}

fn reachable_by_nobody() -> bool {
    Path::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper"))
        .ancestors()
        .all(|part| fs::metadata(part).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

/// At most a few cases at once, over all categories: they mostly wait, but not all of the time.
struct Turn;

static TURNS: (Mutex<u32>, Condvar) = (Mutex::new(5), Condvar::new());

impl Turn {
    fn wait() -> Self {
        let free = TURNS.0.lock().expect("turns");
        *TURNS.1.wait_while(free, |free| *free == 0).expect("turns") -= 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().expect("turns") += 1;
        TURNS.1.notify_one();
    }
}

/// Longest that any case takes on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(90);

/// Plays a case; what broke it.
fn run(case: &Case) -> Vec<String> {
    let mut sandbox = Sandbox::new(&case.name);
    if let Some(umask) = &case.umask {
        sandbox.umask.clone_from(umask);
    }
    sandbox.as_nobody = case.run_as.is_some();
    sandbox.env = case.env.clone().into_iter().collect();
    let scenario = if case.virt_v2v.is_null() { json!({}) } else { case.virt_v2v.clone() };
    sandbox.scenario(&sandbox.substitute(&scenario));
    sandbox.configure(case.layout.as_deref().unwrap_or("uci"), &case.site);
    let mut secrets = secrets_in(&sandbox.substitute(&case.input));
    secrets.extend(case.secrets.iter().cloned());
    for file in &case.files {
        make(file, &sandbox);
        if let Some(json) = &file.json {
            secrets.extend(secrets_in(json));
        }
    }
    let args: Vec<&str> = case.args.iter().map(String::as_str).collect();
    let mut job = sandbox.spawn_with(&args, input_of(case, &sandbox));
    let mut broken = Vec::new();

    let mut acted = None;
    if let Some(act) = &case.act {
        match job.wait_state(PATIENCE, |state| state["started"] == true) {
            None => broken.push("no state said started".to_owned()),
            Some(_) => {
                // The convention: half a second after.
                std::thread::sleep(Duration::from_millis(500));
                let signal = Signal::from_str(&format!("SIG{}", act.signal)).expect("signal");
                if !job.signal(signal, &act.to) {
                    broken.push(format!("there is no {} to send {signal} to", act.to));
                }
                acted = Some(Instant::now());
            }
        }
    }
    if let Some(second) = &case.second {
        broken.extend(run_second(second, &job, &sandbox));
    }

    if job.wait_exit(PATIENCE).is_none() {
        broken.push(format!("the program did not end: {:?}", job.alive()));
    }
    if job.reply().is_some() && job.wait_finished(PATIENCE).is_none() {
        broken.push(format!("no final state; last was {:?}", job.last_state()));
    }
    let ended = Instant::now();
    if let Err(left) = job.gone_within(Duration::from_secs(10)) {
        broken.push(format!("processes left: {left:?}"));
    }
    let seen = job.end();
    if let Some(limit) = case.expect.end_within_s {
        let took = ended - acted.unwrap_or(job.spawned);
        if took > Duration::from_secs_f64(limit) {
            broken.push(format!("ended after {took:?}, not within {limit} s"));
        }
    }
    broken.extend(always::states(&seen));
    broken.extend(always::leftovers(
        &sandbox,
        &secrets,
        &[("stdout", &job.stdout()), ("stderr", &job.stderr())],
    ));
    broken.extend(observe(&case.expect, &mut job, &seen, &sandbox));
    if std::env::var_os("V2V_TEST_KEEP").is_some() && !broken.is_empty() {
        broken.push(format!("kept: {}", sandbox.dir.display()));
    }
    broken
}

fn run_second(second: &Second, first: &Job, sandbox: &Sandbox) -> Vec<String> {
    if first.wait_state(PATIENCE, |state| state["started"] == true).is_none() {
        return vec!["no state said started: no second job".to_owned()];
    }
    let input = serde_json::to_vec(&sandbox.substitute(&second.input)).expect("json");
    let mut job = sandbox.spawn(input);
    let mut broken = Vec::new();
    if job.wait_exit(PATIENCE).is_none() {
        broken.push("the second did not end".to_owned());
    }
    // The state file is the first one's: only what the second says is looked at.
    broken.extend(observe(&second.expect, &mut job, &Seen::default(), sandbox));
    broken.into_iter().map(|text| format!("second: {text}")).collect()
}

fn input_of(case: &Case, sandbox: &Sandbox) -> Vec<u8> {
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

fn make(file: &File, sandbox: &Sandbox) {
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

/// What a client sees, against what it should.
fn observe(expect: &Expect, job: &mut Job, seen: &Seen, sandbox: &Sandbox) -> Vec<String> {
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

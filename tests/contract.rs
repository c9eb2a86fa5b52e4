//! The client contract as a table. Every folder of `fixtures/contract` holds a `case.json`: what the program gets,
//! what its virt-v2v does, what a client must observe. One test per category; each reports all its failing cases.
//!
//! The format is that of the conformance examples, with these additions: `stdin_parts` (input built from
//! repeated texts and hexadecimal bytes), `run_as: nobody`, `env`, `args`, `reply_has`, `files` that are directories or links,
//! `layout`, `stderr` as a matcher, `second` (another document while the job runs, with its own expectations),
//! `record_files` (content of files handed to virt-v2v), `log_has` (a line of the wrapper's log), and
//! `throttle` (limits put into the throttling file while virt-v2v runs), `act.to: supervisor`. Cases of the
//! group `cloud` have services of their own that speak the oVirt and OpenStack APIs ([`clouds`]).
//!
//! The conventions of the format: see [`case`].

#![allow(clippy::print_stdout)] // A case that is skipped says why.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::rig::always;
use crate::rig::job::{Job, Seen, secrets_in};
use crate::rig::matching::matches;
use crate::rig::poll;
use crate::rig::sandbox::{NOBODY, Sandbox};

mod case;
mod clouds;
mod observe;

use case::{Case, Second, cases, input_of, make};
use clouds::Clouds;
use observe::observe;

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
    limits_hold_and_change_while_the_job_runs: "throttling",
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
    let nobody = case.run_as.is_some()
        || case.throttle.iter().any(|limits| limits.run_as.is_some())
        || case.files.iter().any(|file| file.owner.as_deref() == Some("other"));
    if nobody && !root {
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
    let clouds = Clouds::start(&case.cloud, &case.input, &sandbox);
    sandbox.placeholders = clouds.placeholders();
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
    if !case.throttle.is_empty() {
        broken.extend(run_throttle(case, &mut job, &sandbox));
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
    broken.extend(clouds.broken(&case.expect.effects, seen.states.last()));
    if std::env::var_os("V2V_TEST_KEEP").is_some() && !broken.is_empty() {
        broken.push(format!("kept: {}", sandbox.dir.display()));
    }
    broken
}

/// Puts limits as a client does, by path and not atomically, and sees what becomes of them.
fn run_throttle(case: &Case, job: &mut Job, sandbox: &Sandbox) -> Vec<String> {
    let mut broken = Vec::new();
    if job.wait_state(PATIENCE, |state| state["started"] == true).is_none() {
        return vec!["no state said started: no limits".to_owned()];
    }
    let reply = job.wait_reply(PATIENCE).unwrap_or_default();
    let file = reply["throttling_file"].as_str().unwrap_or_default().to_owned();
    for limits in &case.throttle {
        let json = limits.json.as_ref().map(ToString::to_string);
        let text = limits.text.clone().or(json).expect("text or json");
        let foreign = limits.run_as.is_some();
        if foreign {
            put_as_nobody(&file, &text);
        } else {
            fs::write(&file, &text).expect("throttling file");
        }
        if job.wait_state(PATIENCE, |state| matches(&limits.state, state)).is_none() {
            broken.push(format!("{text}: no state with {}: {:?}", limits.state, job.last_state()));
        }
        let left = || fs::metadata(&file).ok().map(|meta| meta.len());
        if poll(PATIENCE, || (left() == foreign.then_some(0)).then_some(())).is_none() {
            broken.push(format!("{text}: the throttling file is still there, size {:?}", left()));
        }
        if let Some(wanted) = &limits.bandwidth {
            let argv = sandbox.record().unwrap_or_default()["argv"].clone();
            let args: Vec<&str> =
                argv.as_array().into_iter().flatten().filter_map(|arg| arg.as_str()).collect();
            let path = args.windows(2).find(|pair| pair[0] == "--bandwidth-file").map(|pair| pair[1]);
            let content = path.and_then(|path| fs::read_to_string(path).ok());
            if content.as_deref().map(str::trim) != Some(wanted) {
                broken.push(format!("{text}: virt-v2v's limit is {content:?}, not {wanted:?}"));
            }
        }
    }
    fs::write(sandbox.path("go"), "").expect("go");
    broken
}

/// Without a right to make files in the directory: what is there is written into, as sftp does.
fn put_as_nobody(file: &str, text: &str) {
    let put = Command::new("/bin/sh")
        .args(["-c", "printf %s \"$1\" > \"$0\"", file, text])
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .expect("sh");
    assert!(put.success(), "nobody cannot write {file}: {put}");
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

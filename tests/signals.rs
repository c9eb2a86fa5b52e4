//! Cancel and death. Whoever is told to end or is killed, at whatever moment: the state file gets its last state
//! in time, no process is left, the partial disk is gone, what was there before is untouched, no secret lies about.
//!
//! One file although long: the table of deaths and the one way they are judged belong together.
//!
//! Moments are random; a failure names the seed, and `V2V_TEST_SEED=<seed>` repeats it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::rig::always;
use crate::rig::job::{Job, secrets_in};
use crate::rig::poll;
use crate::rig::processes::is_alive;
use crate::rig::sandbox::Sandbox;

/// TERM, 30 s, KILL, hunt for leftovers, undo: and a machine with other work.
const CANCEL: Duration = Duration::from_secs(45);

/// From the last state until the last process is gone.
const LEAVE: Duration = Duration::from_secs(10);

/// When the signal comes.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Up to this long after the reply, whatever happens then.
    AfterReply(u64),
    /// Up to this long after virt-v2v started.
    AfterStart(u64),
    /// Once the partial disk and the helpers are there.
    MidCopy,
}

/// One job and what happens to it.
#[derive(Clone, Copy, Debug)]
struct Death {
    foreground: bool,
    signal: Signal,
    /// `pid`, `wrapper`, `worker` or `supervisor`; see `Job::address`.
    to: &'static str,
    moment: Moment,
    on_term: &'static str,
    /// The helpers of virt-v2v ignore SIGTERM.
    stubborn: bool,
}

/// A job in the background whose helpers are well-behaved, hit in the middle of the copy.
const USUAL: Death = Death {
    foreground: false,
    signal: Signal::SIGTERM,
    to: "pid",
    moment: Moment::MidCopy,
    on_term: "die",
    stubborn: false,
};

#[test]
fn term_cancels_whoever_gets_it() {
    let mut deaths = Vec::new();
    for to in ["pid", "worker", "supervisor"] {
        for on_term in ["die", "exit"] {
            deaths.push(Death { to, on_term, ..USUAL });
        }
        deaths.push(Death { to, moment: Moment::AfterStart(1500), ..USUAL });
        deaths.push(Death { to, foreground: true, moment: Moment::AfterStart(500), ..USUAL });
    }
    deaths.push(Death { to: "wrapper", foreground: true, ..USUAL });
    deaths.push(Death { to: "wrapper", foreground: true, on_term: "exit", stubborn: true, ..USUAL });
    all_end_well(&deaths);
}

#[test]
fn int_cancels_like_term() {
    all_end_well(&[
        Death { signal: Signal::SIGINT, to: "worker", ..USUAL },
        Death { signal: Signal::SIGINT, to: "supervisor", moment: Moment::AfterStart(800), ..USUAL },
        Death { signal: Signal::SIGINT, to: "wrapper", foreground: true, ..USUAL },
        Death { signal: Signal::SIGINT, to: "pid", foreground: true, on_term: "exit", ..USUAL },
    ]);
}

#[test]
fn a_signal_right_after_the_reply_is_not_lost() {
    let deaths: Vec<Death> = [0, 5, 20, 60, 150]
        .into_iter()
        .flat_map(|ms| ["pid", "supervisor"].map(|to| Death { to, moment: Moment::AfterReply(ms), ..USUAL }))
        .collect();
    all_end_well(&deaths);
}

#[test]
fn kill_of_virt_v2v_fails_the_job_and_its_helpers_go_too() {
    let killed = Death { signal: Signal::SIGKILL, ..USUAL };
    all_end_well(&[
        killed,
        Death { stubborn: true, ..killed },
        Death { foreground: true, ..killed },
        Death { moment: Moment::AfterStart(1000), ..killed },
    ]);
}

#[test]
fn kill_of_the_worker_leaves_a_supervisor_that_cleans_up() {
    let killed = Death { signal: Signal::SIGKILL, to: "worker", ..USUAL };
    all_end_well(&[
        killed,
        Death { on_term: "exit", ..killed },
        Death { stubborn: true, ..killed },
        Death { foreground: true, ..killed },
        Death { moment: Moment::AfterStart(1000), ..killed },
        // Before virt-v2v runs, pid is the worker's.
        Death { to: "pid", moment: Moment::AfterReply(10), ..killed },
    ]);
}

#[test]
fn kill_of_the_supervisor_still_ends_in_a_final_state() {
    let killed = Death { signal: Signal::SIGKILL, to: "supervisor", ..USUAL };
    all_end_well(&[killed, Death { on_term: "exit", stubborn: true, ..killed }]);
}

#[test]
fn a_virt_v2v_that_ignores_term_is_killed() {
    // Also when only virt-v2v itself was told: the worker sees the signals that it gets.
    all_end_well(&[
        Death { to: "supervisor", on_term: "ignore", stubborn: true, ..USUAL },
        Death { to: "pid", on_term: "ignore", stubborn: true, ..USUAL },
    ]);
}

#[test]
fn a_second_term_does_not_interrupt_the_clean_up() {
    let (sandbox, mut job) = start(Death { on_term: "exit", ..USUAL }, 400);
    reach(Moment::MidCopy, &sandbox, &mut job, 0).expect("the middle of the copy");
    for _ in 0..3 {
        // The first may already have ended it.
        job.signal(Signal::SIGTERM, "supervisor");
        job.signal(Signal::SIGTERM, "pid");
        std::thread::sleep(Duration::from_millis(100));
    }
    let broken = end(&sandbox, &mut job);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn after_both_were_killed_the_next_job_cleans_up() {
    for layout in ["job", "uci"] {
        let broken = both_killed(layout, |sandbox| {
            sandbox.scenario(&json!({}));
            let mut next = sandbox.spawn(document(sandbox, false, "Next"));
            let mut broken = Vec::new();
            let exit = next.wait_exit(CANCEL + LEAVE);
            if exit.and_then(|status| status.code()) != Some(0) {
                broken.push(format!(
                    "the next job was not taken: {exit:?} {}",
                    String::from_utf8_lossy(&next.stderr().bytes)
                ));
            }
            // With layout uci the killed job's state is in the same file until the next job's replaces it.
            let good = |state: &Value| state["finished"] == true && state["failed"] == false;
            if next.wait_state(CANCEL, good).is_none() {
                broken.push(format!("the next job did not succeed: {:?}", next.last_state()));
            }
            broken
        });
        assert!(broken.is_empty(), "layout {layout}:\n{}", broken.join("\n"));
    }
}

#[test]
fn after_both_were_killed_the_list_of_jobs_cleans_up() {
    let broken = both_killed("job", |sandbox| {
        let mut jobs = sandbox.spawn_with(&["jobs"], Vec::new());
        match jobs.wait_exit(CANCEL + LEAVE) {
            Some(status) if status.success() => Vec::new(),
            status => vec![format!("jobs: {status:?} {}", String::from_utf8_lossy(&jobs.stderr().bytes))],
        }
    });
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Kills supervisor and worker at once in the middle of a copy; `next` is what starts afterwards; what was not
/// cleaned up.
fn both_killed(layout: &str, next: impl FnOnce(&Sandbox) -> Vec<String>) -> Vec<String> {
    let mut sandbox = prepared(Death { stubborn: true, ..USUAL }, 0);
    sandbox.configure(layout, &Map::new());
    let mut job = sandbox.spawn(document(&sandbox, true, "My Virtual"));
    if let Err(why) = reach(Moment::MidCopy, &sandbox, &mut job, 0) {
        return vec![why];
    }
    let (Some(supervisor), Some(worker)) = (job.address("supervisor"), job.address("worker")) else {
        return vec![format!("no supervisor or worker in {:?}", job.last_state())];
    };
    let before: Vec<i32> = job.alive().into_iter().map(|(pid, _)| pid).collect();
    for pid in [supervisor, worker] {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    }
    poll(LEAVE, || (!is_alive(supervisor) && !is_alive(worker)).then_some(())).expect("both are dead");
    let frozen = sandbox.state_file().expect("state file");
    let reply_state = job.reply().and_then(|reply| reply["state_file"].as_str().map(str::to_owned));
    let mut broken = Vec::new();
    if reply_state.as_deref() != frozen.to_str() {
        broken.push(format!("the reply names {reply_state:?}, the state is {}", frozen.display()));
    }

    broken.extend(next(&sandbox));

    let left = || before.iter().copied().filter(|pid| is_alive(*pid)).collect::<Vec<_>>();
    if poll(CANCEL, || left().is_empty().then_some(())).is_none() {
        broken.push(format!("processes of the killed job are left: {:?}", left()));
    }
    if poll(LEAVE, || (foreign(&sandbox) == expected_files()).then_some(())).is_none() {
        broken.push(format!("output directory: {:?}", foreign(&sandbox).keys()));
    }
    if layout == "job" {
        let state = || serde_json::from_slice::<Value>(&fs::read(&frozen).ok()?).ok();
        let told = |state: &Value| {
            state["finished"] == true
                && state["failed"] == true
                && state["last_message"]["message"].as_str().is_some_and(|text| !text.is_empty())
        };
        if poll(LEAVE, || state().filter(told)).is_none() {
            broken.push(format!("the killed job's state is {:?}", state()));
        }
    }
    if let Err(left) = job.gone_within(LEAVE) {
        broken.push(format!("processes left: {left:?}"));
    }
    broken.extend(always::leftovers(&sandbox, &secrets(), &[]));
    broken
}

/// Plays all of them, a few at once; reports all that ended badly.
fn all_end_well(deaths: &[Death]) {
    let seed = std::env::var("V2V_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(now.expect("clock").subsec_nanos())
    });
    let queue = Mutex::new(deaths.iter().copied().enumerate().collect::<Vec<_>>());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some((number, death)) = queue.lock().expect("queue").pop() else { return };
                    let broken = die(death, seed.wrapping_add(number as u64));
                    if !broken.is_empty() {
                        let text = format!("{death:?}:\n  {}", broken.join("\n  "));
                        failures.lock().expect("failures").push(text);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("failures");
    assert!(
        failures.is_empty(),
        "{} of {} ended badly (V2V_TEST_SEED={seed})\n\n{}\n",
        failures.len(),
        deaths.len(),
        failures.join("\n\n")
    );
}

fn die(death: Death, seed: u64) -> Vec<String> {
    let (sandbox, mut job) = start(death, 300);
    if let Err(why) = reach(death.moment, &sandbox, &mut job, seed) {
        return vec![why];
    }
    let to = job.address(death.to);
    let Some(to) = to else { return vec![format!("there is no {} in {:?}", death.to, job.last_state())] };
    if kill(Pid::from_raw(to), death.signal).is_err() {
        return vec![format!("{} {to} was gone already; state {:?}", death.to, job.last_state())];
    }
    let mut broken = end(&sandbox, &mut job);
    let code = job.poll_exit().and_then(|status| status.code());
    let told_to_end = death.signal != Signal::SIGKILL && death.to == "wrapper";
    if !death.foreground && code != Some(0) {
        broken.push(format!("the foreground process of a background job ended with {code:?}"));
    } else if told_to_end && code != Some(1) {
        broken.push(format!("the program was told to end and ended with {code:?}"));
    }
    broken
}

fn start(death: Death, on_term_ms: u64) -> (Sandbox, Job) {
    let sandbox = prepared(death, on_term_ms);
    let job = sandbox.spawn(document(&sandbox, !death.foreground, "My Virtual"));
    (sandbox, job)
}

fn prepared(death: Death, on_term_ms: u64) -> Sandbox {
    let mut sandbox = Sandbox::new("signals");
    sandbox.configure("uci", &Map::new());
    let helper = json!({"ignore_term": death.stubborn});
    sandbox.scenario(&json!({
        "on_term": death.on_term,
        "on_term_ms": on_term_ms,
        "steps": [
            {"text": "[   9.4] Copying disk 1/2\n\u{259d}   0% [----------------------------------------]\r"},
            {"child": helper},
            {"daemon": helper},
            {"text": "\u{2590}  12% [****------------------------------------]\r"},
            {"disk": true},
            {"sleep_ms": 100_000}
        ]
    }));
    for (name, content) in expected_files() {
        fs::write(sandbox.path("out").join(name), content).expect("a file of somebody else");
    }
    sandbox
}

/// What lay in the output directory before: names close to ours.
fn expected_files() -> BTreeMap<String, String> {
    ["other-sda", "My Virtual-sda.bak", "My Virtual.qcow2", "Next-old-sda"]
        .map(|name| (name.to_owned(), format!("{name} is not ours")))
        .into()
}

/// What lies there now, but for what the next job made.
fn foreign(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let entries = fs::read_dir(sandbox.path("out")).expect("output directory");
    entries
        .flatten()
        .map(|entry| {
            let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default()).into_owned();
            (entry.file_name().to_string_lossy().into_owned(), text.chars().take(200).collect())
        })
        .collect()
}

fn document(sandbox: &Sandbox, background: bool, name: &str) -> Vec<u8> {
    json!({
        "vm_name": name,
        "transport_method": "vddk",
        "vmware_fingerprint": "01:23:45:67:89:AB:CD:EA:DB:EE:F0:12:34:56:78:9A:BC:DE:F0:12",
        "vmware_uri": "esx://root@127.0.0.1?no_verify=1",
        "vmware_password": "vmw-secret",
        "output_directory": sandbox.path("out"),
        "source_disks": ["[ds] a/a.vmdk", "[ds] a/b.vmdk"],
        "daemonize": background,
    })
    .to_string()
    .into_bytes()
}

fn secrets() -> Vec<String> {
    secrets_in(&json!({"vmware_password": "vmw-secret"}))
}

fn reach(moment: Moment, sandbox: &Sandbox, job: &mut Job, seed: u64) -> Result<(), String> {
    let patience = Duration::from_secs(60);
    let nothing = |job: &Job, what: &str| {
        let stderr = job.stderr();
        Err(format!(
            "no {what}; state {:?}, stderr {:?}",
            job.last_state(),
            String::from_utf8_lossy(&stderr.bytes)
        ))
    };
    if job.wait_reply(patience).is_none() {
        return nothing(job, "reply");
    }
    // A cheap generator is enough to spread the moments.
    let random =
        |below: u64| (seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) >> 33) % below.max(1);
    match moment {
        Moment::AfterReply(ms) => std::thread::sleep(Duration::from_millis(random(ms))),
        Moment::AfterStart(ms) => {
            if job.wait_state(patience, |state| state["started"] == true).is_none() {
                return nothing(job, "start of virt-v2v");
            }
            std::thread::sleep(Duration::from_millis(random(ms)));
        }
        Moment::MidCopy => {
            let disk = sandbox.path("out/My Virtual-sda");
            if job.wait_state(patience, |state| state["started"] == true).is_none()
                || poll(patience, || disk.exists().then_some(())).is_none()
            {
                return nothing(job, "partial disk");
            }
        }
    }
    // Who shall get the signal must be known: the daemon's first state says so.
    match job.wait_state(patience, |state| state["pid"].is_i64() && state["wrapper_pid"].is_i64()) {
        Some(_) => Ok(()),
        None => nothing(job, "pid and wrapper_pid"),
    }
}

/// Waits for the end and looks at what is left.
fn end(sandbox: &Sandbox, job: &mut Job) -> Vec<String> {
    let mut broken = Vec::new();
    let told = Instant::now();
    match job.wait_finished(CANCEL) {
        None => broken.push(format!("no final state within {CANCEL:?}; last {:?}", job.last_state())),
        Some(state) => {
            let message = state["last_message"]["message"].as_str().unwrap_or_default();
            if state["failed"] != true || message.trim().is_empty() {
                broken.push(format!("the final state, after {:?}, is {state}", told.elapsed()));
            }
        }
    }
    if let Err(left) = job.gone_within(LEAVE) {
        broken.push(format!("processes left: {left:?}"));
    }
    job.wait_exit(LEAVE);
    let seen = job.end();
    broken.extend(always::states(&seen));
    broken.extend(always::leftovers(
        sandbox,
        &secrets(),
        &[("stdout", &job.stdout()), ("stderr", &job.stderr())],
    ));
    if foreign(sandbox) != expected_files() {
        broken.push(format!("output directory: {:?}", foreign(sandbox).keys()));
    }
    broken
}

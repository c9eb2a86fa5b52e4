//! Starts beside each other and after each other: none takes a living job for a dead one, none inherits what another
//! left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Output};
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::sandbox::Sandbox;
use crate::rig::{json_file, poll};

const LIMIT: Duration = Duration::from_secs(120);

fn spawn(sandbox: &Sandbox, document: &Value) -> Child {
    sandbox.child(&[], &document.to_string())
}

/// A virt-v2v that succeeds at once; asked what it can do, it also does this. Gives its path.
fn script(sandbox: &Sandbox, query: &str) -> PathBuf {
    sandbox.script("succeeds", &format!("[ $# = 1 ] || exit 0\n{query}\necho virt-v2v"))
}

/// The last state of the job that this reply belongs to.
fn last_state(output: &Output) -> Value {
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    let path = reply["state_file"].as_str().unwrap().to_owned();
    poll(LIMIT, || Some(json_file(&path)).filter(|state| state["finished"] == json!(true)))
        .unwrap_or_else(|| panic!("{path} has no final state"))
}

/// Every start sweeps up after dead jobs. A job that is just being started is not one.
#[test]
fn many_starts_at_once_do_not_take_each_other_for_dead() {
    let mut sandbox = Sandbox::new("many-starts");
    let virt_v2v = script(&sandbox, "");
    sandbox.configure("job", json!({"virt_v2v": virt_v2v}).as_object().unwrap());
    let document = |number: usize| {
        let directory = sandbox.path(&format!("out/{number}"));
        fs::create_dir(&directory).unwrap();
        json!({"vm_name": "guest", "transport_method": "local", "source_path": sandbox.path("config.toml"),
               "output_directory": directory})
    };
    let started: Vec<Child> = (0..60).map(|number| spawn(&sandbox, &document(number))).collect();
    for child in started {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "refused: {}", String::from_utf8_lossy(&output.stderr));
        let state = last_state(&output);
        assert_eq!(state["failed"], json!(false), "{state:#}");
    }
}

/// In layout `uci` all jobs use the same files. A job that dies before its first step has not done what the one before
/// it did.
#[test]
fn a_job_does_not_inherit_the_success_of_the_one_before() {
    let mut sandbox = Sandbox::new("inherit");
    let virt_v2v = script(&sandbox, "");
    sandbox.configure("uci", json!({"virt_v2v": virt_v2v}).as_object().unwrap());
    let document = json!({"vm_name": "guest", "transport_method": "local", "daemonize": false,
                          "source_path": sandbox.path("config.toml"), "output_directory": sandbox.path("out")});
    let first = spawn(&sandbox, &document).wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(0), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(json_file(sandbox.path("state/state.json"))["failed"], json!(false));

    // The worker cannot open its log: it ends before it has begun.
    let log = sandbox.path("log/virt-v2v-wrapper.log");
    script(&sandbox, &format!("rm -f {0} && mkdir {0}", log.display()));
    let second = spawn(&sandbox, &document).wait_with_output().unwrap();
    let state = json_file(sandbox.path("state/state.json"));
    assert_eq!(second.status.code(), Some(1), "{state:#}");
    assert_eq!((&state["failed"], &state["finished"]), (&json!(true), &json!(true)), "{state:#}");
    assert_eq!(second.stdout, b"", "no reply for a job that never ran");
}

/// In layout `uci` a client starts the next job as soon as the state of the last one says `finished`. It is neither
/// refused nor closed by the processes of the one before, which need a moment more.
#[test]
fn the_next_job_may_start_as_soon_as_the_last_state_is_there() {
    let mut sandbox = Sandbox::new("next");
    let virt_v2v = script(&sandbox, "");
    sandbox.configure("uci", json!({"virt_v2v": virt_v2v}).as_object().unwrap());
    let document = json!({"vm_name": "guest", "transport_method": "local",
                          "source_path": sandbox.path("config.toml"), "output_directory": sandbox.path("out")});
    for number in 0..40 {
        let output = spawn(&sandbox, &document).wait_with_output().unwrap();
        assert!(output.status.success(), "job {number}: {}", String::from_utf8_lossy(&output.stderr));
        let last = last_state(&output);
        assert_eq!(last["failed"], json!(false), "job {number}: {last:#}");
    }
    let path = sandbox.path("state/state.json");
    let gone = poll(LIMIT, || (!sandbox.path("state/lock").exists()).then_some(()));
    gone.expect("the last supervisor lets go of the place");
    assert_eq!(json_file(&path)["failed"], json!(false));
}

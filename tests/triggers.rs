//! What clients ask of a warm job by files: the verbs `cutover`, `pause`, `unpause` and `copy-now`, and files that an
//! earlier job was asked by.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::exports::site::have;
use crate::rig::sandbox::{NOBODY, Sandbox};
use crate::rig::{json_file, poll};

const LIMIT: Duration = Duration::from_secs(60);
const NAMES: [&str; 3] = ["cutover", "copy_trigger", "pause_operations"];

/// A directory with the state file of a warm job that waits. It has no lock: then nobody can tell that it is dead.
struct Waiting {
    directory: tempfile::TempDir,
}

impl Waiting {
    fn new(state: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut whole = json!({"disks": [], "status": "Waiting", "warm": true});
        for (key, value) in state.as_object().unwrap() {
            whole[key] = value.clone();
        }
        fs::write(directory.path().join("state.json"), whole.to_string()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a verb on the state file.
    fn ask(&self, args: &[&str]) -> Output {
        let program = env!("CARGO_BIN_EXE_virt-v2v-wrapper");
        Command::new(program).args(args).arg(self.path("state.json")).output().unwrap()
    }

    /// The names of the triggers that are there, with their content.
    fn triggers(&self) -> Vec<String> {
        let there = NAMES.iter().filter(|name| self.path(name).exists());
        there.map(|name| format!("{name}={}", fs::read_to_string(self.path(name)).unwrap())).collect()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap() + std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn each_verb_makes_its_file_once_and_says_what_follows() {
    let job = Waiting::new(&json!({}));
    for (args, words, there) in [
        (&["unpause"][..], "there is no pause", &[][..]),
        (&["cutover"], "cutover requested: the last copy begins", &["cutover="]),
        (&["cutover"], "cutover was already requested", &["cutover="]),
        (&["copy-now"], "a copy is requested", &["cutover=", "copy_trigger="]),
        (&["copy-now"], "a copy was already requested", &["cutover=", "copy_trigger="]),
        (&["pause"], "pause requested", &["cutover=", "copy_trigger=", "pause_operations="]),
        (&["pause"], "pause was already requested", &["cutover=", "copy_trigger=", "pause_operations="]),
        (
            &["cutover"],
            "already requested: the job is paused",
            &["cutover=", "copy_trigger=", "pause_operations="],
        ),
        (&["cutover", "--now"], "a pause ends", &["cutover=now", "copy_trigger=", "pause_operations="]),
        (&["cutover", "--now"], "already requested", &["cutover=now", "copy_trigger=", "pause_operations="]),
        (&["unpause"], "the pause is over", &["cutover=now", "copy_trigger="]),
    ] {
        let output = job.ask(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", said(&output));
        assert!(output.stderr.is_empty() && said(&output).contains(words), "{args:?}: {}", said(&output));
        assert_eq!(said(&output).lines().count(), 1, "{args:?}");
        assert_eq!(job.triggers(), there, "{args:?}");
    }
    assert_eq!(fs::metadata(job.path("cutover")).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(job.directory.path()).unwrap().count(), 3, "nothing else was made");
}

/// A request that nobody would see is not made.
#[test]
fn a_job_that_would_not_listen_is_named() {
    let round = |last: bool| json!([{"round": 3, "last": last, "started_at": 1.0}]);
    for (state, words) in [
        (json!({"finished": true, "failed": false}), "is over"),
        (json!({"warm": null}), "is not warm"),
        (json!({"warm": false}), "is not warm"),
        (json!({"rounds": round(true), "status": "Pre-copy #3 (last)"}), "has begun already"),
        (json!({"status": "Starting virt-v2v"}), "has begun already"),
        (json!({"disks": 1}), "is not a state file"),
    ] {
        let job = Waiting::new(&state);
        for args in [&["cutover"][..], &["cutover", "--now"], &["pause"], &["unpause"], &["copy-now"]] {
            let output = job.ask(args);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?} {state}");
            assert!(said(&output).contains(words), "{args:?} {state}: {}", said(&output));
            assert_eq!(said(&output).lines().count(), 1, "{args:?} {state}");
        }
        assert!(job.triggers().is_empty(), "{state}");
    }
    let running = Waiting::new(&json!({"rounds": round(false), "status": "Pre-copy #3"}));
    assert_eq!(running.ask(&["cutover"]).status.code(), Some(0), "a round that is not the last");

    let dead = Waiting::new(&json!({}));
    fs::write(dead.path("lock"), "").unwrap();
    assert!(said(&dead.ask(&["cutover"])).contains("are gone"));
    let none = dead.directory.path().join("nothing/state.json");
    let output =
        Command::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper")).arg("pause").arg(none).output().unwrap();
    assert!(
        output.status.code() == Some(1) && said(&output).contains("give the state_file"),
        "{}",
        said(&output)
    );
}

#[test]
fn links_are_not_followed_and_directories_are_told() {
    let job = Waiting::new(&json!({}));
    fs::write(job.path("target"), "kept").unwrap();
    symlink(job.path("target"), job.path("cutover")).unwrap();
    fs::create_dir(job.path("copy_trigger")).unwrap();
    assert_eq!(job.ask(&["cutover", "--now"]).status.code(), Some(0));
    assert_eq!(fs::read_to_string(job.path("target")).unwrap(), "kept");
    assert!(!job.path("cutover").is_symlink() && fs::read_to_string(job.path("cutover")).unwrap() == "now");
    let output = job.ask(&["copy-now"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("cannot ask the job") && job.path("copy_trigger").is_dir());
}

/// Clients read the state as an ordinary user; asking is for those who may write beside it.
#[test]
fn who_may_not_write_there_is_told_who_may() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let job = Waiting::new(&json!({}));
    fs::set_permissions(job.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build may lie where nobody else may go.
    let program = job.path("program");
    fs::copy(env!("CARGO_BIN_EXE_virt-v2v-wrapper"), &program).unwrap();
    let ask = |verb: &str| {
        let mut command = Command::new(&program);
        command.arg(verb).arg(job.path("state.json")).uid(NOBODY).gid(NOBODY).current_dir("/");
        command.output().unwrap()
    };
    fs::write(job.path("pause_operations"), "").unwrap();
    for verb in ["cutover", "copy-now", "unpause"] {
        let output = ask(verb);
        assert_eq!(output.status.code(), Some(1), "{verb}");
        assert!(said(&output).contains("sudo"), "{verb}: {}", said(&output));
    }
    assert_eq!(job.triggers(), ["pause_operations="]);
}

fn script(sandbox: &Sandbox) -> PathBuf {
    sandbox.script("succeeds", "[ $# = 1 ] || exit 0\necho virt-v2v")
}

/// In layout `uci` all jobs use the same files. What an earlier one was asked for is gone when the reply is there; a
/// directory of such a name is nobody's request and stays.
#[test]
fn a_job_is_not_asked_what_an_earlier_one_was() {
    let mut sandbox = Sandbox::new("stale-triggers");
    let virt_v2v = script(&sandbox);
    sandbox.configure("uci", json!({"virt_v2v": virt_v2v}).as_object().unwrap());
    let kept = sandbox.path("kept");
    fs::write(&kept, "kept").unwrap();
    fs::write(sandbox.path("state/cutover"), "now").unwrap();
    symlink(&kept, sandbox.path("state/pause_operations")).unwrap();
    fs::create_dir_all(sandbox.path("state/copy_trigger/below")).unwrap();
    let document = json!({"vm_name": "guest", "transport_method": "local",
                          "source_path": sandbox.path("config.toml"), "output_directory": sandbox.path("out")});
    let output = sandbox.child(&[], &document.to_string()).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(!sandbox.path("state/cutover").exists());
    assert!(!sandbox.path("state/pause_operations").is_symlink());
    assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
    assert!(sandbox.path("state/copy_trigger/below").is_dir());
    poll(LIMIT, || (json_file(sandbox.path("state/state.json"))["finished"] == true).then_some(())).unwrap();
}

/// Files that clients made are removed with the job; what else lies there is in nobody's way.
#[test]
fn a_job_is_removed_with_what_it_was_asked_for() {
    let mut sandbox = Sandbox::new("removed-triggers");
    let virt_v2v = script(&sandbox);
    sandbox.configure("job", json!({"virt_v2v": virt_v2v}).as_object().unwrap());
    let document = json!({"vm_name": "guest", "transport_method": "local", "daemonize": false,
                          "source_path": sandbox.path("config.toml"), "output_directory": sandbox.path("out")});
    let output = sandbox.child(&[], &document.to_string()).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let state = sandbox.state_file().unwrap();
    let directory = state.parent().unwrap();
    let tag = directory.file_name().unwrap().to_str().unwrap();
    fs::write(directory.join("cutover"), "").unwrap();
    fs::write(directory.join("pause_operations"), "").unwrap();
    fs::create_dir(directory.join("copy_trigger")).unwrap();
    let output = sandbox.child(&["jobs", "--remove", tag], "").wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let left: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["copy_trigger"]);
}

/// From the first state on a client sees whether anybody listens; a job that is not warm does not say so.
#[test]
fn the_state_of_a_warm_job_says_so() {
    if !have(&["nbdkit", "qemu-nbd", "qemu-img"]) {
        return;
    }
    for (warm, shown) in [(json!(true), json!(true)), (Value::Null, Value::Null)] {
        let mut sandbox = Sandbox::new("warm");
        sandbox.configure("job", &Map::new());
        // Nobody listens at port 1: the job fails once it has begun.
        let document = json!({"vm_name": "guest", "transport_method": "vddk", "vmware_fingerprint": "01:23",
            "vmware_uri": "esx://root@127.0.0.1:1?no_verify=1", "vmware_password": "vmw-secret", "two_phase": true,
            "output_directory": sandbox.path("out"), "warm": warm});
        let output = sandbox.child(&[], &document.to_string()).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
        let path = Path::new(reply["state_file"].as_str().unwrap());
        assert_eq!(json_file(path)["warm"], shown);
        let ended = || Some(json_file(path)).filter(|state| state["finished"] == true);
        let last = poll(LIMIT, ended).expect("a last state");
        assert_eq!((&last["warm"], &last["failed"]), (&shown, &json!(true)), "{last:#}");
    }
}

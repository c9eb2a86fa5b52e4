//! A disk for states that is full when the job ends: the guest is not lost, and the last state is written as soon as
//! there is room.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::processes::is_alive;
use crate::rig::sandbox::Sandbox;
use crate::rig::{json_file, poll};

const LIMIT: Duration = Duration::from_secs(60);

/// A small file system, unmounted in the end.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&path).status();
        assert!(mounted.unwrap().success(), "cannot mount {}", path.display());
        Self(path)
    }

    fn fill(&self) -> PathBuf {
        let path = self.0.join("fill");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[1; 1024]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: after a failure the supervisor may still be there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_converted_guest_is_kept_and_told_of_as_soon_as_there_is_room() {
    if !nix::unistd::geteuid().is_root() {
        writeln!(std::io::stderr(), "SKIPPED: only root mounts a small file system").unwrap();
        return;
    }
    let mut sandbox = Sandbox::new("full-disk");
    let small = Small::mount(sandbox.path("small"));
    let go = sandbox.path("go");
    let virt_v2v = sandbox.script(
        "waits",
        &format!(
            "[ $# = 1 ] && {{ echo virt-v2v; exit 0; }}\necho guest > {}\nwhile [ ! -e {} ]; do sleep 0.05; done",
            sandbox.path("out/guest-sda").display(),
            go.display()
        ),
    );
    let keys = json!({"virt_v2v": virt_v2v, "state_dir": small.0.join("state")});
    sandbox.configure("uci", keys.as_object().unwrap());
    let document = json!({"vm_name": "guest", "transport_method": "local", "source_path": sandbox.path("config.toml"),
                          "output_directory": sandbox.path("out")});
    let output = sandbox.child(&[], &document.to_string()).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let path = small.0.join("state/state.json");
    let pid =
        poll(LIMIT, || json_file(&path)["started"].as_bool().and_then(|_| json_file(&path)["pid"].as_i64()))
            .unwrap();
    let output = sandbox.path("out/guest-sda");
    poll(LIMIT, || output.exists().then_some(())).expect("virt-v2v writes");
    let fill = small.fill();
    File::create(&go).unwrap();
    poll(LIMIT, || (!is_alive(i32::try_from(pid).unwrap())).then_some(())).expect("virt-v2v ends");
    let log = sandbox.path("log/virt-v2v-wrapper.log");
    let tried = || fs::read_to_string(&log).unwrap().contains("(attempt 2 of ").then_some(());
    poll(LIMIT, tried).expect("the last state is tried again");
    assert_eq!(json_file(&path)["finished"], Value::Null);

    fs::remove_file(fill).unwrap();
    let last = poll(LIMIT, || Some(json_file(&path)).filter(|state| state["finished"] == json!(true)));
    assert_eq!(last.expect("a last state")["failed"], json!(false));
    assert!(output.exists(), "what was converted is the user's");
    let lock = small.0.join("state/lock");
    poll(LIMIT, || (!lock.exists()).then_some(())).expect("the supervisor ends");
}

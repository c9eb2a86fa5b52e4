//! A disk for states that is full when the job ends: the guest is not lost, and the last state is written as soon as
//! there is room.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::poll;
use crate::rig::processes::is_alive;
use crate::rig::sandbox::Sandbox;

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
        // Lazily: the supervisor may still be about to end.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn state(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_converted_guest_is_kept_and_told_of_as_soon_as_there_is_room() {
    if !nix::unistd::geteuid().is_root() {
        writeln!(std::io::stderr(), "SKIPPED: only root mounts a small file system").unwrap();
        return;
    }
    let mut sandbox = Sandbox::new("full-disk");
    let small = Small::mount(sandbox.path("small"));
    let (virt_v2v, go) = (sandbox.path("bin/waits"), sandbox.path("go"));
    let script = format!(
        "#!/bin/sh\n[ $# = 1 ] && {{ echo virt-v2v; exit 0; }}\necho guest > {}\n\
         while [ ! -e {} ]; do sleep 0.05; done\n",
        sandbox.path("out/guest-sda").display(),
        go.display()
    );
    fs::write(&virt_v2v, script).unwrap();
    fs::set_permissions(&virt_v2v, fs::Permissions::from_mode(0o755)).unwrap();
    let keys = json!({"virt_v2v": virt_v2v, "state_dir": small.0.join("state")});
    sandbox.configure("uci", keys.as_object().unwrap());
    let document = json!({"vm_name": "guest", "transport_method": "local", "source_path": sandbox.path("config.toml"),
                          "output_directory": sandbox.path("out")});
    let mut child = Command::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper"))
        .env("VIRT_V2V_WRAPPER_CONFIG", sandbox.path("config.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(document.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());

    let path = small.0.join("state/state.json");
    let pid =
        poll(LIMIT, || state(&path)["started"].as_bool().and_then(|_| state(&path)["pid"].as_i64())).unwrap();
    let output = sandbox.path("out/guest-sda");
    poll(LIMIT, || output.exists().then_some(())).expect("virt-v2v writes");
    let fill = small.fill();
    File::create(&go).unwrap();
    poll(LIMIT, || (!is_alive(i32::try_from(pid).unwrap())).then_some(())).expect("virt-v2v ends");
    let log = sandbox.path("log/virt-v2v-wrapper.log");
    let tried = || fs::read_to_string(&log).unwrap().contains("(attempt 2 of ").then_some(());
    poll(LIMIT, tried).expect("the last state is tried again");
    assert_eq!(state(&path)["finished"], Value::Null);

    fs::remove_file(fill).unwrap();
    let last = poll(LIMIT, || Some(state(&path)).filter(|state| state["finished"] == json!(true)));
    assert_eq!(last.expect("a last state")["failed"], json!(false));
    assert!(output.exists(), "what was converted is the user's");
}

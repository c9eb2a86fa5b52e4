//! The way the released clients come: exec over ssh, the document on stdin, stdout until the channel closes; the state by
//! sftp as a login user who is not root; the cancel by `kill` over ssh. And VMware's other way: a vmx file over ssh.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::disks;
use crate::job::Process;
use crate::lab::{self, Server, Site, V2V};
use crate::secrets::SecretWatch;

/// Time a client may spend on one command, a reply included. The conversion takes longer: nothing may wait for it.
const CLIENT: Duration = Duration::from_secs(60);

pub fn have() -> bool {
    lab::have(V2V)
        && lab::have(&["sshd", "ssh", "ssh-keygen", "ssh-agent", "sftp", "useradd", "userdel"])
        && (lab::root() || lab::skip("only root can start an sshd that logs in other accounts"))
}

/// An sshd of our own.
pub struct Sshd {
    _server: Server,
    pub directory: PathBuf,
    pub port: u16,
}

impl Sshd {
    pub fn start(site: &Site) -> Self {
        let directory = site.path("sim/sshd");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server::start(
            Command::new(lab::repository("tests/rigs/sshd")).arg(&directory).arg(port.to_string()),
        );
        let sshd = Self { _server: server, directory, port };
        lab::wait_for("sshd", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        sshd
    }

    /// `ssh` or `sftp` with everything a client configures.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o"]);
        command.arg(format!("UserKnownHostsFile={}", self.directory.join("known_hosts").display()));
        command.arg("-i").arg(self.directory.join("id"));
        command.arg(if program == "ssh" { "-p" } else { "-P" }).arg(self.port.to_string());
        command
    }

    /// Runs a command as root over ssh.
    fn exec(&self, command: &str, stdin: &[u8]) -> std::process::Output {
        lab::with_limit(self.client("ssh").arg("root@127.0.0.1").arg(command), stdin, CLIENT)
    }
}

/// A throw-away account with a locked password.
struct Account(String);

impl Account {
    fn create() -> Self {
        let name = format!("v2vtest{}", std::process::id());
        // '*' and not '!': sshd refuses locked accounts even with a key.
        lab::run(
            Command::new(lab::find("useradd").unwrap())
                .args(["-M", "-d", "/", "-s", "/bin/sh", "-p", "*", &name]),
        );
        Self(name)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        Command::new(lab::find("userdel").unwrap()).arg(&self.0).output().ok();
    }
}

/// The reply comes and the channel closes while virt-v2v runs on; an unprivileged sftp can poll the state; `kill` of the
/// state's pid over ssh cancels the job.
#[test]
fn the_client_way_start_poll_cancel() {
    if !have() {
        return;
    }
    let site = Site::new();
    site.guest("guest", &[]);
    let sshd = Sshd::start(&site);
    let account = Account::create();
    let document = site.local_document("guest/guest-disk1.img");
    let wrapper = lab::word(env!("CARGO_BIN_EXE_virt-v2v-wrapper").as_ref());
    // What sudo says of who called it: clients that are not root put "sudo" before the command.
    let user = nix::unistd::User::from_name(&account.0).unwrap().unwrap();
    let sudo = format!("SUDO_UID={} SUDO_GID={}", user.uid, user.gid);
    let output = sshd.exec(&format!("env {} {sudo} {wrapper}", site.mark()), document.to_string().as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "clients show stderr to the user");
    let mut job = site.job(&output.stdout);
    let pid = job.until_started();
    assert!(Process::of(pid).is_some(), "virt-v2v runs on after the channel closed");

    let batch = site.path("sim/batch");
    let fetched = site.path("sim/fetched");
    let sftp = |command: String| {
        fs::write(&batch, &command).unwrap();
        let output = lab::with_limit(
            sshd.client("sftp").arg("-b").arg(&batch).arg(format!("{}@127.0.0.1", account.0)),
            b"",
            CLIENT,
        );
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let fetch = |remote: &str| -> Vec<u8> {
        sftp(format!("get {remote} {}\n", fetched.display()));
        fs::read(&fetched).unwrap()
    };
    let state: Value = serde_json::from_slice(&fetch(job.reply["state_file"].as_str().unwrap())).unwrap();
    assert_eq!((&state["started"], &state["finished"]), (&json!(true), &Value::Null), "{state:#}");
    let paths: Vec<&Value> = state["disks"].as_array().unwrap().iter().map(|disk| &disk["path"]).collect();
    assert_eq!(paths, [&document["source_path"]]);
    for log in ["v2v_log", "wrapper_log"] {
        fetch(job.reply[log].as_str().unwrap());
    }

    let throttling_file = job.reply["throttling_file"].as_str().unwrap().to_owned();
    let limits = site.path("sim/limits");
    for cpu in [json!(null), json!("unlimited")] {
        // The second time into the file that took the place of the first.
        fs::write(&limits, json!({"cpu": cpu, "network": "unlimited"}).to_string()).unwrap();
        sftp(format!("put {} {throttling_file}\n", limits.display()));
        job.until("the limits", |_, state| {
            state["throttling"] == json!({"cpu": cpu, "network": "unlimited"})
        });
    }

    let killed = sshd.exec(&format!("/bin/kill -s TERM {}", state["pid"]), b"");
    assert!(killed.status.success(), "{}", String::from_utf8_lossy(&killed.stderr));
    job.assert_failed();
    let last: Value = serde_json::from_slice(&fetch(job.reply["state_file"].as_str().unwrap())).unwrap();
    assert_eq!((&last["failed"], &last["finished"]), (&json!(true), &json!(true)));
}

/// The account's own known_hosts, put back at the end: virt-v2v's ssh reads no other. One test at a time has it.
pub struct KnownHosts {
    _turn: MutexGuard<'static, ()>,
    file: PathBuf,
    before: Option<Vec<u8>>,
}

impl KnownHosts {
    pub fn with(lines: &[u8]) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let home = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().dir;
        fs::create_dir_all(home.join(".ssh")).unwrap();
        let file = home.join(".ssh/known_hosts");
        let before = fs::read(&file).ok();
        fs::write(&file, [before.as_deref().unwrap_or_default(), lines].join(&b'\n')).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        Self { _turn, file, before }
    }
}

impl Drop for KnownHosts {
    fn drop(&mut self) {
        match &self.before {
            Some(bytes) => fs::write(&self.file, bytes).unwrap(),
            None => fs::remove_file(&self.file).unwrap(),
        }
    }
}

/// A guest read from a host's datastore over ssh, with the key from the document and the URI in `vm_name`, as the
/// released clients send it.
#[test]
fn a_vmx_over_ssh_is_converted_with_the_documents_key() {
    if !have() {
        return;
    }
    let site = Site::new();
    site.guest("guest", &["--formats", "vmx-flat"]);
    let sshd = Sshd::start(&site);
    let known_hosts = KnownHosts::with(&fs::read(sshd.directory.join("known_hosts")).unwrap());
    let key = fs::read_to_string(sshd.directory.join("id")).unwrap();
    let mut job = site.start(&json!({
        "vm_name": format!("ssh://root@127.0.0.1:{}{}", sshd.port, site.text("guest/guest.vmx")),
        "transport_method": "ssh",
        "ssh_key": key,
        "output_directory": site.path("output"),
    }));
    let body = key.lines().nth(2).expect("a key of several lines");
    let watch = SecretWatch::new(&site, body);
    job.assert_converted(1);
    watch.assert_never_seen();
    drop(known_hosts);
    disks::assert_is_converted(&site.path("output/guest-sda"));
}

/// virt-v2v copies itself, and takes a limit while it runs: nbdkit says that it took it, and what is left to copy takes
/// as long as it must. Nothing here fails because a machine is slow.
#[test]
fn a_limit_set_while_virt_v2v_runs_slows_its_copy() {
    const BYTES_PER_SECOND: u32 = 1 << 20;
    // The guest's payload, 8 MiB, is read by nobody before the copy; nbdkit's filter lets two seconds' worth pass.
    const LEAST: Duration = Duration::from_secs(8 - 2 - 1);
    if !have() {
        return;
    }
    let site = Site::new();
    site.guest("guest", &["--formats", "vmx-flat"]);
    let sshd = Sshd::start(&site);
    let known_hosts = KnownHosts::with(&fs::read(sshd.directory.join("known_hosts")).unwrap());
    let mut job = site.start(&json!({
        "vm_name": format!("ssh://root@127.0.0.1:{}{}", sshd.port, site.text("guest/guest.vmx")),
        "transport_method": "ssh",
        "ssh_key_file": sshd.directory.join("id"),
        "output_directory": site.path("output"),
    }));
    job.until_message("Converting");
    let limits = json!({"network": BYTES_PER_SECOND});
    fs::write(job.reply["throttling_file"].as_str().unwrap(), limits.to_string()).unwrap();
    let shown = json!({"cpu": null, "network": BYTES_PER_SECOND.to_string()});
    job.until("the limit", |_, state| state["throttling"] == shown);
    job.until_message("Copying disk 1/1");
    let begun = Instant::now();
    job.until_message("Creating output metadata");
    let took = begun.elapsed();
    let state = job.finish();
    assert_eq!(state["failed"], json!(false), "{state:#}");
    // virt-v2v has warnings of its own about this guest.
    assert!(!state["warnings"].to_string().contains("limit"), "{state:#}");
    let adjusted = format!("rate adjusted from 0 to {}", BYTES_PER_SECOND * 8);
    assert!(job.v2v_log().contains(&adjusted), "nbdkit does not say: {adjusted}");
    assert!(took >= LEAST, "the copy took {took:?}");
    drop(known_hosts);
    site.assert_nothing_left();
    disks::assert_is_converted(&site.path("output/guest-sda"));
}

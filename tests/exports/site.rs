//! What the suite stands on: tools that may be missing, disks, the VDDK stand-in, an sshd with an account.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::rig::poll;

const MIB: u64 = 1 << 20;

/// May this test run here? With `CI` set, a missing tool is a failure.
pub fn have(tools: &[&str]) -> bool {
    let missing: Vec<&&str> = tools.iter().filter(|tool| find(tool).is_none()).collect();
    missing.is_empty() || skip(&format!("not installed: {missing:?}; packaging/install test"))
}

/// Skips the calling test with this reason (returns false), or fails it in CI.
pub fn skip(reason: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "cannot be skipped in CI: {reason}");
    // Past the test harness, which hides what passing tests print.
    writeln!(std::io::stderr(), "SKIPPED: {reason}").ok();
    false
}

pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|file| file.is_file())
}

pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub fn qemu_img(directory: &Path, arguments: &str) {
    run(Command::new("qemu-img").current_dir(directory).args(arguments.split(' ')));
}

/// A job's private directory.
pub fn private() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("exp-").tempdir().unwrap()
}

/// A raw disk with data in places, holes between them, and an odd number of sectors.
pub fn raw_disk(path: &Path) {
    let file = fs::File::create(path).unwrap();
    file.set_len(9 * MIB + 512).unwrap();
    let mut noise = 88_172_645_463_325_252_u64;
    for offset in [0, 2 * MIB + 4096, 5 * MIB, 9 * MIB - 1024] {
        let data: Vec<u8> = (0..192)
            .flat_map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise.to_le_bytes()
            })
            .collect();
        file.write_all_at(&data, offset).unwrap();
    }
}

/// An nbdkit that knows the word `vddk`: the stand-in of tests/rigs, with a vCenter's password.
pub fn nbdkit_with_vddk(directory: &Path, password: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let plugin = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nbdkit-vddk-exports.so");
    BUILT.call_once(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rigs/nbdkit-vddk.c");
        run(Command::new("cc").args(["-O2", "-Wall", "-shared", "-fPIC", "-o"]).args([&plugin, &source]));
    });
    fs::write(directory.join("password"), password).unwrap();
    let front = directory.join("nbdkit");
    // nbdkit looks for plugins in one built-in directory only.
    let script = format!(
        "#!/usr/bin/env bash\nexport VDDK_SIM_ROOT='{dir}/root' VDDK_SIM_LOG='{dir}/vddk.log' \
         VDDK_SIM_PASSWORD_FILE='{dir}/password' VDDK_SIM_CONTROL='{dir}/vddk.control' \
         VDDK_SIM_EVENTS='{dir}/events.jsonl'\nargs=()\nfor a in \"$@\"; do [ \"$a\" = vddk ] && a='{plugin}'; \
         args+=(\"$a\"); done\nexec '{nbdkit}' \"${{args[@]}}\"\n",
        dir = directory.display(),
        plugin = plugin.display(),
        nbdkit = find("nbdkit").unwrap().display()
    );
    fs::write(&front, script).unwrap();
    fs::set_permissions(&front, fs::Permissions::from_mode(0o755)).unwrap();
    front
}

/// A helper of a test, terminated at its end.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        kill(nix::unistd::Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).ok();
        self.0.wait().ok();
    }
}

impl Helper {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

/// An sshd of our own with an agent beside it, and an account with a password.
pub struct Ssh {
    _sshd: Helper,
    _agent: Helper,
    account: Option<Account>,
    pub directory: tempfile::TempDir,
    pub port: u16,
}

impl Ssh {
    /// With an account that has this password.
    pub fn start(password: &str) -> Self {
        Self { account: Some(Account::create(password)), ..Self::with_keys() }
    }

    /// Everybody comes in by key, and so nobody yet.
    pub fn with_keys() -> Self {
        let directory = private();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let sshd = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rigs/sshd");
        let mut sshd = Command::new(sshd);
        let sshd = Helper::start(sshd.arg(directory.path()).arg(port.to_string()).arg("passwords"));
        let socket = directory.path().join("agent");
        let agent = Helper::start(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket));
        let ready = || (socket.exists() && TcpStream::connect(("127.0.0.1", port)).is_ok()).then_some(());
        poll(Duration::from_secs(60), ready).expect("sshd and ssh-agent");
        Self { _sshd: sshd, _agent: agent, account: None, directory, port }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The account that has the password.
    pub fn account(&self) -> &str {
        &self.account.as_ref().expect("started with a password").0
    }

    /// Gives the agent the key that every account admits.
    pub fn add_key(&self) {
        run(Command::new("ssh-add").arg("-q").arg(self.path("id")).env("SSH_AUTH_SOCK", self.path("agent")));
    }
}

/// A throw-away account.
struct Account(String);

impl Account {
    fn create(password: &str) -> Self {
        let name = format!("v2vexp{}", std::process::id());
        let hash = run(Command::new("openssl").args(["passwd", "-6", password]));
        let hash = String::from_utf8(hash).unwrap();
        let useradd = find("useradd").unwrap();
        run(Command::new(useradd).args(["-M", "-d", "/", "-s", "/bin/sh", "-p", hash.trim(), &name]));
        Self(name)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        Command::new(find("userdel").unwrap()).arg(&self.0).output().ok();
    }
}

//! The conversion host of the source: a root directory and a network of its own, an account `cloud-user`, a real sshd, stand-ins
//! for sudo and podman (`tests/rigs/converter`) in which our own program serves disks.
//!
//! There is no port: the client's configuration starts an sshd inside for each connection.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exports::site::{find, run};
use crate::rig::{poll, root};

/// Where it is, as its cloud says.
pub const ADDRESS: &str = "192.0.2.7";
/// The container's image that it knows.
pub const IMAGE: &str = "v2v-conversion-host";

pub struct Converter {
    keeper: Child,
    case: PathBuf,
}

impl Converter {
    /// In a directory of the case.
    pub fn start(case: &Path) -> Self {
        let ssh = case.join("ssh");
        fs::create_dir(&ssh).unwrap();
        for name in ["id", "host"] {
            let mut keygen = Command::new("ssh-keygen");
            run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(ssh.join(name)));
        }
        fs::copy(ssh.join("id.pub"), ssh.join("authorized_keys")).unwrap();
        let config = format!(
            "HostKey {0}/host\nPidFile none\nAuthorizedKeysFile {0}/authorized_keys\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\nStrictModes no\n",
            ssh.display()
        );
        fs::write(ssh.join("sshd_config"), config).unwrap();
        let rigs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rigs/converter");
        let shell = format!(
            "ip link set lo up\n\
             mkdir -p $root/srv/podman $root/run/sshd $root/home/cloud-user $root/usr/local/bin $root/tmp\n\
             echo 'cloud-user:x:0:0::/home/cloud-user:/bin/sh' >> $root/etc/passwd\n\
             cp {0}/sudo {0}/podman {0}/podman-container {0}/podman-host $root/usr/local/bin/\n\
             echo {IMAGE} > $root/srv/image; echo '{1}' > $root/srv/program\n\
             echo \"$case/ssh/up\" > $root/srv/up",
            rigs.display(),
            env!("CARGO_BIN_EXE_virt-v2v-wrapper"),
        );
        let mut words = root::words(case, &shell);
        words[1] = "-mn".to_owned();
        let log = fs::File::create(ssh.join("keeper.log")).unwrap();
        let keeper = Command::new(&words[0])
            .args(&words[1..])
            .args(["sh", "/usr/local/bin/podman-host"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let said = || fs::read_to_string(ssh.join("keeper.log")).unwrap_or_default();
        poll(Duration::from_secs(20), || ssh.join("up").exists().then_some(()))
            .unwrap_or_else(|| panic!("{}", said()));
        // From here on its root directory is its own, and `path` leads there.
        let client = format!(
            "Host {ADDRESS}\n  UserKnownHostsFile {0}/known_hosts\n  \
             ProxyCommand nsenter --target {1} --mount --net --root --wd {2} -i -f {0}/sshd_config -E {0}/sshd.log\n",
            ssh.display(),
            keeper.id(),
            find("sshd").unwrap().display()
        );
        fs::write(ssh.join("config"), client).unwrap();
        Self { keeper, case: case.to_owned() }
    }

    /// Words before our program: it knows the way here, and has its own `/var/lock`.
    pub fn words(&self) -> Vec<String> {
        let shell = "mkdir -p $root/run/lock $root/root/.ssh; chmod 700 $root/root/.ssh; rm -f $root/root/.ssh/*\n\
                     cp \"$case/ssh/config\" $root/root/.ssh/config; chmod 600 $root/root/.ssh/config";
        root::words(&self.case, shell)
    }

    /// The key that logs in.
    pub fn key(&self) -> String {
        fs::read_to_string(self.case.join("ssh/id")).unwrap()
    }

    /// A path of its own.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.keeper.id()))
    }

    /// Nobody is let in any more.
    pub fn lock_out(&self) {
        fs::write(self.case.join("ssh/authorized_keys"), "").unwrap();
    }

    /// What a job has left here.
    pub fn left(&self) -> Vec<String> {
        let names = |directory: &str, begins: &str| -> Vec<String> {
            let entries = fs::read_dir(self.path(directory)).unwrap().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.starts_with(begins)).collect()
        };
        let mut directories = names("/tmp", "v2v-");
        // What the machine itself has there shows through.
        directories.retain(|name| name.len() == "v2v-XXXXXX".len() && !Path::new("/tmp").join(name).exists());
        [directories, names("/srv/podman", "")].concat()
    }

    /// Pids of the containers.
    fn containers(&self) -> Vec<i32> {
        let directories = fs::read_dir(self.path("/srv/podman")).into_iter().flatten().flatten();
        let pids = directories.filter_map(|directory| fs::read_to_string(directory.path().join("pid")).ok());
        pids.filter_map(|pid| pid.trim().parse().ok()).collect()
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        for pid in self.containers() {
            // The nbdkits in it end with their parent.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        self.keeper.kill().ok();
        self.keeper.wait().ok();
    }
}

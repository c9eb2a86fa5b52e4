//! Real servers, each on a socket in a directory of its own, killed when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use virt_v2v_wrapper::nbd::Address;

/// A server that runs, and its directory.
pub struct Served {
    directory: tempfile::TempDir,
    child: Child,
    pub address: Address,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Served {
    /// nbdkit with these arguments; `None`, with a printed reason, where it is not installed.
    pub fn nbdkit(arguments: &[&str]) -> Option<Self> {
        Self::nbdkit_in(tempfile::tempdir().expect("directory"), arguments)
    }

    pub fn nbdkit_in(directory: tempfile::TempDir, arguments: &[&str]) -> Option<Self> {
        installed(&["nbdkit", "nbdinfo"])?;
        let socket = directory.path().join("socket");
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(&socket);
        Some(Self::start(directory, command, arguments, Address::Unix(socket)))
    }

    /// nbdkit on a port of the loopback.
    pub fn nbdkit_tcp(arguments: &[&str]) -> Option<Self> {
        installed(&["nbdkit"])?;
        let port = {
            let free = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            free.local_addr().expect("its address").port()
        };
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-i", "127.0.0.1", "-p", &port.to_string()]);
        let address = Address::Tcp("127.0.0.1".into(), port);
        Some(Self::start(tempfile::tempdir().expect("directory"), command, arguments, address))
    }

    /// qemu-nbd with these arguments, of which the image is the last.
    pub fn qemu_in(directory: tempfile::TempDir, arguments: &[&str]) -> Option<Self> {
        installed(&["qemu-nbd", "qemu-img", "qemu-io", "nbdinfo"])?;
        let socket = directory.path().join("socket");
        let mut command = Command::new("qemu-nbd");
        command.arg("-t").arg("-k").arg(&socket).current_dir(directory.path());
        Some(Self::start(directory, command, arguments, Address::Unix(socket)))
    }

    fn start(
        directory: tempfile::TempDir,
        mut command: Command,
        arguments: &[&str],
        address: Address,
    ) -> Self {
        let log = std::fs::File::create(directory.path().join("log")).expect("log");
        // Both write it when they accept connections; the socket is there a moment before they do.
        let option = if command.get_program() == "nbdkit" { "-P" } else { "--pid-file" };
        command.arg(option).arg(directory.path().join("pid")).args(arguments);
        let child = command.stdin(Stdio::null()).stderr(log).spawn().expect("the server starts");
        let mut served = Self { directory, child, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !served.listens() {
            let ended = served.child.try_wait().expect("wait");
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {}", served.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        served
    }

    fn listens(&self) -> bool {
        std::fs::metadata(self.path().join("pid")).is_ok_and(|file| file.len() > 0)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it ends by itself.
    pub fn ends(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.child.try_wait().expect("wait").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// What nbdinfo says about `base:allocation`: offset, length and flags.
    pub fn map(&self) -> Vec<(u64, u64, u64)> {
        let Address::Unix(path) = &self.address else { panic!("only on unix sockets") };
        let uri = format!("nbd+unix:///?socket={}", path.display());
        let output = Command::new("nbdinfo").args(["--map", "--json", &uri]).output().expect("nbdinfo");
        let map: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON of nbdinfo");
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        let entries = map.as_array().expect("a list").iter();
        entries
            .map(|entry| (number(&entry["offset"]), number(&entry["length"]), number(&entry["type"])))
            .collect()
    }
}

/// Fails where tools must be there, says so and gives nothing where they need not.
pub fn installed(tools: &[&str]) -> Option<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    for tool in tools {
        if !directories.iter().any(|directory| directory.join(tool).exists()) {
            assert!(std::env::var_os("CI").is_none(), "{tool} is not installed");
            println!("skipped: {tool} is not installed");
            return None;
        }
    }
    Some(())
}

/// Runs a tool to its end.
pub fn tool(directory: &Path, name: &str, arguments: &[&str]) {
    let output = Command::new(name).args(arguments).current_dir(directory).output().expect(name);
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

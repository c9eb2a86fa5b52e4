//! `nbd_export_only`: disks of this host served over NBD until a signal comes, and nothing else (contract.md 7.4).
//!
//! What the conversion host of a source OpenStack runs, in a container that the other side has started over ssh
//! ([`crate::source`]); called by [`crate::start`] before there is a plan. It is no job: no state, no reply, no lock, and
//! its files are at fixed places in [`DATA`], which that container's owner mounts and reads. The ports are published by the
//! container, on the loopback of its host, so nbdkit listens on all addresses here.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::document::{self, Pairs};
use crate::export::server::last_error;
use crate::json::one_line;
use crate::log::{self, chain};
use crate::nbd::client::Client;
use crate::nbd::{Address, Options};
use crate::process::{self, Exit, Tool};
use crate::secret::Scrubber;
use crate::signals::Signals;
use crate::site::{Site, find_program};

/// Where the log and [`READY`] are.
pub const DATA: &str = "/data";
/// There as long as all disks are served.
pub const READY: &str = "nbdready";
/// Its content.
const READY_TEXT: &str = "NBD exports ready\n";
/// How long the disks may take until all are served (contract.md 7.4).
const START_PATIENCE: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// One try of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a server may take to die.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Its processes carry this where those of a job carry their tag.
const TAG: &str = "nbd_export_only";

/// The disks are not served.
#[derive(Debug, thiserror::Error)]
pub enum ExportOnlyError {
    /// No place for the log.
    #[error("cannot create {DATA}, where nbd_export_only writes its log and {READY}")]
    Data(#[source] std::io::Error),
    /// A file there.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The runtime, or its signals.
    #[error("cannot begin to export disks")]
    Begin(#[source] std::io::Error),
    /// Whoever has the port may serve another disk there, which must not be taken for this one.
    #[error("port {port}, on which {disk} is to be served, cannot be listened on")]
    Taken {
        /// The disk.
        disk: String,
        /// Its port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// nbdkit does not start.
    #[error("cannot start {program} for {disk}")]
    Start {
        /// nbdkit.
        program: PathBuf,
        /// The disk.
        disk: String,
        /// Why.
        source: std::io::Error,
    },
    /// nbdkit ended by itself.
    #[error("nbdkit for {disk} on port {port} ended: {said}")]
    Ended {
        /// The disk.
        disk: String,
        /// Its port.
        port: u16,
        /// Its last error, or how it ended.
        said: String,
    },
    /// The contract's words, and why.
    #[error("Timed out starting nbdkit exports! {disk} on port {port}: {why}")]
    Slow {
        /// The disk.
        disk: String,
        /// Its port.
        port: u16,
        /// What the last try came to.
        why: String,
    },
}

/// Which disk on which port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exports(Vec<(String, u16)>);

/// What the document asks for, if it asks for this; whatever else stands in it does not count.
pub fn asked(document: &[u8]) -> Option<Exports> {
    // One that cannot be read is told like any other.
    let Pairs(pairs) = document::parse(document).ok()?.document.nbd_export_only?;
    Some(Exports(pairs))
}

impl Exports {
    /// Everything that is wrong with them on this host, a sentence each.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut ports = BTreeMap::new();
        if self.0.is_empty() {
            problems.push(
                "nbd_export_only names no disk: give at least one, like {\"/dev/vdb\": 10809}".to_owned(),
            );
        }
        for (disk, port) in &self.0 {
            if *port == 0 {
                problems.push(format!("nbd_export_only: the port of {disk} is 0: give one from 1 to 65535"));
            } else if let Some(other) = ports.insert(port, disk) {
                problems.push(format!(
                    "nbd_export_only: {other} and {disk} cannot both be served on port {port}: give each its own"
                ));
            }
            problems.extend(what_is_wrong(disk).map(|what| format!("nbd_export_only: {disk} {what}")));
        }
        problems
    }
}

fn what_is_wrong(disk: &str) -> Option<String> {
    if !disk.starts_with('/') || disk.contains('\0') {
        return Some("is no absolute path of a disk".to_owned());
    }
    match std::fs::metadata(disk) {
        Ok(data) if data.file_type().is_block_device() || data.is_file() => None,
        Ok(_) => Some("is neither a block device nor a file".to_owned()),
        Err(error) => Some(format!("cannot be served: {error}")),
    }
}

/// Serves them until a signal comes; the exit code. Nothing is written to stdout but lines of the log.
pub fn run(exports: &Exports, stderr: &mut dyn Write) -> u8 {
    let mut complain = |text: &str| {
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(stderr, "{text}");
        1
    };
    let problems = exports.problems();
    if !problems.is_empty() {
        return complain(&problems.join("\n"));
    }
    let path = std::env::var_os("PATH");
    let nbdkit = Site::load(&|name| std::env::var_os(name))
        .and_then(|site| find_program(site.nbdkit.as_deref(), "nbdkit", &[], path.as_deref()));
    let nbdkit = match nbdkit {
        Ok(nbdkit) => nbdkit,
        Err(error) => return complain(&chain(&error)),
    };
    let data = Path::new(DATA);
    let log = data.join("virt-v2v-wrapper.log");
    let opened = std::fs::create_dir_all(data).map_err(ExportOnlyError::Data).and_then(|()| {
        // An earlier run in the same place: its word does not count any more.
        remove_ready(data)?;
        log::start_aloud(&log, Scrubber::default())
            .map_err(|error| ExportOnlyError::Write { path: error.path, source: error.source })
    });
    if let Err(error) = opened {
        return complain(&chain(&error));
    }
    tracing::info!("Wrapper version {}, uid={}", env!("CARGO_PKG_VERSION"), nix::unistd::getuid());
    let served = serve(exports, &nbdkit, data);
    process::kill_all(process::descendants, KILL_PATIENCE);
    if let Err(error) = remove_ready(data) {
        tracing::error!("{}", chain(&error));
    }
    match served {
        Ok(signal) => {
            tracing::info!("Exiting on signal number {signal}");
            0
        }
        Err(error) => {
            // The log is on stderr, too.
            tracing::error!("{}", chain(&error));
            1
        }
    }
}

fn remove_ready(data: &Path) -> Result<(), ExportOnlyError> {
    let path = data.join(READY);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(ExportOnlyError::Write { path, source })
        }
        _ => Ok(()),
    }
}

/// Until a signal comes; which one.
fn serve(exports: &Exports, nbdkit: &Path, data: &Path) -> Result<i32, ExportOnlyError> {
    process::become_subreaper().map_err(|errno| ExportOnlyError::Begin(errno.into()))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ExportOnlyError::Begin)?;
    LocalSet::new().block_on(&runtime, async {
        let mut signals = Signals::listen().map_err(ExportOnlyError::Begin)?;
        let mut servers = Vec::new();
        for (disk, port) in &exports.0 {
            servers.push(Server::start(nbdkit, disk, *port, data)?);
        }
        let until = Instant::now() + START_PATIENCE;
        let all_answer = async {
            for server in &servers {
                server.answers(until).await?;
            }
            announce(data)?;
            tracing::info!("{}", READY_TEXT.trim());
            // From here on only a signal is waited for, or a server that ends.
            std::future::pending().await
        };
        tokio::select! {
            biased;
            signal = cancelled(&mut signals) => Ok(signal),
            error = one_ended(&servers) => Err(error),
            never = all_answer => never,
        }
    })
}

/// The next signal that ends the process; what its servers left is waited for meanwhile.
async fn cancelled(signals: &mut Signals) -> i32 {
    loop {
        match signals.next().await {
            Some(signal) => return signal,
            None => drop(process::reap()),
        }
    }
}

/// Whole as soon as it is there: somebody else waits for the name.
fn announce(data: &Path) -> Result<(), ExportOnlyError> {
    let (path, new) = (data.join(READY), data.join(format!(".{READY}")));
    let written = std::fs::write(&new, READY_TEXT).and_then(|()| std::fs::rename(&new, &path));
    written.map_err(|source| ExportOnlyError::Write { path, source })
}

/// An nbdkit, and the disk that it serves.
struct Server {
    disk: String,
    port: u16,
    pid: Pid,
    log: PathBuf,
}

impl Server {
    fn start(nbdkit: &Path, disk: &str, port: u16, data: &Path) -> Result<Self, ExportOnlyError> {
        drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|source| ExportOnlyError::Taken {
            disk: disk.to_owned(),
            port,
            source,
        })?);
        let log = data.join(format!("nbdkit-{port}.log"));
        let file = open_log(&log).map_err(|source| ExportOnlyError::Write { path: log.clone(), source })?;
        let mut tool = Tool::new(nbdkit, TAG);
        let command = tool.command();
        command.args(["--foreground", "--exit-with-parent", "--readonly", "-p", &port.to_string()]);
        command.args(["file", &format!("file={disk}")]).env("LC_ALL", "C.UTF-8").stderr(file);
        let pid = tool.spawn().map_err(|source| ExportOnlyError::Start {
            program: nbdkit.to_owned(),
            disk: disk.to_owned(),
            source,
        })?;
        tracing::info!("nbdkit for {disk} on port {port} started with pid {pid}");
        Ok(Self { disk: disk.to_owned(), port, pid, log })
    }

    /// Waits until it has opened the disk.
    async fn answers(&self, until: Instant) -> Result<(), ExportOnlyError> {
        let address = Address::Tcp("127.0.0.1".to_owned(), self.port);
        let options = Options { timeout: HANDSHAKE, ..Options::default() };
        let mut why = "it did not answer".to_owned();
        while Instant::now() < until {
            match timeout_at(until, Client::connect(&address, "", &options)).await {
                Ok(Ok(client)) => {
                    let size = client.export().size();
                    tracing::info!("{} on port {} has {size} bytes", self.disk, self.port);
                    return Ok(());
                }
                Ok(Err(error)) => why = chain(&error),
                Err(_) => break,
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(ExportOnlyError::Slow { disk: self.disk.clone(), port: self.port, why })
    }

    fn ended(&self, exit: Exit) -> ExportOnlyError {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let said = last_error(&String::from_utf8_lossy(&log), "nbdkit");
        let said = said.map_or_else(|| exit.to_string(), |said| one_line(&said, 500));
        ExportOnlyError::Ended { disk: self.disk.clone(), port: self.port, said }
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)
}

/// The first of them that ends: disks that are not served any more are no reason to sleep on.
async fn one_ended(servers: &[Server]) -> ExportOnlyError {
    loop {
        for server in servers {
            if let Some(exit) = process::exit_of(server.pid) {
                return server.ended(exit);
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_document_that_asks_for_it_exports() {
        for (document, expected) in [
            (r#"{"nbd_export_only": {"/dev/x": 10809}}"#, Some(vec![("/dev/x", 10809)])),
            (
                r#"{"vm_name": "a", "nbd_export_only": {"/dev/x": 1, "/dev/y": 2}}"#,
                Some(vec![("/dev/x", 1), ("/dev/y", 2)]),
            ),
            (r#"{"nbd_export_only": {}}"#, Some(vec![])),
            (r#"{"nbd_export_only": null, "vm_name": "a"}"#, None),
            (r#"{"nbd_export_only": {"/dev/x": 70000}}"#, None),
            ("not JSON", None),
        ] {
            let expected = expected.map(|pairs| {
                Exports(pairs.into_iter().map(|(disk, port)| (disk.to_owned(), port)).collect())
            });
            assert_eq!(asked(document.as_bytes()), expected, "{document}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        std::fs::write(&file, "x").unwrap();
        let (file, directory) = (file.to_str().unwrap(), directory.path().to_str().unwrap());
        for (pairs, expected) in [
            (vec![], vec!["nbd_export_only names no disk"]),
            (vec![(file, 1), ("/dev/null", 2)], vec!["/dev/null is neither"]),
            (vec![(file, 0)], vec!["is 0: give one from 1"]),
            (vec![(file, 65_535)], vec![]),
            (vec![(file, 7), (file, 7)], vec!["cannot both be served on port 7"]),
            (
                vec![("vdb", 1), ("/nowhere/vdb", 2), (directory, 3)],
                vec!["vdb is no absolute", "/nowhere/vdb cannot be served: No such", "is neither"],
            ),
        ] {
            let exports = Exports(pairs.iter().map(|(disk, port)| ((*disk).to_owned(), *port)).collect());
            let problems = exports.problems();
            assert_eq!(problems.len(), expected.len(), "{problems:?}");
            for (problem, expected) in problems.iter().zip(expected) {
                assert!(problem.contains(expected), "{problem}");
            }
        }
    }
}

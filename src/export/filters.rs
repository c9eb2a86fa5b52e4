//! Asking nbdkit which of the wanted filters it has. An edge: each question is a run of nbdkit.
//!
//! Called once a job, before its first export.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Filters;
use crate::process::{self, Exit, Tool};

/// contract.md 6.4. It takes 10 ms; a filter that hangs is not wanted either.
const PATIENCE: Duration = Duration::from_secs(5);

impl Filters {
    /// Those that this nbdkit can load, of those that are wanted. An nbdkit that does not start has none: starting the
    /// server tells why.
    pub async fn probe(nbdkit: &Path, tag: &str) -> Self {
        let (cacheextents, retry, log) = tokio::join!(
            loads(nbdkit, tag, "cacheextents"),
            loads(nbdkit, tag, "retry"),
            loads(nbdkit, tag, "log")
        );
        Self { cacheextents, retry, log }
    }
}

async fn loads(nbdkit: &Path, tag: &str, filter: &str) -> bool {
    let mut tool = Tool::new(nbdkit, tag);
    tool.command().args(["--dump-plugin", &format!("--filter={filter}"), "null"]);
    let pid = match tool.spawn() {
        Ok(pid) => pid,
        Err(error) => {
            tracing::warn!("cannot ask {} for its filters: {error}", nbdkit.display());
            return false;
        }
    };
    match tokio::time::timeout(PATIENCE, process::ended(pid)).await {
        Ok(Exit::Code(0)) => true,
        Ok(exit) => {
            tracing::info!("nbdkit without its {filter} filter: {exit}");
            false
        }
        Err(_) => {
            tracing::warn!("nbdkit did not tell of its {filter} filter within {} s", PATIENCE.as_secs());
            process::signal_group(pid, Signal::SIGKILL);
            // Waited for now, not at the next reap; a process stuck in the kernel is not.
            tokio::time::timeout(Duration::from_secs(1), process::ended(pid)).await.ok();
            false
        }
    }
}

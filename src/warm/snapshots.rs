//! The snapshots of a warm migration: taken under a name that tells whose they are, removed before the next is taken, so
//! that there is one at a time (peers.md 6.3, rows 10, 12, 13).

use std::time::Duration;

use tokio::time::Instant;

use super::{Warm, WarmError};
use crate::journal::Entry;
use crate::log::chain;
use crate::plan::Quiesce;
use crate::source::vsphere::{NewSnapshot, OperationError, Snapshot, Tools, restore};

/// How long a snapshot is tried for, and how often (contract.md 6.3).
const TRIES: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
/// The removal of a snapshot of a large, busy machine takes its time.
const REMOVAL: Duration = Duration::from_secs(4 * 3600);
/// With so many of ours that cannot be removed no further one is taken.
const MOST: usize = 2;

/// What the snapshot of a round is called.
pub(crate) fn name(tag: &str, round: impl std::fmt::Display, more: &str) -> String {
    format!("{} {tag} #{round}{more}", restore::SNAPSHOT_NAME)
}

impl Warm<'_> {
    /// Takes the snapshot of a round, with a change id for each disk.
    pub(super) async fn take_snapshot(&self, round: u32) -> Result<Snapshot, WarmError> {
        let reason = self.remove_snapshots().await?;
        let left = self.footprint()?.snapshots;
        if left.len() >= MOST {
            return Err(WarmError::TooManySnapshots {
                name: self.known.guest.name.clone(),
                count: left.len(),
                reason: reason.unwrap_or_default(),
            });
        }
        let snapshot = self.create(&self.snapshot_name(round, "")).await?;
        if self.without_change_id(&snapshot).is_none() {
            return Ok(snapshot);
        }
        // Tracking that was switched on just now begins with the machine's next stun, which is a snapshot's (row 7).
        self.remove_snapshots().await?;
        let snapshot = self.create(&self.snapshot_name(round, " again")).await?;
        match self.without_change_id(&snapshot) {
            None => Ok(snapshot),
            Some(disk) => Err(WarmError::NoChangeId { disk }),
        }
    }

    /// No two are the same, over all processes of a migration.
    fn snapshot_name(&self, round: u32, more: &str) -> String {
        name(&self.job.files.tag, round, more)
    }

    fn without_change_id(&self, snapshot: &Snapshot) -> Option<String> {
        let disks = &self.known.guest.disks;
        let lacks = |key| {
            let disk = snapshot.disks.iter().find(|disk| Some(disk.key) == key);
            disk.is_none_or(|disk| disk.change_id.as_deref().unwrap_or_default().is_empty())
        };
        disks.iter().find(|disk| lacks(disk.key)).map(|disk| format!("{} ({})", disk.label, disk.path))
    }

    /// Quiesced if that is possible, or as the user wants it.
    async fn create(&self, name: &str) -> Result<Snapshot, WarmError> {
        let quiesce = self.terms.quiesce;
        let tools_run = self.vsphere.power(&self.book.machine).await?.tools == Tools::Running;
        if quiesce == Quiesce::Require && !tools_run {
            return Err(WarmError::NoTools { name: self.known.guest.name.clone() });
        }
        let mut quiesced = quiesce != Quiesce::Never && tools_run;
        let tools = &self.job.plan.tools;
        let (tries, retry) = (tools.patience(TRIES), tools.patience(RETRY));
        let began = Instant::now();
        loop {
            let new = NewSnapshot {
                name: name.to_owned(),
                description: "Snapshot to start CBT".to_owned(),
                quiesce: quiesced,
            };
            self.journal_handle()?.record(&Entry::Snapshot { name: name.to_owned() })?;
            let error = match self.attended(self.vsphere.create_snapshot(&self.book.machine, &new)).await {
                Ok(snapshot) => {
                    self.await_thing(None);
                    let how = if quiesced { "quiesced" } else { "crash-consistent" };
                    tracing::info!("snapshot {name:?} is {}, {how}", snapshot.moref);
                    return Ok(snapshot);
                }
                Err(error) => error,
            };
            tracing::warn!("snapshot {name:?}: {}", chain(&error));
            // A server that is away says nothing of the guest.
            let is_refused = !matches!(&error, OperationError::Client(error) if error.may_pass());
            if quiesced && quiesce == Quiesce::Auto && is_refused {
                self.warn(format!(
                    "the snapshot could not be quiesced ({}): it is crash-consistent",
                    chain(&error)
                ));
                quiesced = false;
                continue;
            }
            if began.elapsed() + retry >= tries {
                return Err(WarmError::NoSnapshot {
                    name: self.known.guest.name.clone(),
                    seconds: tries.as_secs(),
                    reason: chain(&error),
                });
            }
            self.await_thing(Some(format!("a snapshot, which vSphere refuses: {}", chain(&error))));
            tokio::time::sleep(retry).await;
        }
    }

    /// Removes every snapshot that this migration has taken. One that cannot be removed is told, and tried again later; gives
    /// why.
    pub(super) async fn remove_snapshots(&self) -> Result<Option<String>, WarmError> {
        let names = self.footprint()?.snapshots;
        if names.is_empty() {
            return Ok(None);
        }
        self.await_thing(Some("vSphere, which removes the snapshot of the last round".to_owned()));
        let mut journal = self.journal_handle()?;
        let removed =
            restore::remove_snapshots(self.vsphere, &self.book.machine, &names, REMOVAL, &mut journal);
        let removed = self.attended(removed).await;
        self.await_thing(None);
        match removed {
            Err(restore::RestoreError::Journal(error)) => Err(error.into()),
            Err(error) => {
                let why = chain(&error);
                self.warn(why.clone());
                Ok(Some(why))
            }
            Ok(()) => Ok(None),
        }
    }
}

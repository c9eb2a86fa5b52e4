//! The machine put back as it was found: runs again if we switched it off, without our snapshots, without the change tracking
//! that we switched on.
//!
//! An edge. What there is to put back stands in the job's journal ([`Footprint`]); each thing is noted there when it is done,
//! so whoever comes next does the rest. Called by [`crate::put_back`], and between rounds for the snapshots. Nothing that is
//! not in the journal is touched.

use std::time::Duration;

use tokio::time::Instant;

use super::machine::PowerState;
use super::properties::Of;
use super::soap::Element;
use super::{FoundSnapshot, OperationError, Vsphere, VsphereError, operations};
use crate::footprint::Footprint;
use crate::journal::{Entry, Journal, JournalError};

/// What every snapshot of ours is called, before the job's tag (contract.md 6.3).
pub const SNAPSHOT_NAME: &str = "v2v_cbt";
/// A snapshot that was asked for may still be being taken.
const TAKEN_SINCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A guest that was asked to shut down and did not yet may still do it within this.
const GOES_OFF: Duration = Duration::from_secs(60);

/// Something could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no way to the machine.
    #[error(transparent)]
    Vsphere(#[from] VsphereError),
    /// vSphere refused.
    #[error("cannot {what}")]
    Refused {
        /// What.
        what: String,
        /// Why.
        source: OperationError,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Puts back what `left` lists; a sentence for each thing that could not be. The removal of a snapshot is waited for at most
/// `patience`; vSphere goes on with it by itself.
pub async fn restore(
    vsphere: &Vsphere,
    left: &Footprint,
    patience: Duration,
    journal: &mut Journal,
) -> Vec<RestoreError> {
    let Some(machine) = left.machine.as_deref() else { return Vec::new() };
    let mut problems = Vec::new();
    // First what people wait for.
    if left.switched_off {
        problems.extend(switch_on(vsphere, machine, journal).await.err());
    }
    if !left.snapshots.is_empty() {
        let removed = remove_snapshots(vsphere, machine, &left.snapshots, patience, journal).await;
        problems.extend(removed.err());
    }
    if left.tracking {
        problems.extend(stop_tracking(vsphere, machine, journal).await.err());
    }
    problems
}

async fn switch_on(vsphere: &Vsphere, machine: &str, journal: &mut Journal) -> Result<(), RestoreError> {
    tracing::info!("switching {machine} on again");
    let began = Instant::now();
    while began.elapsed() < GOES_OFF
        && vsphere.power(machine).await.is_ok_and(|power| power.state == PowerState::On)
    {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // Before, not after: from now on nobody may take the copies for those of a machine that has not run since.
    journal.record(&Entry::SwitchedOn)?;
    match vsphere.power_on(machine).await {
        Ok(()) => Ok(()),
        Err(source) => {
            journal.record(&Entry::SwitchedOff)?;
            Err(RestoreError::Refused { what: format!("switch {machine} on again"), source })
        }
    }
}

async fn stop_tracking(vsphere: &Vsphere, machine: &str, journal: &mut Journal) -> Result<(), RestoreError> {
    tracing::info!("switching the change tracking of {machine} off again");
    let stopped = vsphere.set_change_tracking(machine, false).await;
    stopped.map_err(|source| RestoreError::Refused {
        what: format!("switch the change tracking of {machine} off again"),
        source,
    })?;
    Ok(journal.record(&Entry::TrackingOff)?)
}

/// Removes the snapshots of these names, all of them that are there; fails with the last that could not be.
pub async fn remove_snapshots(
    vsphere: &Vsphere,
    machine: &str,
    names: &[String],
    patience: Duration,
    journal: &mut Journal,
) -> Result<(), RestoreError> {
    let refused = |what: String| move |source| RestoreError::Refused { what, source };
    let look = || refused(format!("list the snapshots of {machine}"));
    let mut found = vsphere.snapshots(machine).await.map_err(look())?;
    let is_missing = |found: &[FoundSnapshot]| {
        names.iter().any(|name| !found.iter().any(|snapshot| snapshot.name == *name))
    };
    let mut waited = Duration::ZERO;
    while is_missing(&found) && waited < TAKEN_SINCE {
        let busy = is_taking_snapshot(vsphere, machine).await.map_err(look())?;
        if busy {
            tokio::time::sleep(LOOK_EVERY).await;
            waited += LOOK_EVERY;
        }
        found = vsphere.snapshots(machine).await.map_err(look())?;
        if !busy {
            break;
        }
    }
    let mut result = Ok(());
    for name in names {
        let mut gone = true;
        // Two of one name can only both be ours.
        for snapshot in found.iter().filter(|snapshot| snapshot.name == *name) {
            tracing::info!("removing the snapshot {name:?} ({})", snapshot.moref);
            let removed = vsphere.remove_snapshot(&snapshot.moref, patience).await;
            gone &= removed.is_ok();
            let removed = removed.map_err(refused(format!("remove the snapshot {name:?} of {machine}")));
            result = removed.and(result);
        }
        // One that stays says nothing of the others.
        if gone {
            journal.record(&Entry::SnapshotGone { name: name.clone() })?;
        }
    }
    result
}

/// A snapshot that was asked for by a call that nobody waited for, and that is not there yet.
async fn is_taking_snapshot(vsphere: &Vsphere, machine: &str) -> Result<bool, OperationError> {
    let machine = vsphere.told(&operations::machine(machine), &["recentTask"]).await?;
    let recent = machine.get("recentTask").map(|list| list.children.as_slice()).unwrap_or_default();
    let tasks: Vec<_> = recent.iter().filter_map(Element::reference).collect();
    if tasks.is_empty() {
        return Ok(false);
    }
    let wanted = [("Task", ["info.descriptionId", "info.state"].as_slice())];
    let tasks = vsphere.client().properties(Of::Objects(&tasks), &wanted).await?;
    Ok(tasks.iter().any(|task| {
        let is_snapshot = task.text("info.descriptionId").is_some_and(|id| id.contains("createSnapshot"));
        is_snapshot && matches!(task.text("info.state"), Some("queued" | "running"))
    }))
}

//! The machine put back as it was found: runs again if we switched it off, without our snapshots, without the change tracking
//! that we switched on.
//!
//! An edge. What there is to put back stands in the job's journal ([`Footprint`]); each thing is noted there when it is done,
//! so whoever comes next does the rest. Called by [`crate::put_back`], and between rounds for the snapshots. Nothing that is
//! not in the journal is touched.

use std::time::Duration;

use tokio::time::Instant;

use super::error::ClientError;
use super::machine::PowerState;
use super::power::GuestState;
use super::properties::Of;
use super::soap::Element;
use super::{FoundSnapshot, OperationError, Vsphere, VsphereError, operations};
use crate::footprint::Footprint;
use crate::journal::{Entry, Journal, JournalError};

/// What every snapshot of ours is called, before the job's tag (contract.md 6.3).
pub const SNAPSHOT_NAME: &str = "v2v_cbt";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A snapshot that is not there, and that nobody seems to be taking, is looked for once more: its call may be on its way.
const ON_ITS_WAY: u32 = 2;
/// A guest that was asked to shut down does so, or it does not. So long it is waited for when it says that it does, when it
/// says nothing, and when it says that it runs.
const SHUTS_DOWN: Duration = Duration::from_secs(300);
const SAYS_NOTHING: Duration = Duration::from_secs(120);
const RUNS_ON: Duration = Duration::from_secs(20);

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
    /// It cannot be removed before it is there.
    #[error("the snapshot {name:?} of {machine} is still being taken after {} s", waited.as_secs())]
    Coming {
        /// Its name.
        name: String,
        /// The machine.
        machine: String,
        /// How long it was waited for.
        waited: Duration,
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
    // From now on nobody may take the copies for those of a machine that has not run since. If that cannot be noted, their
    // marks tell; people wait for the machine.
    let noted = journal.record(&Entry::SwitchingOn);
    let on = async {
        obeyed(vsphere, machine).await?;
        vsphere.power_on(machine).await
    };
    let refused = |source| RestoreError::Refused { what: format!("switch {machine} on again"), source };
    on.await.map_err(refused)?;
    noted?;
    Ok(journal.record(&Entry::SwitchedOn)?)
}

/// Who switches a machine on while its guest shuts down finds it on, and off a moment later.
async fn obeyed(vsphere: &Vsphere, machine: &str) -> Result<(), OperationError> {
    let began = Instant::now();
    loop {
        let power = vsphere.power(machine).await?;
        let patience = match power.guest {
            GuestState::ShuttingDown => SHUTS_DOWN,
            GuestState::Unknown => SAYS_NOTHING,
            GuestState::Running => RUNS_ON,
        };
        if power.state != PowerState::On || began.elapsed() >= patience {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
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

/// Removes the snapshots of these names, all of them that are there or are being taken; fails with the first that could not
/// be.
pub async fn remove_snapshots(
    vsphere: &Vsphere,
    machine: &str,
    names: &[String],
    patience: Duration,
    journal: &mut Journal,
) -> Result<(), RestoreError> {
    let refused = |what: String| move |source| RestoreError::Refused { what, source };
    let look = || refused(format!("list the snapshots of {machine}"));
    let began = Instant::now();
    let mut idle = 0;
    let (found, is_coming) = loop {
        // Asked before the list: a snapshot is in the one or in the other.
        let is_coming = is_taking_snapshot(vsphere, machine).await.map_err(look())?;
        let found = vsphere.snapshots(machine).await.map_err(look())?;
        let is_there = |name: &String| found.iter().any(|snapshot| snapshot.name == *name);
        idle = if is_coming { 0 } else { idle + 1 };
        if names.iter().all(is_there) || idle == ON_ITS_WAY || began.elapsed() >= patience {
            break (found, is_coming);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let mut result = Ok(());
    for name in names {
        // Two of one name can only both be ours.
        let of_name: Vec<&FoundSnapshot> = found.iter().filter(|snapshot| snapshot.name == *name).collect();
        let mut removed = match of_name.is_empty() && is_coming {
            true => Err(RestoreError::Coming {
                name: name.clone(),
                machine: machine.to_owned(),
                waited: began.elapsed(),
            }),
            false => Ok(()),
        };
        for snapshot in of_name {
            tracing::info!("removing the snapshot {name:?} ({})", snapshot.moref);
            let one = vsphere.remove_snapshot(&snapshot.moref, patience).await;
            removed = removed.and(one.map_err(refused(format!("remove the snapshot {name:?} of {machine}"))));
        }
        if removed.is_ok() {
            // One that cannot be noted is looked for once more later; the others are to go all the same.
            removed = journal.record(&Entry::SnapshotGone { name: name.clone() }).map_err(RestoreError::from);
        }
        result = result.and(removed);
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
    let tasks = match vsphere.client().properties(Of::Objects(&tasks), &wanted).await {
        // One of them was forgotten just now: it is looked again.
        Err(ClientError::Fault { fault, .. }) if fault.is_not_found() => return Ok(true),
        tasks => tasks?,
    };
    Ok(tasks.iter().any(|task| {
        let is_snapshot = task.text("info.descriptionId").is_some_and(|id| id.contains("createSnapshot"));
        is_snapshot && matches!(task.text("info.state"), Some("queued" | "running"))
    }))
}

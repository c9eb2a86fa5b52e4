//! What must be so before a warm migration begins, or goes on: the machine found, fit, and the one that was begun with.

use std::path::Path;

use super::book::Book;
use super::{WarmError, sight};
use crate::guest::Disk;
use crate::job::Job;
use crate::plan::{Quiesce, TwoPhase};
use crate::source::vsphere::machine::Inventory;
use crate::source::vsphere::verdict::{self, Verdict};
use crate::source::vsphere::{DiskVerdict, Tools, Vsphere};
use crate::two_phase::{Known, earlier};

/// A warm migration that may begin.
pub(crate) struct Begun {
    pub(crate) known: Known,
    pub(crate) book: Book,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
    /// Where the host keeps each disk of `known` (contract.md 3.5).
    pub(crate) absolute_paths: Vec<Option<String>>,
}

/// Looks at the machine, and changes nothing. `own` are snapshots of this migration that may be there.
pub(crate) async fn begin(
    job: &Job,
    two_phase: &TwoPhase,
    vsphere: &Vsphere,
    directory: &Path,
    own: &[String],
) -> Result<Begun, WarmError> {
    let machine = vsphere.planned(&job.plan.vm_name).await?;
    tracing::info!("VM {:?} is {} with {} disks", machine.guest.name, machine.moref, machine.backings.len());
    let snapshots = vsphere.snapshots(&machine.moref).await?;
    let verdicts = verdict::verdicts(&machine, &snapshots, &|name| own.iter().any(|own| own == name));
    if let Some(error) = unfit(&machine, &verdicts) {
        return Err(error);
    }
    has_tools(two_phase, vsphere, &machine).await?;
    let begun = match (earlier::known(directory)?, Book::read(directory)?) {
        (Some(known), Some(book)) => gone_on_with(&machine, known, book)?,
        _ => Begun {
            book: Book::new(machine.moref.clone(), machine.backings.len()),
            known: Known { guest: machine.guest.clone(), domain: None },
            notes: verdict::notes(&machine),
            absolute_paths: machine.absolute_paths(),
        },
    };
    Ok(begun)
}

/// Why not all disks can be copied while the machine runs, if they cannot.
pub(crate) fn unfit(machine: &Inventory, verdicts: &[DiskVerdict]) -> Option<WarmError> {
    let unfit = verdicts.iter().filter_map(|disk| match &disk.verdict {
        Verdict::Warm => None,
        Verdict::Cold { reason } | Verdict::Blocked { reason } => Some(format!("{}: {reason}", disk.label)),
    });
    let reasons: Vec<String> = unfit.collect();
    let name = machine.guest.name.clone();
    if !reasons.is_empty() {
        return Some(WarmError::Unfit { name, reasons: reasons.join("; ") });
    }
    let untold = |disk: &&Disk| disk.key.is_none() || disk.size.is_none();
    let untold = machine.guest.disks.iter().find(untold);
    untold.map(|disk| WarmError::UntoldDisk { name, disk: disk.label.clone() })
}

/// What `snapshot_quiesce: require` needs.
pub(crate) async fn has_tools(
    two_phase: &TwoPhase,
    vsphere: &Vsphere,
    machine: &Inventory,
) -> Result<(), WarmError> {
    if two_phase.warm.as_ref().is_some_and(|warm| warm.quiesce == Quiesce::Require)
        && vsphere.power(&machine.moref).await?.tools != Tools::Running
    {
        return Err(WarmError::NoTools { name: machine.guest.name.clone() });
    }
    Ok(())
}

fn gone_on_with(machine: &Inventory, known: Known, book: Book) -> Result<Begun, WarmError> {
    // Other disks than those that were begun with are told by the first round.
    let indices = sight::matched(&known.guest.disks, &machine.guest.disks).unwrap_or_default();
    let paths = machine.absolute_paths();
    let absolute_paths = indices.into_iter().map(|index| paths[index].clone()).collect();
    match book.machine == machine.moref && book.disks.len() == known.guest.disks.len() {
        true => Ok(Begun { known, book, notes: verdict::notes(machine), absolute_paths }),
        false => Err(WarmError::OtherMachine {
            name: machine.guest.name.clone(),
            copied: book.machine,
            found: machine.moref.clone(),
        }),
    }
}

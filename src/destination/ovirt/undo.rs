//! What a job made at an engine, removed again: machine, attachments, disks, and the image transfers of virt-v2v.
//!
//! Works from the journal alone, logs in by itself, goes on after a failure, and may be run as often as one likes. What
//! virt-v2v's log told is looked at twice, because the guest's console is in that log, too: it is removed only if it is what
//! virt-v2v makes for this guest.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::answer::{id_of, list, text};
use super::attachments::{self, disks_of, parts, unplug};
use super::client::{Engine, Wait};
use super::create::{LOST, marked};
use super::terms::Terms;
use super::{OvirtError, create};
use crate::destination::DestinationError;
use crate::http::encoded;
use crate::journal::Entry;
use crate::log::chain;
use crate::plan::Plan;
use crate::records::Records;
use crate::things::{Kind, Side, Thing};

/// For all of it: a little less than whoever calls gives, so that a sentence for each thing comes back.
const LIMIT: Duration = Duration::from_secs(590);
/// How often a thing is removed that the engine refuses to remove, and how long is waited between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);
/// How long a cancelled transfer is waited for. The lock that it holds on its disk is waited for in any case.
const CANCEL: Duration = Duration::from_secs(60);
/// What virt-v2v writes into the description of its disks.
const OF_VIRT_V2V: &str = "virt-v2v";

/// Removes `things`; a sentence for each that is left.
pub async fn undo(plan: &Plan, things: &[Thing], records: &mut Records) -> Vec<String> {
    let Some(terms) = Terms::of(plan) else { return Vec::new() };
    if things.is_empty() {
        return Vec::new();
    }
    let engine = match Engine::connect(plan, &terms).await {
        Ok(engine) => engine,
        Err(error) => return vec![chain(&error)],
    };
    let problems = with(&engine, plan, things, records).await;
    engine.goodbye().await;
    problems
}

/// The same with an engine that knows us already.
pub async fn with(engine: &Engine, plan: &Plan, things: &[Thing], records: &mut Records) -> Vec<String> {
    let names = names(plan, records);
    let disks = ours(records);
    let undo = Undo {
        engine,
        wait: engine.wait(LIMIT),
        lost: engine.wait(LOST),
        pause: plan.tools.patience(PAUSE),
        names,
        disks,
    };
    let mut problems = Vec::new();
    for thing in things {
        let removed = match undo.insist(thing).await {
            Ok(()) => records.gone(&thing.mark).map_err(DestinationError::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = removed {
            problems.push(format!("{thing} is left: {}", chain(&error)));
        }
    }
    problems
}

/// Names that virt-v2v may have given to the guest.
fn names(plan: &Plan, records: &Records) -> Vec<String> {
    let entries = records.entries().unwrap_or_default();
    let told = entries.into_iter().filter_map(|entry| match entry {
        Entry::GuestName { name } => Some(name),
        _ => None,
    });
    std::iter::once(plan.vm_name.clone()).chain(told).collect()
}

/// Ids of all disks that this job made.
fn ours(records: &Records) -> Vec<String> {
    let things = records.things(Side::Destination).unwrap_or_default();
    things.into_iter().filter(|thing| thing.kind == Kind::Disk).filter_map(|thing| thing.id).collect()
}

struct Undo<'a> {
    engine: &'a Engine,
    wait: Wait,
    /// For what nobody answered: all of it had the same time to come to be.
    lost: Wait,
    /// Before another try.
    pause: Duration,
    names: Vec<String>,
    disks: Vec<String>,
}

impl Undo<'_> {
    /// The same as [`Self::remove`], again where the engine refuses: what made it fail may be over by then, and nobody else
    /// comes to remove it. One that is away was waited for already.
    async fn insist(&self, thing: &Thing) -> Result<(), OvirtError> {
        for _ in 1..TRIES {
            match self.remove(thing).await {
                Err(error) if error.is_refusal() => tracing::warn!("{}: trying again", chain(&error)),
                done => return done,
            }
            tokio::time::sleep(self.pause).await;
        }
        self.remove(thing).await
    }

    /// Returns when it is not there any more, or is somebody else's.
    async fn remove(&self, thing: &Thing) -> Result<(), OvirtError> {
        // An id that virt-v2v's log told is its own mark.
        let told = thing.id.as_ref() == Some(&thing.mark);
        match thing.kind {
            Kind::Machine => self.machine(thing, told).await,
            Kind::Attachment => self.attachment(thing).await,
            Kind::Disk => self.disk(thing, told).await,
            Kind::Detachment
            | Kind::Transfer
            | Kind::Port
            | Kind::Snapshot
            | Kind::Image
            | Kind::ImageTransfer
            | Kind::Export => Ok(()),
        }
    }

    /// The thing of this kind whose creation nobody answered, if it came to be.
    async fn lost(
        &self,
        collection: (&str, &str),
        name: &str,
        mark: &str,
    ) -> Result<Option<String>, OvirtError> {
        let look = async || marked(self.engine, collection, name, mark).await;
        let found = self.lost.until(look).await?;
        found.map(|found| create::id("cannot look for what was begun", &found)).transpose()
    }

    async fn attachment(&self, thing: &Thing) -> Result<(), OvirtError> {
        let mut thing = thing.clone();
        if let (None, Some((machine, disk))) = (&thing.id, parts(&thing.of)) {
            let what = "cannot look for what was begun";
            let look = async || attachments::find(self.engine, what, machine, disk).await;
            let Some(found) = self.lost.until(look).await? else { return Ok(()) };
            thing.id = create::id(what, &found).ok();
        }
        unplug(self.engine, &thing, &self.wait).await
    }

    async fn machine(&self, thing: &Thing, told: bool) -> Result<(), OvirtError> {
        let id = match &thing.id {
            Some(id) => id.clone(),
            None => match self.lost(("vms", "vm"), &thing.of, &thing.mark).await? {
                Some(id) => id,
                None => return Ok(()),
            },
        };
        let path = format!("vms/{}", encoded(&id));
        let what = "Remove VM failed";
        let Some(found) = self.engine.find(what, &path).await? else { return Ok(()) };
        if told && !self.is_of_virt_v2v(&id, &found).await? {
            tracing::info!("VM {id} of the log is not what virt-v2v made for this guest: it stays");
            return Ok(());
        }
        if text(&found, "status").is_some_and(|status| status.eq_ignore_ascii_case("up")) {
            return Err(OvirtError::Runs { id });
        }
        // The disks go by themselves, or stay for a later job.
        self.delete(what, &path, "?detach_only=true").await
    }

    /// Has it the guest's name, and no disk but this job's?
    async fn is_of_virt_v2v(&self, id: &str, found: &Value) -> Result<bool, OvirtError> {
        if !text(found, "name").is_some_and(|name| self.names.iter().any(|ours| ours == name)) {
            return Ok(false);
        }
        let disks = disks_of(self.engine, id).await?.unwrap_or_default();
        Ok(!disks.is_empty() && disks.iter().all(|disk| self.disks.contains(disk)))
    }

    async fn disk(&self, thing: &Thing, told: bool) -> Result<(), OvirtError> {
        let id = match &thing.id {
            Some(id) => id.clone(),
            None => {
                // The name is that of the number, which is the last word.
                let number = thing.of.rsplit(' ').next().unwrap_or_default();
                let name = format!("{}_Disk{number}", self.names[0]);
                match self.lost(("disks", "disk"), &name, &thing.mark).await? {
                    Some(id) => id,
                    None => return Ok(()),
                }
            }
        };
        let path = format!("disks/{}", encoded(&id));
        let what = "Remove disk failed";
        let Some(found) = self.engine.find(what, &path).await? else { return Ok(()) };
        // Nobody uploads to a disk at rest: one that is being uploaded to is virt-v2v's, whatever it is called.
        let uploaded = async || Ok(self.transfers(&id).await?.is_some_and(|open| !open.is_empty()));
        if told && !is_disk_of_virt_v2v(&found, &self.names) && !(is_free(&found) && uploaded().await?) {
            tracing::info!("disk {id} of the log is not what virt-v2v made for this guest: it stays");
            return Ok(());
        }
        if told {
            self.cancel_transfers(&id).await?;
        }
        let unlocked = async || {
            let found = self.engine.find(what, &path).await?;
            let status = found.as_ref().and_then(|found| text(found, "status"));
            Ok((!status.is_some_and(|status| status.eq_ignore_ascii_case("locked"))).then_some(()))
        };
        if self.wait.until(unlocked).await?.is_none() {
            return Err(OvirtError::StillLocked);
        }
        self.delete(what, &path, "").await
    }

    /// Deletes, and returns when it is gone.
    async fn delete(&self, what: &str, path: &str, query: &str) -> Result<(), OvirtError> {
        let asked = format!("{path}{query}");
        match self.engine.patiently(what, Method::DELETE, &asked, None, &self.wait).await {
            Err(error) if error.is_not_found() => return Ok(()),
            done => drop(done?),
        }
        let gone = async || Ok(self.engine.find(what, path).await?.is_none().then_some(()));
        let slow = || OvirtError::Slow { what: what.to_owned(), seconds: LIMIT.as_secs() };
        self.wait.until(gone).await?.ok_or_else(slow)
    }

    /// As long as something is transferred, the disk is locked. The engine may remove the disk with it.
    async fn cancel_transfers(&self, disk: &str) -> Result<(), OvirtError> {
        let what = "Cancel the image transfer failed";
        let Some(transfers) = self.transfers(disk).await? else { return Ok(()) };
        for id in &transfers {
            let path = format!("imagetransfers/{}/cancel", encoded(id));
            match self.engine.patiently(what, Method::POST, &path, Some(&json!({})), &self.wait).await {
                // It may have ended meanwhile: what counts is that the disk is unlocked.
                Err(error) if error.is_not_found() || error.is_ambiguous() => {
                    tracing::info!("{}", chain(&error));
                }
                Err(error) => tracing::warn!("{}", chain(&error)),
                Ok(_) => {}
            }
        }
        let over = async || Ok(self.transfers(disk).await?.is_none_or(|left| left.is_empty()).then_some(()));
        if self.engine.wait(CANCEL).until(over).await?.is_none() {
            tracing::warn!(
                "disk {disk} is still being uploaded to: the engine says itself whether it can be removed"
            );
        }
        Ok(())
    }

    /// Ids of the transfers of a disk that are not over; `None`: the engine does not tell.
    async fn transfers(&self, disk: &str) -> Result<Option<Vec<String>>, OvirtError> {
        let answer = self.engine.optional("cannot list the image transfers", "imagetransfers").await?;
        let Some(all) = answer.as_ref().and_then(|answer| list(answer, "image_transfer")) else {
            return Ok(None);
        };
        let of_disk = |transfer: &&Value| {
            let of = [id_of(transfer, "image"), id_of(transfer, "disk")];
            of.iter().flatten().any(|id| id.eq_ignore_ascii_case(disk)) && !is_over(transfer)
        };
        Ok(Some(
            all.iter()
                .filter(of_disk)
                .filter_map(|transfer| text(transfer, "id"))
                .map(str::to_owned)
                .collect(),
        ))
    }
}

fn is_over(transfer: &Value) -> bool {
    let phase = text(transfer, "phase").unwrap_or_default().to_ascii_lowercase();
    // A cancelled one is cleaned up by the engine, which unlocks the disk.
    phase.starts_with("finished")
        || phase == "cancelled"
        || phase.starts_with("cancelled_")
        || phase == "finalizing_cleanup"
}

/// Can a disk of the log be what virt-v2v made for the guest? Its name begins with the guest's, or its description says so, or
/// it has neither; and no machine has it yet, because that is virt-v2v's last step.
fn is_disk_of_virt_v2v(disk: &Value, names: &[String]) -> bool {
    let given = [text(disk, "name"), text(disk, "alias")];
    let description = text(disk, "description");
    let of_guest =
        given.iter().flatten().any(|given| names.iter().any(|name| given.starts_with(name.as_str())));
    let says_so = description.is_some_and(|description| description.contains(OF_VIRT_V2V));
    let says_nothing = given == [None, None] && description.is_none();
    is_free(disk) && (of_guest || says_so || says_nothing)
}

/// Has no machine it?
fn is_free(disk: &Value) -> bool {
    let machines = disk.get("vms").and_then(|machines| list(machines, "vm")).unwrap_or_default();
    machines.is_empty() && id_of(disk, "vm").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_the_log_is_only_removed_if_virt_v2v_can_have_made_it() {
        let names = ["guest".to_owned()];
        for (disk, is_ours) in [
            (json!({"id": "d", "name": "guest-000", "description": "Uploaded by virt-v2v"}), true),
            (json!({"id": "d", "alias": "guest-sda"}), true),
            (json!({"id": "d", "name": "x", "description": "Uploaded by virt-v2v"}), true),
            (json!({"id": "d", "status": "ok"}), true),
            (json!({"id": "d", "name": "database", "description": "theirs"}), false),
            (json!({"id": "d", "name": "database", "description": ""}), false),
            // An engine shows no description that was never given, and virt-v2v always gives one.
            (json!({"id": "d", "name": "database"}), false),
            (json!({"id": "d", "name": "guest-000", "vms": {"vm": [{"id": "v"}]}}), false),
            (json!({"id": "d", "name": "guest-000", "vm": {"id": "v"}}), false),
        ] {
            assert_eq!(is_disk_of_virt_v2v(&disk, &names), is_ours, "{disk}");
        }
    }

    #[test]
    fn a_transfer_is_over_when_the_engine_says_so() {
        for (phase, over) in [
            ("transferring", false),
            ("initializing", false),
            ("paused_system", false),
            ("finalizing_success", false),
            ("finished_failure", true),
            ("FINISHED_SUCCESS", true),
            ("cancelled", true),
            ("cancelled_user", true),
            ("", false),
        ] {
            assert_eq!(is_over(&json!({"phase": phase})), over, "{phase}");
        }
    }
}

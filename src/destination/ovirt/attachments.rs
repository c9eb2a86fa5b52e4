//! Disks in machines: plugged into the conversion host for the copy, and out again. An edge.
//!
//! In the conversion host a disk is the device that carries the first twenty characters of its id as its serial number; that is
//! where the copy goes. Used by `place`, by `publish` and by [`super::undo`].

use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};

use super::answer::{flag, id_of, list, text};
use super::client::{Engine, LONG, Wait};
use super::create::{self, New, create};
use super::disks::Disk;
use super::{OvirtError, Prepared};
use crate::destination::{DestinationError, Work};
use crate::domain::Placed;
use crate::http::encoded;
use crate::plan::DiskFormat;
use crate::things::{Kind, Side, Thing};

/// Where udev links devices by their serial numbers.
const DEVICES: &str = "/dev/disk/by-id";
/// As much of an id as virtio has room for.
const SERIAL: usize = 20;

/// Every disk in the conversion host, as a device of this host.
pub async fn plug(
    prepared: &Prepared,
    disks: &[Disk],
    work: &mut Work<'_>,
) -> Result<Vec<Placed>, DestinationError> {
    let engine = &prepared.engine;
    let host = prepared.host.as_deref().ok_or(OvirtError::NoHostGiven)?;
    leave_other_hosts(engine, host, work).await?;
    let mut ids = Vec::with_capacity(disks.len());
    for (index, disk) in disks.iter().enumerate() {
        work.waits_for(Some(&format!("disk {} to be attached to the conversion host", index + 1)));
        ids.push(attach(engine, host, index + 1, disk, work).await?);
    }
    let wait = engine.wait(LONG);
    let mut placed = Vec::with_capacity(disks.len());
    for (disk, id) in disks.iter().zip(&ids) {
        work.waits_for(Some("the new disks to appear as devices of this host"));
        let path = device(disk, id, &wait).await?;
        placed.push(Placed { path, format: DiskFormat::Raw });
    }
    work.waits_for(None);
    Ok(placed)
}

/// What the journal calls an attachment.
fn of(host: &str, disk: &str) -> String {
    format!("{host}/{disk}")
}

/// The machine and the disk of an attachment of ours.
pub fn parts(of: &str) -> Option<(&str, &str)> {
    of.split_once('/')
}

/// The attachments of a machine.
pub fn collection(machine: &str) -> String {
    format!("vms/{}/diskattachments", encoded(machine))
}

/// One of them.
pub fn path(machine: &str, attachment: &str) -> String {
    format!("{}/{}", collection(machine), encoded(attachment))
}

/// The attachment of a disk. In oVirt it has its disk's id, which the API does not promise.
pub async fn find(
    engine: &Engine,
    what: &str,
    machine: &str,
    disk: &str,
) -> Result<Option<Value>, OvirtError> {
    if let Some(found) = engine.find(what, &path(machine, disk)).await? {
        return Ok(Some(found));
    }
    let all = engine.optional(what, &collection(machine)).await?;
    let all = all.as_ref().and_then(|all| list(all, "disk_attachment")).unwrap_or_default();
    Ok(all.iter().find(|one| id_of(one, "disk") == Some(disk)).cloned())
}

/// An earlier job may have run on another host.
async fn leave_other_hosts(engine: &Engine, host: &str, work: &mut Work<'_>) -> Result<(), DestinationError> {
    let mut things = work.records.things(Side::Destination)?;
    things.retain(|thing| thing.kind == Kind::Attachment);
    for thing in things {
        if parts(&thing.of).is_some_and(|(other, _)| other != host) {
            unplug(engine, &thing, &engine.wait(LONG)).await?;
            work.records.gone(&thing.mark)?;
        }
    }
    Ok(())
}

/// Attaches a disk, or finds it attached; gives the attachment's id.
async fn attach(
    engine: &Engine,
    host: &str,
    number: usize,
    disk: &Disk,
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    let what = format!("Attach disk {number} to the conversion host failed");
    let of = of(host, &disk.id);
    let known = work.records.things(Side::Destination)?.into_iter().find(|thing| thing.of == of);
    let mark =
        known.map_or_else(|| format!("{}-attachment-{number}", work.job.files.tag), |thing| thing.mark);
    work.records.making(Side::Destination, Kind::Attachment, &mark, &of)?;
    let wait = engine.wait(LONG);
    let there = find(engine, &what, host, &disk.id).await?;
    let found = match &there {
        Some(found) => found.clone(),
        None => {
            let body = attachment(&disk.id, "virtio", false);
            let new = New { what: &what, path: &collection(host), body: &body };
            create(engine, new, &wait, async || find(engine, &what, host, &disk.id).await).await?
        }
    };
    let id = create::id(&what, &found).unwrap_or_else(|_| disk.id.clone());
    work.records.made(&mark, &id)?;
    let path = path(host, &id);
    if there.is_some() && flag(&found, "active") != Some(true) {
        engine.patiently(&what, Method::PUT, &path, Some(&json!({"active": true})), &wait).await?;
    }
    // Of an engine that does not tell, the device does.
    let active = async || {
        let found = engine.get(&what, &path).await?;
        Ok((flag(&found, "active") != Some(false)).then_some(()))
    };
    if wait.until(active).await?.is_none() {
        return Err(OvirtError::Slow { what, seconds: LONG.as_secs() }.into());
    }
    Ok(id)
}

/// How a disk is to be attached.
pub fn attachment(disk: &str, interface: &str, bootable: bool) -> Value {
    json!({"disk": {"id": disk}, "interface": interface, "bootable": bootable, "active": true})
}

/// The device of a disk, when it is there and has its size.
async fn device(disk: &Disk, attachment: &str, wait: &Wait) -> Result<PathBuf, OvirtError> {
    let candidates = [attachment, disk.id.as_str()].map(|id| {
        let serial: String = id.chars().take(SERIAL).collect();
        Path::new(DEVICES).join(format!("virtio-{serial}"))
    });
    let look = async || Ok(candidates.iter().find(|path| has_size(path, disk.size)).cloned());
    let found = wait.until(look).await?;
    found.ok_or_else(|| OvirtError::NotPlugged { path: candidates[0].display().to_string() })
}

fn has_size(path: &Path, size: u64) -> bool {
    let end = std::fs::File::open(path).and_then(|mut device| device.seek(SeekFrom::End(0)));
    end.is_ok_and(|end| end >= size)
}

/// Takes a disk of ours out of a machine; good if it is not there.
pub async fn unplug(engine: &Engine, thing: &Thing, wait: &Wait) -> Result<(), OvirtError> {
    let Some((machine, disk)) = parts(&thing.of) else { return Ok(()) };
    let path = path(machine, thing.id.as_deref().unwrap_or(disk));
    let what = format!("Detach disk {disk} from VM {machine} failed");
    let slow = || OvirtError::Slow { what: what.clone(), seconds: LONG.as_secs() };
    let found = match engine.find(&what, &path).await? {
        None => return Ok(()),
        Some(found) => found,
    };
    if flag(&found, "active") != Some(false) {
        match engine.patiently(&what, Method::PUT, &path, Some(&json!({"active": false})), wait).await {
            Err(error) if error.is_not_found() => return Ok(()),
            done => drop(done?),
        }
        let idle = async || {
            let found = engine.find(&what, &path).await?;
            Ok(found.is_none_or(|found| flag(&found, "active") != Some(true)).then_some(()))
        };
        wait.until(idle).await?.ok_or_else(slow)?;
    }
    let removal = format!("{path}?detach_only=true");
    match engine.patiently(&what, Method::DELETE, &removal, None, wait).await {
        Err(error) if error.is_not_found() => return Ok(()),
        done => drop(done?),
    }
    let gone = async || Ok(engine.find(&what, &path).await?.is_none().then_some(()));
    wait.until(gone).await?.ok_or_else(slow)
}

/// All disks of ours out of the conversion host.
pub async fn unplug_all(engine: &Engine, work: &mut Work<'_>) -> Result<(), DestinationError> {
    let mut things = work.records.things(Side::Destination)?;
    things.retain(|thing| thing.kind == Kind::Attachment);
    for thing in things {
        work.waits_for(Some("the disks to be detached from the conversion host"));
        unplug(engine, &thing, &engine.wait(LONG)).await?;
        work.records.gone(&thing.mark)?;
    }
    work.waits_for(None);
    Ok(())
}

/// The disks of a machine; `None` where the engine does not tell.
pub async fn disks_of(engine: &Engine, machine: &str) -> Result<Option<Vec<String>>, OvirtError> {
    let Some(answer) = engine.optional("cannot list the disks of a machine", &collection(machine)).await?
    else {
        return Ok(None);
    };
    Ok(list(&answer, "disk_attachment").map(|attachments| {
        let disk = |attachment: &Value| {
            id_of(attachment, "disk").or_else(|| text(attachment, "id")).map(str::to_owned)
        };
        attachments.iter().filter_map(disk).collect()
    }))
}

//! Two-phase: a volume for each disk of the guest, attached to the conversion server, which is this host (contract.md 6.2);
//! and, when they are copied and converted, detached again (6.6).

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{DestinationError, Work};
use super::marks::{Marks, volume_of};
use super::{Asked, OpenstackError, Session, adopt, finish, room};
use crate::domain::Placed;
use crate::guest::{self, Guest};
use crate::openstack::resolve::Resource;
use crate::openstack::volumes::{NewVolume, Volume};
use crate::openstack::{Cloud, CloudError};
use crate::plan::{DiskFormat, Source};
use crate::source::openstack::lock::{self, VolumeLock};
use crate::things::{Kind, Side, Thing};

/// Contract.md 6.2.
const READY: Duration = Duration::from_secs(600);
const DEVICE_EVERY: Duration = Duration::from_millis(500);
/// Names are cut by clouds.
const LONGEST_NAME: usize = 255;
/// What QEMU shows of a disk's serial number on virtio-blk.
const SERIAL: usize = 20;

/// Makes them, or finds those of the earlier job; in this host.
pub(super) async fn place(
    session: &Session,
    guest: &Guest,
    work: &mut Work<'_>,
) -> Result<Vec<Placed>, DestinationError> {
    let sizes = guest
        .disks
        .iter()
        .map(|disk| disk.size.ok_or_else(|| OpenstackError::NoSize { disk: disk.path.clone() }));
    let sizes: Vec<u64> = sizes.collect::<Result<_, _>>()?;
    let things = work.records.things(Side::Destination)?;
    let missing = |number: &usize| disk(&things, *number).is_none();
    let new: Vec<u64> =
        (1..=sizes.len()).filter(missing).map(|number| room::gib(sizes[number - 1])).collect();
    for cloud in session.projects.each() {
        room::for_volumes(cloud, &new).await?;
    }
    let mut volumes = Vec::new();
    for (index, bytes) in sizes.iter().enumerate() {
        let known = disk(&things, index + 1);
        volumes.push(match known.and_then(|thing| thing.id.as_deref()) {
            Some(id) => recall(session, index + 1, id, *bytes, work).await?,
            None => {
                let number = (index + 1, sizes.len());
                create(session, number, &guest.disks[index], *bytes, known, work).await?
            }
        });
    }
    available(session, &volumes, work).await?;
    for (volume, disk) in volumes.iter().zip(&guest.disks) {
        if disk.volume.as_ref().is_some_and(|before| before.bootable)
            && let Err(error) = session.projects.here.set_bootable(volume, true).await
        {
            tracing::warn!("volume {volume} could not be made bootable: {}", crate::log::chain(&error));
        }
    }
    // Other programs find a new device by comparing the lists of before and after (contract.md 7).
    let tools = &work.job.plan.tools;
    let _lock = match work.job.plan.source {
        Source::Openstack { .. } => {
            work.waits_for(Some("other migrations, to attach their volumes to this host"));
            let lock = VolumeLock::take(lock::DESTINATION.as_ref(), |usual| tools.patience(usual)).await;
            Some(lock.map_err(OpenstackError::Lock)?)
        }
        _ => None,
    };
    let mut placed = Vec::new();
    for (volume, bytes) in volumes.iter().zip(&sizes) {
        let path = plug(session, volume, *bytes, work).await?;
        placed.push(Placed { path, format: DiskFormat::Raw });
    }
    work.waits_for(None);
    Ok(placed)
}

/// The record of the n-th disk, from 1.
fn disk(things: &[Thing], number: usize) -> Option<&Thing> {
    let number = number.to_string();
    things.iter().find(|thing| thing.kind == Kind::Disk && thing.of == number)
}

/// What a volume is beside its size: what the disk was where it was a volume, else what this job makes of it.
async fn traits(session: &Session, number: usize, disk: &guest::Disk, work: &Work<'_>) -> guest::Volume {
    let name = &work.job.plan.vm_name;
    let Some(before) = disk.volume.clone() else {
        let description = Some(format!("{name} disk {number}, copied by virt-v2v-wrapper"));
        let name = format!("{name}_Disk{number}");
        return guest::Volume { name, description, kind: session.kind.clone(), ..guest::Volume::default() };
    };
    let kind = match (&session.kind, before.kind) {
        (Some(asked), _) => Some(asked.clone()),
        (None, Some(kind)) => match session.projects.here.resolve(Resource::VolumeType, &kind).await {
            Ok(found) => Some(found.id().to_owned()),
            Err(error) => {
                tracing::warn!(
                    "{}: its volume gets the default type, not {kind}: {}",
                    disk.path,
                    crate::log::chain(&error)
                );
                None
            }
        },
        (None, None) => None,
    };
    guest::Volume { kind, ..before }
}

/// What stands on a volume besides the mark. One whose guest is converted says which guest's and which disk it is in the words
/// of virt-v2v, who wrote them on it when it was asked to convert to it (contract.md 1.4, 5 row 9, 6.5).
fn metadata(number: usize, count: usize, disk: &guest::Disk, guest: &str) -> Vec<(String, String)> {
    let mut metadata = vec![("virt_v2v_wrapper_disk".to_owned(), number.to_string())];
    if disk.volume.is_none() {
        metadata.push((adopt::GUEST.to_owned(), guest.to_owned()));
        metadata.push((adopt::INDEX.to_owned(), format!("{number}/{count}")));
    }
    metadata
}

async fn create(
    session: &Session,
    (number, count): (usize, usize),
    disk: &guest::Disk,
    bytes: u64,
    known: Option<&Thing>,
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    let guest::Volume { name, description, kind, .. } = traits(session, number, disk, work).await;
    let mark = known.map_or_else(|| Marks::of(work).disk(number), |thing| thing.mark.clone());
    let new = NewVolume {
        name: name.chars().take(LONGEST_NAME).collect(),
        description: description.unwrap_or_default().chars().take(LONGEST_NAME).collect(),
        size: room::gib(bytes),
        kind,
        metadata: metadata(number, count, disk, Asked::of(&work.job.plan)?.guest),
        ..NewVolume::default()
    };
    work.records.making(Side::Destination, Kind::Disk, &mark, &number.to_string())?;
    let volume = session.projects.here.create_volume(&new, &mark, known.is_some()).await;
    let volume = volume.map_err(OpenstackError::CreateVolume)?;
    work.records.made(&mark, &volume.id)?;
    Ok(volume.id)
}

/// The volume with a copy of the earlier job: still there, large enough, and in the project of this host again.
async fn recall(
    session: &Session,
    number: usize,
    id: &str,
    bytes: u64,
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    let lost = |what: &str| OpenstackError::Lost { id: id.to_owned(), number, what: what.to_owned() };
    let found = session.projects.find(id).await.map_err(OpenstackError::Cloud)?;
    let (owner, volume) = found.ok_or_else(|| lost("is gone"))?;
    if volume.size != 0 && volume.size < room::gib(bytes) {
        return Err(lost("is smaller than the disk").into());
    }
    let here = &session.projects.here;
    if owner.project() != here.project() {
        // A job that failed when it was about to make the server.
        finish::hand_over(owner, here, id, work).await?;
    }
    Ok(id.to_owned())
}

/// Waits until all can be attached, or are.
async fn available(session: &Session, volumes: &[String], work: &Work<'_>) -> Result<(), DestinationError> {
    let patience = work.job.plan.tools.patience(READY);
    let until = Instant::now() + patience;
    for (index, id) in volumes.iter().enumerate() {
        work.waits_for(Some(&format!("volume {id}, to become available")));
        let here = &session.projects.here;
        let is_attached = |volume: &Volume| volume.status == "in-use";
        if here.volume(id).await.as_ref().is_ok_and(is_attached) {
            continue;
        }
        let left = until.saturating_duration_since(Instant::now());
        match here.volume_in(id, "available", left).await {
            Ok(_) => {}
            Err(CloudError::State { status, id, .. }) => {
                return Err(OpenstackError::VolumeFailed { status, id }.into());
            }
            Err(CloudError::Slow { .. }) => {
                return Err(OpenstackError::NotAvailable { ids: volumes[index..].join(",") }.into());
            }
            Err(error) => return Err(OpenstackError::VolumeState(error).into()),
        }
    }
    Ok(())
}

/// A volume in this host: where its device is.
async fn plug(
    session: &Session,
    volume: &str,
    bytes: u64,
    work: &mut Work<'_>,
) -> Result<PathBuf, DestinationError> {
    let (plan, here) = (&work.job.plan, &session.projects.here);
    let server = Asked::of(plan)?.server;
    let patience = plan.tools.patience(READY);
    work.waits_for(Some(&format!("volume {volume}, to be attached to {server}")));
    let mut mark = Marks::of(work).attachment(volume);
    for known in attachments(&work.records.things(Side::Destination)?, volume) {
        match known.of == server {
            true => mark = known.mark,
            // The host of the earlier job.
            false => unplug(here, &known, volume, patience, work).await?,
        }
    }
    work.records.making(Side::Destination, Kind::Attachment, &mark, server)?;
    here.attach(server, volume, patience).await.map_err(|source| OpenstackError::Attach {
        volume: volume.to_owned(),
        server: server.to_owned(),
        source: Box::new(source),
    })?;
    work.records.made(&mark, volume)?;
    work.waits_for(Some(&format!("the device of volume {volume}")));
    Ok(device(volume, bytes, patience).await?)
}

fn attachments(things: &[Thing], volume: &str) -> Vec<Thing> {
    let of_volume = |thing: &&Thing| thing.kind == Kind::Attachment && volume_of(&thing.mark) == Some(volume);
    things.iter().filter(of_volume).cloned().collect()
}

async fn unplug(
    cloud: &Cloud,
    thing: &Thing,
    volume: &str,
    patience: Duration,
    work: &mut Work<'_>,
) -> Result<(), DestinationError> {
    let server = &thing.of;
    cloud.detach(server, volume, patience).await.map_err(|source| OpenstackError::Detach {
        volume: volume.to_owned(),
        server: server.clone(),
        source: Box::new(source),
    })?;
    Ok(work.records.gone(&thing.mark)?)
}

/// Where a volume shows up: its id is the serial number, cut on virtio-blk, whole on virtio-scsi.
fn names(volume: &str) -> [PathBuf; 3] {
    let short = volume.get(..SERIAL).unwrap_or(volume);
    [
        format!("virtio-{short}"),
        format!("scsi-0QEMU_QEMU_HARDDISK_{volume}"),
        format!("scsi-0QEMU_QEMU_HARDDISK_{short}"),
    ]
    .map(|name| Path::new("/dev/disk/by-id").join(name))
}

async fn device(volume: &str, bytes: u64, patience: Duration) -> Result<PathBuf, OpenstackError> {
    let names = names(volume);
    let until = Instant::now() + patience;
    loop {
        // A link may be older than its device.
        let is_there = |path: &&PathBuf| {
            File::open(path)
                .and_then(|mut device| device.seek(SeekFrom::End(0)))
                .is_ok_and(|size| size >= bytes)
        };
        if let Some(path) = names.iter().find(is_there) {
            return Ok(path.clone());
        }
        if Instant::now() >= until {
            let [path, ..] = names;
            return Err(OpenstackError::NotPlugged { path, bytes, seconds: patience.as_secs() });
        }
        tokio::time::sleep(DEVICE_EVERY).await;
    }
}

/// Takes the volumes of all disks out of this host: their ids, in order.
pub(super) async fn release(
    session: &Session,
    disks: usize,
    work: &mut Work<'_>,
) -> Result<Vec<String>, DestinationError> {
    let things = work.records.things(Side::Destination)?;
    let patience = work.job.plan.tools.patience(READY);
    let mut volumes = Vec::new();
    for number in 1..=disks {
        let id = disk(&things, number).and_then(|thing| thing.id.clone());
        volumes.push(id.ok_or_else(|| OpenstackError::Lost {
            id: "of no id".to_owned(),
            number,
            what: "was never made".to_owned(),
        })?);
    }
    for volume in &volumes {
        for thing in attachments(&things, volume) {
            work.waits_for(Some(&format!("volume {volume}, to be detached from {}", thing.of)));
            unplug(&session.projects.here, &thing, volume, patience, work).await?;
        }
    }
    work.waits_for(None);
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(kind: Kind, mark: &str, of: &str) -> Thing {
        Thing { side: Side::Destination, kind, mark: mark.into(), of: of.into(), id: Some("id".into()) }
    }

    #[test]
    fn disks_are_found_by_their_number_and_attachments_by_their_volume() {
        let things = [
            thing(Kind::Disk, "t-disk-11", "11"),
            thing(Kind::Disk, "t-disk-1", "1"),
            thing(Kind::Attachment, "t-attachment-v1", "1"),
            thing(Kind::Attachment, "t-attachment-v11", "1"),
        ];
        let marked = |number| disk(&things, number).map(|thing| thing.mark.as_str());
        assert_eq!((marked(1), marked(11)), (Some("t-disk-1"), Some("t-disk-11")));
        assert_eq!(disk(&things, 2), None);
        let marks: Vec<_> = attachments(&things, "v1").into_iter().map(|thing| thing.mark).collect();
        assert_eq!(marks, ["t-attachment-v1"]);
    }

    #[test]
    fn a_device_is_named_after_its_volume() {
        let names = names("77c51545-f2a4-4bbf-8f04-169a15c23354");
        assert_eq!(names[0], Path::new("/dev/disk/by-id/virtio-77c51545-f2a4-4bbf-8"));
        assert_eq!(self::names("short")[0], Path::new("/dev/disk/by-id/virtio-short"));
    }
}

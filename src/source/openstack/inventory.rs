//! What is looked up before anything is changed: the server, its disks, the conversion host.

use super::{Asked, OpenstackSourceError};
use crate::guest::{self, Bus, Guest};
use crate::openstack::Cloud;
use crate::openstack::servers::Server;
use crate::openstack::volumes::Volume;
use crate::plan::Plan;
use crate::source::local::device_name;

/// The boot device where a cloud does not tell it, which is for administrators only (contract.md 7).
const ROOT: &str = "/dev/vda";

/// A server that can be moved.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) server: Server,
    pub(super) converter: Server,
    /// The one it boots from first, then in the order of their devices.
    pub(super) disks: Vec<FoundDisk>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundDisk {
    /// E.g. `/dev/vdb`.
    pub(super) device: String,
    pub(super) what: What,
}

/// What a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The volume that the server boots from: it cannot be detached.
    Root(Volume),
    /// The disk that was made of an image: it is no volume.
    Image,
    /// Any other volume.
    Data(Volume),
}

impl FoundDisk {
    fn volume(&self) -> Option<&Volume> {
        match &self.what {
            What::Root(volume) | What::Data(volume) => Some(volume),
            What::Image => None,
        }
    }
}

/// Looks all of it up, in the contract's order; a server that runs is refused.
pub(super) async fn look(
    cloud: &Cloud,
    plan: &Plan,
    asked: &Asked<'_>,
) -> Result<Found, OpenstackSourceError> {
    let converter = cloud.server_if_any(asked.converter).await?;
    let converter =
        converter.ok_or_else(|| OpenstackSourceError::NoConverter { id: asked.converter.to_owned() })?;
    let server = cloud.server_if_any(asked.vm).await?;
    let server = server.ok_or_else(|| OpenstackSourceError::NoServer { id: asked.vm.to_owned() })?;
    if server.status != "SHUTOFF" {
        let Server { id, name, status, .. } = server;
        return Err(OpenstackSourceError::NotShutDown { id, name, status });
    }
    let wanted = plan.source_disks_given.then_some(plan.source_disks.as_slice());
    let mut volumes = Vec::new();
    for id in &server.volumes {
        volumes.push(cloud.volume(id).await?);
    }
    if let Some(unknown) = wanted.into_iter().flatten().find(|id| !server.volumes.contains(id)) {
        return Err(OpenstackSourceError::NoSuchDisk { server: server.id, volume: unknown.clone() });
    }
    let disks = sort(&server, volumes, wanted).ok_or(OpenstackSourceError::NoBootDevice)?;
    Ok(Found { server, converter, disks })
}

/// The disks that are to be moved, `None` if the server could not boot from them.
fn sort(server: &Server, volumes: Vec<Volume>, wanted: Option<&[String]>) -> Option<Vec<FoundDisk>> {
    let device = |(index, volume): (usize, &Volume)| {
        let here = volume.attachments.iter().find(|attachment| attachment.server == server.id);
        let told = here.and_then(|attachment| attachment.device.clone());
        told.unwrap_or_else(|| format!("/dev/{}", device_name("vd", index)))
    };
    let mut all: Vec<(String, Volume)> = Vec::new();
    for (index, volume) in volumes.into_iter().enumerate() {
        all.push((device((index, &volume)), volume));
    }
    // `vdb` before `vdaa`.
    all.sort_by(|(one, _), (other, _)| (one.len(), one).cmp(&(other.len(), other)));
    let told = server.root_device.as_deref();
    let root = match &server.image {
        Some(_) => None,
        None => {
            let named = |name: &str| all.iter().position(|(device, _)| device == name);
            Some(told.and_then(named).or_else(|| named(ROOT)).or_else(|| {
                // sda, xvda: a server without an image boots from a volume.
                all.iter().position(|(device, _)| device.ends_with('a') && !device.ends_with("aa"))
            })?)
        }
    };
    let mut disks = Vec::new();
    let is_wanted = |volume: &Volume| wanted.is_none_or(|wanted| wanted.contains(&volume.id));
    match root {
        None => disks.push(FoundDisk { device: told.unwrap_or(ROOT).to_owned(), what: What::Image }),
        Some(root) => {
            let (device, volume) = all.remove(root);
            if !is_wanted(&volume) {
                return None;
            }
            disks.push(FoundDisk { device, what: What::Root(volume) });
        }
    }
    let data = all.into_iter().filter(|(_, volume)| is_wanted(volume));
    disks.extend(data.map(|(device, volume)| FoundDisk { device, what: What::Data(volume) }));
    Some(disks)
}

/// The guest that is copied. What it is made of is its cloud's word, and what it becomes the flavor's.
pub(super) fn guest(plan: &Plan, found: &Found) -> Guest {
    let disks = found.disks.iter().enumerate().map(|(index, disk)| guest::Disk {
        path: disk.device.clone(),
        label: format!("Hard disk {}", index + 1),
        bus: Bus::Virtio,
        uuid: disk.volume().map(|volume| volume.id.clone()),
        size: disk.volume().map(|volume| volume.size << 30),
        volume: disk.volume().map(traits),
        ..guest::Disk::default()
    });
    Guest { name: plan.vm_name.clone(), disks: disks.collect(), ..Guest::default() }
}

/// What a volume is beside its content.
pub(super) fn traits(volume: &Volume) -> guest::Volume {
    guest::Volume {
        name: volume.name.clone(),
        description: volume.description.clone(),
        kind: volume.kind.clone(),
        bootable: volume.bootable,
        image_properties: volume.image_metadata.clone().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openstack::volumes::AttachedTo;

    fn volume(id: &str, device: Option<&str>) -> Volume {
        let elsewhere = AttachedTo { server: "other".into(), device: Some("/dev/vdz".into()) };
        let here = AttachedTo { server: "s".into(), device: device.map(str::to_owned) };
        Volume { id: id.into(), attachments: vec![elsewhere, here], ..Volume::default() }
    }

    fn sorted(server: &Server, devices: &[Option<&str>], wanted: Option<&[&str]>) -> Option<Vec<String>> {
        let volumes = devices.iter().enumerate().map(|(index, device)| volume(&format!("v{index}"), *device));
        let wanted: Option<Vec<String>> =
            wanted.map(|wanted| wanted.iter().map(|id| (*id).to_owned()).collect());
        let disks = sort(server, volumes.collect(), wanted.as_deref())?;
        let word = |disk: &FoundDisk| match &disk.what {
            What::Root(volume) => format!("{} root {}", disk.device, volume.id),
            What::Image => format!("{} image", disk.device),
            What::Data(volume) => format!("{} {}", disk.device, volume.id),
        };
        Some(disks.iter().map(word).collect())
    }

    #[test]
    fn the_disk_that_it_boots_from_is_the_first() {
        let from_volume = Server { id: "s".into(), ..Server::default() };
        let from_image = Server { image: Some("i".into()), ..from_volume.clone() };
        let told = Server { root_device: Some("/dev/vdc".into()), ..from_volume.clone() };
        let (vda, vdb, vdc) = (Some("/dev/vda"), Some("/dev/vdb"), Some("/dev/vdc"));
        for (server, devices, wanted, expected) in [
            (&from_volume, vec![vdb, vda], None, Some(vec!["/dev/vda root v1", "/dev/vdb v0"])),
            (&told, vec![vda, vdc], None, Some(vec!["/dev/vdc root v1", "/dev/vda v0"])),
            (
                &from_volume,
                vec![Some("/dev/vdaa"), vda, vdb],
                None,
                Some(vec!["/dev/vda root v1", "/dev/vdb v2", "/dev/vdaa v0"]),
            ),
            (
                &from_volume,
                vec![Some("/dev/sdb"), Some("/dev/sda")],
                None,
                Some(vec!["/dev/sda root v1", "/dev/sdb v0"]),
            ),
            (&from_volume, vec![None, None], None, Some(vec!["/dev/vda root v0", "/dev/vdb v1"])),
            (&from_volume, vec![vdb], None, None),
            (&from_volume, vec![], None, None),
            (&from_volume, vec![vda, vdb], Some(&["v1"][..]), None),
            (
                &from_volume,
                vec![vda, vdb, vdc],
                Some(&["v2", "v0"]),
                Some(vec!["/dev/vda root v0", "/dev/vdc v2"]),
            ),
            (&from_image, vec![vdb], None, Some(vec!["/dev/vda image", "/dev/vdb v0"])),
            (&from_image, vec![vdb, vdc], Some(&["v1"]), Some(vec!["/dev/vda image", "/dev/vdc v1"])),
            (&from_image, vec![], None, Some(vec!["/dev/vda image"])),
        ] {
            let expected = expected.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(sorted(server, &devices, wanted), expected, "{devices:?} {wanted:?}");
        }
    }
}

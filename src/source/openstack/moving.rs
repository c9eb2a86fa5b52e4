//! The disks of a server that is shut down, on their way into the conversion host: each step in the journal before it is
//! made, so that [`super::undo`] knows what there is to put back.

use tokio::sync::mpsc::UnboundedSender;

use super::converter::Converter;
use super::inventory::{self, Found, FoundDisk, What};
use super::lock::{self, VolumeLock};
use super::undo::Place;
use super::{OpenstackSourceError, PATIENCE, step, waits_for};
use crate::event::Event;
use crate::guest::{self, Guest};
use crate::job::Job;
use crate::openstack::Cloud;
use crate::openstack::attachments::Manner;
use crate::openstack::volumes::{NewVolume, Volume};
use crate::records::Records;
use crate::things::{Kind, Side};

const GIB: u64 = 1 << 30;

/// What it works with.
pub(super) struct Moving<'a> {
    pub(super) job: &'a Job,
    pub(super) cloud: &'a Cloud,
    pub(super) converter: &'a Converter,
    pub(super) records: &'a mut Records,
    pub(super) tell: &'a UnboundedSender<Event>,
}

impl Moving<'_> {
    /// All of it; for each disk the port on which it is served. The guest learns what only this shows.
    pub(super) async fn serve(
        &mut self,
        found: &Found,
        guest: &mut Guest,
        image: &str,
        address: &str,
    ) -> Result<Vec<u16>, OpenstackSourceError> {
        let mut volumes = Vec::new();
        for (disk, shown) in found.disks.iter().zip(&mut guest.disks) {
            volumes.push(self.free(found, disk, shown).await?);
        }
        let devices = self.attach(&found.converter.id, &volumes).await?;
        self.say(format!("the container on the source conversion host {address}, to serve the disks"));
        let mark = self.mark("export");
        let logs = self.job.files.log_directory.join("source-conversion-host.log");
        let of = serde_json::json!({ "address": address, "logs": logs }).to_string();
        self.records.making(Side::Source, Kind::Export, &mark, &of)?;
        let directory = self.converter.directory(&mark, &devices).await?;
        self.records.made(&mark, &directory)?;
        let serving = self.converter.serve(&directory, &mark, image, &devices).await?;
        self.converter.ready(&serving, self.job.plan.tools.patience(PATIENCE)).await?;
        waits_for(self.tell, None);
        Ok(serving.ports)
    }

    fn mark(&self, what: &str) -> String {
        format!("{}-source-{what}", self.job.files.tag)
    }

    fn say(&self, what: String) {
        waits_for(self.tell, Some(format!("the source OpenStack: {what}")));
    }

    fn patience(&self) -> std::time::Duration {
        self.job.plan.tools.patience(PATIENCE)
    }

    /// The volume that can be attached to the conversion host in place of this disk: its id.
    async fn free(
        &mut self,
        found: &Found,
        disk: &FoundDisk,
        shown: &mut guest::Disk,
    ) -> Result<String, OpenstackSourceError> {
        match &disk.what {
            What::Root(volume) => self.copy_of_root(volume).await,
            What::Image => {
                let volume = self.copy_of_image(found).await?;
                shown.size = Some(volume.size * GIB);
                shown.volume = Some(guest::Volume { bootable: true, ..inventory::traits(&volume) });
                shown.uuid = Some(volume.id.clone());
                Ok(volume.id)
            }
            What::Data(volume) => self.take_out(&found.server.id, &disk.device, volume).await,
        }
    }

    /// A volume of a snapshot: the one that a server boots from cannot be taken out of it.
    async fn copy_of_root(&mut self, volume: &Volume) -> Result<String, OpenstackSourceError> {
        let (name, patience) = (format!("rhosp-migration-{}", volume.id), self.patience());
        self.say(format!("a snapshot of volume {}", volume.id));
        let mark = self.mark("snapshot");
        self.records.making(Side::Source, Kind::Snapshot, &mark, &volume.id)?;
        let failed = || step(format!("take a snapshot of the boot volume {}", volume.id));
        let snapshot = self.cloud.create_snapshot(&volume.id, &name, &mark, false).await.map_err(failed())?;
        self.records.made(&mark, &snapshot.id)?;
        self.cloud.snapshot_in(&snapshot.id, "available", patience).await.map_err(failed())?;
        let new = NewVolume {
            name,
            size: volume.size,
            kind: volume.kind.clone(),
            snapshot: Some(snapshot.id),
            ..NewVolume::default()
        };
        Ok(self.make(new).await?.id)
    }

    /// A volume of an image of the server: its boot disk is no volume.
    async fn copy_of_image(&mut self, found: &Found) -> Result<Volume, OpenstackSourceError> {
        let server = &found.server;
        let name = format!("rhosp-migration-root-{}", server.name);
        self.say(format!("an image of server {}", server.id));
        let mark = self.mark("image");
        self.records.making(Side::Source, Kind::Image, &mark, &server.id)?;
        let failed = || step(format!("take an image of server {}", server.id));
        let image = self.cloud.create_server_image(&server.id, &name, &mark, false).await.map_err(failed())?;
        self.records.made(&mark, &image)?;
        let image = self.cloud.image_active(&image, self.patience()).await.map_err(failed())?;
        let content = image.virtual_size.or(image.size).unwrap_or_default().div_ceil(GIB);
        let size = image.min_disk.max(content).max(1);
        self.make(NewVolume { name, size, image: Some(image.id), ..NewVolume::default() }).await
    }

    /// The copy of the boot disk.
    async fn make(&mut self, new: NewVolume) -> Result<Volume, OpenstackSourceError> {
        self.say("a copy of the boot disk".to_owned());
        let mark = self.mark("root");
        self.records.making(Side::Source, Kind::Disk, &mark, "")?;
        let failed = || step("make a volume with a copy of the boot disk");
        let volume = self.cloud.create_volume(&new, &mark, false).await.map_err(failed())?;
        self.records.made(&mark, &volume.id)?;
        self.cloud.volume_in(&volume.id, "available", self.patience()).await.map_err(failed())
    }

    /// Any other volume, out of its server.
    async fn take_out(
        &mut self,
        server: &str,
        device: &str,
        volume: &Volume,
    ) -> Result<String, OpenstackSourceError> {
        let id = &volume.id;
        self.say(format!("volume {id} to be detached from server {server}"));
        let mark = self.mark(&format!("detached-{id}"));
        let failed = || step(format!("detach volume {id} from server {server}"));
        let manner = self.cloud.manner(server, id).await.map_err(failed())?;
        let manner = Manner { device: manner.device.or_else(|| Some(device.to_owned())), ..manner };
        let place = Place { server: server.to_owned(), volume: id.clone(), manner };
        self.records.making(Side::Source, Kind::Detachment, &mark, &place.to_string())?;
        self.cloud.detach(server, id, self.patience()).await.map_err(failed())?;
        self.records.made(&mark, id)?;
        self.cloud.volume_in(id, "available", self.patience()).await.map_err(failed())?;
        Ok(id.clone())
    }

    /// All volumes, one after the other, into the conversion host: their devices there.
    async fn attach(&mut self, host: &str, volumes: &[String]) -> Result<Vec<String>, OpenstackSourceError> {
        self.say("other migrations to attach their volumes to the conversion host".to_owned());
        let tools = &self.job.plan.tools;
        let _lock = VolumeLock::take(lock::SOURCE.as_ref(), |usual| tools.patience(usual)).await?;
        let mut devices = Vec::new();
        for id in volumes {
            self.say(format!("volume {id} to be attached to the conversion host {host}"));
            let failed = || step(format!("attach volume {id} to the source conversion host {host}"));
            let volume = self.cloud.volume(id).await.map_err(failed())?;
            if volume.status != "available" {
                return Err(OpenstackSourceError::Busy { volume: id.clone(), status: volume.status });
            }
            let before = self.converter.devices().await?;
            let mark = self.mark(&format!("attached-{id}"));
            let place = Place { server: host.to_owned(), volume: id.clone(), manner: Manner::default() };
            self.records.making(Side::Source, Kind::Attachment, &mark, &place.to_string())?;
            self.cloud.attach(host, id, self.patience()).await.map_err(failed())?;
            self.records.made(&mark, id)?;
            devices.push(self.converter.device_of(id, &before, self.patience()).await?);
        }
        Ok(devices)
    }
}

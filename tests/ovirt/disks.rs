//! The engine's rules about disks, what holds them locked, and in which machine they are.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::world::{Answer, Attachment, World, missing, refused};

/// Where a machine sees its disks.
const DEVICES: &str = "/dev/disk/by-id";

impl World {
    pub fn add_disk(&mut self, body: &Value) -> Answer {
        let domain = &body["storage_domains"]["storage_domain"][0];
        let known = |storage: &Value| storage["id"] == domain["id"] || storage["name"] == domain["name"];
        if !self.storage.iter().any(known) {
            return refused(400, "Entity not found: storage domain");
        }
        let Some(size) = body["provisioned_size"].as_u64().filter(|size| *size > 0 && size % 512 == 0) else {
            return refused(400, "disk [provisionedSize] required for add");
        };
        if body["format"] != "raw" || body["name"].as_str().is_none_or(str::is_empty) {
            return refused(400, "disk [name|alias|format] required for add");
        }
        let id = self.id();
        let mut disk = body.clone();
        disk["id"] = id.clone().into();
        disk["status"] = if self.lock == Some(0) { "ok" } else { "locked" }.into();
        self.locked.insert(id.clone(), self.lock);
        if self.illegal {
            disk["status"] = "illegal".into();
            self.locked.insert(id.clone(), Some(0));
        }
        fs::File::create(self.file(&id)).unwrap().set_len(size).unwrap();
        self.disks.insert(id, disk.clone());
        (202, disk)
    }

    fn is_locked(&self, disk: &str) -> bool {
        self.locked.get(disk).is_some_and(|left| *left != Some(0))
    }

    pub fn look_at_disk(&mut self, id: &str) -> Answer {
        let locked = self.is_locked(id);
        let Some(disk) = self.disks.get_mut(id) else { return missing() };
        if let Some(Some(left)) = self.locked.get_mut(id) {
            *left = left.saturating_sub(1);
        }
        if disk["status"] != "illegal" {
            disk["status"] = if locked { "locked" } else { "ok" }.into();
        }
        let users: Vec<Value> =
            self.attachments.iter().filter(|one| one.disk == id).map(|one| json!({"id": one.vm})).collect();
        let mut shown = disk.clone();
        if !users.is_empty() {
            shown["vms"] = json!({"vm": users});
        }
        (200, shown)
    }

    pub fn remove_disk(&mut self, id: &str) -> Answer {
        if !self.disks.contains_key(id) {
            return missing();
        }
        if self.is_locked(id) {
            return refused(
                409,
                "[Cannot remove Virtual Disk: disk is locked. Please try again in a few minutes.]",
            );
        }
        let runs = |one: &&Attachment| one.disk == id && self.vms[&one.vm]["status"] == "up";
        if self.attachments.iter().find(runs).is_some() {
            return refused(409, "[Cannot remove Virtual Disk. At least one of the VMs is not down.]");
        }
        self.attachments.retain(|one| one.disk != id);
        self.disks.remove(id);
        fs::remove_file(self.file(id)).unwrap();
        (200, json!({}))
    }

    pub fn cancel(&mut self, id: &str) -> Answer {
        let Some(transfer) = self.transfers.get_mut(id) else { return missing() };
        if !self.stubborn {
            transfer["phase"] = "finished_failure".into();
        }
        let disk = transfer["image"]["id"].as_str().unwrap().to_owned();
        self.locked.insert(disk, Some(1));
        (200, json!({"status": "complete"}))
    }

    pub fn attach(&mut self, vm: &str, body: &Value) -> Answer {
        let disk = body["disk"]["id"].as_str().unwrap_or_default().to_owned();
        let Some(found) = self.disks.get(&disk) else { return refused(400, "Entity not found: Disk") };
        if self.is_locked(&disk) {
            return refused(
                409,
                "[Cannot attach Virtual Disk: The disk is locked. Please try again in a few minutes.]",
            );
        }
        let users = self.attachments.iter().filter(|one| one.disk == disk).count();
        if self.attachments.iter().any(|one| one.disk == disk && one.vm == vm)
            || (users > 0 && found["shareable"] != true)
        {
            return refused(409, "[Cannot attach Virtual Disk: The disk is already attached to a VM.]");
        }
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let (Some(active), Some(bootable)) = (body["active"].as_bool(), body["bootable"].as_bool()) else {
            return refused(400, "active and bootable are wanted");
        };
        let id = if self.own_ids { self.id() } else { disk.clone() };
        let attachment =
            Attachment { id, vm: vm.to_owned(), disk, active, bootable, interface: text("interface") };
        let answer = self.shown(&attachment);
        if active {
            self.link(&attachment);
        }
        self.attachments.push(attachment);
        (201, answer)
    }

    pub fn attachment(&mut self, method: &str, vm: &str, id: &str, body: &Value, keep: bool) -> Answer {
        let Some(at) = self.attachments.iter().position(|one| one.vm == vm && one.id == id) else {
            return missing();
        };
        let disk = self.attachments[at].disk.clone();
        match method {
            "GET" => (200, self.shown(&self.attachments[at])),
            "PUT" => {
                if let Some(active) = body["active"].as_bool() {
                    self.attachments[at].active = active;
                    let one = self.attachments[at].clone();
                    if active { self.link(&one) } else { self.unlink(&one) }
                }
                if let Some(shareable) = body["disk"]["shareable"].as_bool() {
                    self.disks.get_mut(&disk).unwrap()["shareable"] = shareable.into();
                }
                (200, self.shown(&self.attachments[at]))
            }
            "DELETE" => {
                if self.attachments[at].active && self.vms[vm]["status"] == "up" {
                    return refused(409, "[Cannot detach Virtual Disk. The disk is active in a running VM.]");
                }
                self.attachments.remove(at);
                if keep { (200, json!({})) } else { self.remove_disk(&disk) }
            }
            _ => (405, Value::Null),
        }
    }

    /// An attachment, as the engine shows it.
    pub fn shown(&self, attachment: &Attachment) -> Value {
        let Attachment { id, vm, disk, active, bootable, interface } = attachment;
        let mut shown = json!({"id": id, "disk": {"id": disk}, "vm": {"id": vm}, "bootable": bootable,
            "interface": interface});
        if !self.mute {
            shown["active"] = (*active).into();
        }
        shown
    }

    /// Plugging in makes a device, as udev names it.
    fn link(&mut self, attachment: &Attachment) {
        if attachment.vm == self.host {
            let link = link(&attachment.id);
            fs::remove_file(&link).ok();
            std::os::unix::fs::symlink(self.file(&attachment.disk), &link).unwrap();
            self.links.push(link);
        }
    }

    pub fn unlink(&mut self, attachment: &Attachment) {
        if attachment.vm == self.host {
            fs::remove_file(link(&attachment.id)).ok();
        }
    }
}

/// The device of an attachment in its machine.
pub fn link(attachment: &str) -> PathBuf {
    Path::new(DEVICES).join(format!("virtio-{}", &attachment[..20]))
}

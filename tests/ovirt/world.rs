//! What the engine holds, and its rules. Sentences of refusals are worded as a real one's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use regex::Regex;
use serde_json::{Value, json};

use super::engine::Request;

/// The cluster, its data center, its storage domain.
pub const CLUSTER: &str = "c1c1c1c1-0000-4000-8000-000000000001";
pub const STORAGE: &str = "5d5d5d5d-0000-4000-8000-000000000001";
const CENTER: &str = "dcdcdcdc-0000-4000-8000-000000000001";
/// Where a machine sees its disks.
const DEVICES: &str = "/dev/disk/by-id";

type Answer = (u16, Value);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub vm: String,
    pub disk: String,
    pub active: bool,
    pub bootable: bool,
    pub interface: String,
}

#[derive(Debug)]
pub struct World {
    /// Of `admin@internal`.
    pub password: String,
    /// Has it the SSO service?
    pub sso: bool,
    pub tokens: BTreeSet<String>,
    pub vms: BTreeMap<String, Value>,
    pub disks: BTreeMap<String, Value>,
    pub attachments: Vec<Attachment>,
    /// With the machine's id first.
    pub nics: Vec<(String, Value)>,
    pub transfers: BTreeMap<String, Value>,
    pub storage: Vec<Value>,
    pub clusters: Vec<Value>,
    pub networks: Vec<Value>,
    pub profiles: Vec<Value>,
    pub systems: Vec<&'static str>,
    /// Looks at a new disk that find it locked; `None`: it never gets unlocked.
    pub lock: Option<u32>,
    /// The same for each that is.
    pub locked: BTreeMap<String, Option<u32>>,
    /// New disks cannot be made.
    pub illegal: bool,
    /// Collections that it does not know.
    pub unknown: Vec<&'static str>,
    /// The machine that the tests run on.
    pub host: String,
    directory: PathBuf,
    links: Vec<PathBuf>,
    counter: u32,
    seed: String,
}

impl World {
    pub fn new(directory: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = format!("{}-{number}-{}", std::process::id(), now.as_nanos());
        let mut world = Self {
            password: super::engine::PASSWORD.to_owned(),
            sso: true,
            tokens: BTreeSet::new(),
            vms: BTreeMap::new(),
            disks: BTreeMap::new(),
            attachments: Vec::new(),
            nics: Vec::new(),
            transfers: BTreeMap::new(),
            storage: vec![json!({
                "id": STORAGE, "name": "data", "type": "data", "storage": {"type": "nfs"}, "available": 1_u64 << 40,
                "data_centers": {"data_center": [{"id": CENTER}]},
            })],
            clusters: vec![json!({
                "id": CLUSTER, "name": "Default", "data_center": {"id": CENTER}, "cpu": {"architecture": "x86_64"},
            })],
            networks: vec![
                json!({"id": "n-mgmt", "name": "ovirtmgmt", "data_center": {"id": CENTER}}),
                json!({"id": "n-lan", "name": "lan two", "data_center": {"id": CENTER}}),
            ],
            profiles: vec![
                json!({"id": "p-mgmt", "name": "ovirtmgmt", "network": {"id": "n-mgmt"}}),
                json!({"id": "p-gold", "name": "gold", "network": {"id": "n-lan"}}),
            ],
            systems: vec!["other", "other_linux", "rhel_9x64", "debian_9"],
            lock: Some(2),
            locked: BTreeMap::new(),
            illegal: false,
            unknown: Vec::new(),
            host: String::new(),
            directory: directory.to_owned(),
            links: Vec::new(),
            counter: 0,
            seed,
        };
        world.host = world.machine("conversion host", "up");
        world
    }

    pub fn next(&mut self) -> u32 {
        self.counter += 1;
        self.counter
    }

    fn id(&mut self) -> String {
        let number = self.next();
        let hash = blake3::hash(format!("{}-{number}", self.seed).as_bytes()).to_hex();
        let part = |from: usize, to: usize| hash[from..to].to_owned();
        format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
    }

    /// Adds a machine of theirs.
    pub fn machine(&mut self, name: &str, status: &str) -> String {
        let id = self.id();
        self.vms.insert(id.clone(), json!({"id": id, "name": name, "status": status}));
        id
    }

    /// Adds a disk, of theirs or of virt-v2v.
    pub fn disk(&mut self, name: &str, description: &str) -> String {
        let id = self.id();
        let disk = json!({"id": id, "name": name, "alias": name, "description": description, "status": "ok",
            "provisioned_size": 1 << 20});
        self.disks.insert(id.clone(), disk);
        fs::write(self.file(&id), b"theirs").unwrap();
        id
    }

    /// Adds a running transfer, which keeps its disk locked.
    pub fn transfer(&mut self, disk: &str) -> String {
        let id = self.id();
        let transfer = json!({"id": id, "phase": "transferring", "image": {"id": disk}});
        self.transfers.insert(id.clone(), transfer);
        self.locked.insert(disk.to_owned(), None);
        id
    }

    /// Gives a disk to a machine.
    pub fn give(&mut self, vm: &str, disk: &str) {
        let (vm, disk) = (vm.to_owned(), disk.to_owned());
        self.attachments.push(Attachment {
            vm,
            disk,
            active: true,
            bootable: true,
            interface: "virtio".into(),
        });
    }

    /// Takes a disk out of its machine.
    pub fn take_out(&mut self, number: usize) {
        let attachment = self.attachments.remove(number);
        self.unlink(&attachment);
    }

    /// Where the bytes of a disk are.
    pub fn file(&self, disk: &str) -> PathBuf {
        self.directory.join(format!("{disk}.img"))
    }

    pub fn named(&self, name: &str) -> Option<&Value> {
        self.vms.values().find(|vm| vm["name"] == name)
    }

    /// Disks of a machine, the one it boots from first.
    pub fn disks_of(&self, vm: &str) -> Vec<&Attachment> {
        let mut found: Vec<_> = self.attachments.iter().filter(|attachment| attachment.vm == vm).collect();
        found.sort_by_key(|attachment| {
            (!attachment.bootable, self.disks[&attachment.disk]["name"].to_string())
        });
        found
    }

    pub fn answer(&mut self, request: &Request) -> Answer {
        let path = request.path.strip_prefix("/ovirt-engine/api").unwrap_or("/?").to_owned();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.first().is_some_and(|first| self.unknown.contains(first)) {
            return (404, Value::Null);
        }
        let body: Value = match request.body.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap(),
        };
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", []) => (200, json!({"product_info": {"name": "oVirt Engine", "version": {"major": 4}}})),
            ("GET", ["vms"]) => search(request, "vm", self.vms.values().cloned().collect()),
            ("GET", ["disks"]) => search(request, "disk", self.disks.values().cloned().collect()),
            ("GET", ["clusters"]) => search(request, "cluster", self.clusters.clone()),
            ("GET", ["storagedomains"]) => search(request, "storage_domain", self.storage.clone()),
            ("GET", ["clusters", CLUSTER, "networks"]) => (200, json!({"network": self.networks})),
            ("GET", ["networks"]) => (200, json!({"network": self.networks})),
            ("GET", ["vnicprofiles"]) => (200, json!({"vnic_profile": self.profiles})),
            ("GET", ["operatingsystems"]) => {
                let systems: Vec<Value> = self.systems.iter().map(|name| json!({"name": name})).collect();
                (200, json!({"operating_system": systems}))
            }
            ("GET", ["imagetransfers"]) => {
                (200, json!({"image_transfer": self.transfers.values().cloned().collect::<Vec<_>>()}))
            }
            ("POST", ["imagetransfers", id, "cancel"]) => self.cancel(id),
            ("POST", ["disks"]) => self.add_disk(&body),
            ("GET", ["disks", id]) => self.look_at_disk(id),
            ("DELETE", ["disks", id]) => self.remove_disk(id),
            ("POST", ["vms"]) => self.add_machine(&body),
            ("GET", ["vms", id]) => match self.vms.get_mut(*id) {
                None => missing(),
                Some(vm) => {
                    let seen = vm.clone();
                    // The next look finds it ready.
                    if vm["status"] == "image_locked" {
                        vm["status"] = "down".into();
                    }
                    (200, seen)
                }
            },
            ("DELETE", ["vms", id]) => self.remove_machine(id, request.query("detach_only") == Some("true")),
            (method, ["vms", id, "nics"]) if self.vms.contains_key(*id) => match method {
                "POST" => self.add_nic(id, body),
                _ => {
                    let nics = self.nics.iter().filter(|(vm, _)| vm == id).map(|(_, nic)| nic.clone());
                    (200, json!({"nic": nics.collect::<Vec<_>>()}))
                }
            },
            ("GET", ["vms", id, "diskattachments"]) if self.vms.contains_key(*id) => {
                let all: Vec<Value> =
                    self.attachments.iter().filter(|one| one.vm == *id).map(shown).collect();
                (200, json!({"disk_attachment": all}))
            }
            ("POST", ["vms", id, "diskattachments"]) if self.vms.contains_key(*id) => self.attach(id, &body),
            (method, ["vms", id, "diskattachments", disk]) => {
                let keep = request.query("detach_only") != Some("false");
                self.attachment(method, id, disk, &body, keep)
            }
            _ => missing(),
        }
    }

    fn add_disk(&mut self, body: &Value) -> Answer {
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

    fn look_at_disk(&mut self, id: &str) -> Answer {
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

    fn remove_disk(&mut self, id: &str) -> Answer {
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

    fn cancel(&mut self, id: &str) -> Answer {
        let Some(transfer) = self.transfers.get_mut(id) else { return missing() };
        transfer["phase"] = "finished_failure".into();
        let disk = transfer["image"]["id"].as_str().unwrap().to_owned();
        self.locked.insert(disk, Some(1));
        (200, json!({"status": "complete"}))
    }

    fn attach(&mut self, vm: &str, body: &Value) -> Answer {
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
        let attachment =
            Attachment { vm: vm.to_owned(), disk, active, bootable, interface: text("interface") };
        let answer = shown(&attachment);
        if active {
            self.link(&attachment);
        }
        self.attachments.push(attachment);
        (201, answer)
    }

    fn attachment(&mut self, method: &str, vm: &str, disk: &str, body: &Value, keep: bool) -> Answer {
        let Some(at) = self.attachments.iter().position(|one| one.vm == vm && one.disk == disk) else {
            return missing();
        };
        match method {
            "GET" => (200, shown(&self.attachments[at])),
            "PUT" => {
                if let Some(active) = body["active"].as_bool() {
                    self.attachments[at].active = active;
                    let one = self.attachments[at].clone();
                    if active { self.link(&one) } else { self.unlink(&one) }
                }
                if let Some(shareable) = body["disk"]["shareable"].as_bool() {
                    self.disks.get_mut(disk).unwrap()["shareable"] = shareable.into();
                }
                (200, shown(&self.attachments[at]))
            }
            "DELETE" => {
                if self.attachments[at].active && self.vms[vm]["status"] == "up" {
                    return refused(409, "[Cannot detach Virtual Disk. The disk is active in a running VM.]");
                }
                self.attachments.remove(at);
                if keep { (200, json!({})) } else { self.remove_disk(disk) }
            }
            _ => (405, Value::Null),
        }
    }

    /// Plugging in makes a device, as udev names it.
    fn link(&mut self, attachment: &Attachment) {
        if attachment.vm == self.host {
            let link = link(&attachment.disk);
            fs::remove_file(&link).ok();
            std::os::unix::fs::symlink(self.file(&attachment.disk), &link).unwrap();
            self.links.push(link);
        }
    }

    fn unlink(&mut self, attachment: &Attachment) {
        if attachment.vm == self.host {
            fs::remove_file(link(&attachment.disk)).ok();
        }
    }

    fn add_machine(&mut self, body: &Value) -> Answer {
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        if self.named(&name).is_some() {
            return refused(
                409,
                "[Cannot add VM. The VM name is already in use, please choose a unique name and try again.]",
            );
        }
        let cluster = &body["cluster"];
        let known = |known: &Value| known["id"] == cluster["id"] || known["name"] == cluster["name"];
        if body["template"]["name"] != "Blank" || !self.clusters.iter().any(known) {
            return refused(400, "Entity not found: template or cluster");
        }
        if let Some(os) = body["os"].get("type").filter(|os| !self.systems.iter().any(|known| *os == known)) {
            return refused(400, &format!("Invalid value for OS {os}"));
        }
        let id = self.id();
        let mut vm = body.clone();
        vm["id"] = id.clone().into();
        vm["status"] = "image_locked".into();
        self.vms.insert(id, vm.clone());
        (201, vm)
    }

    fn remove_machine(&mut self, id: &str, detach_only: bool) -> Answer {
        match self.vms.get(id).map(|vm| vm["status"].clone()) {
            None => return missing(),
            Some(status) if status != "down" && status != "image_locked" => {
                return refused(409, "[Cannot remove VM. VM is running.]");
            }
            Some(_) => {}
        }
        let disks: Vec<String> =
            self.attachments.iter().filter(|one| one.vm == id).map(|one| one.disk.clone()).collect();
        self.attachments.retain(|one| one.vm != id);
        self.nics.retain(|(vm, _)| vm != id);
        self.vms.remove(id);
        if !detach_only {
            disks.iter().for_each(|disk| drop(self.remove_disk(disk)));
        }
        (200, json!({}))
    }

    fn add_nic(&mut self, vm: &str, mut nic: Value) -> Answer {
        let profile = nic["vnic_profile"]["id"].clone();
        if !profile.is_null() && !self.profiles.iter().any(|known| known["id"] == profile) {
            return refused(400, "Entity not found: vNIC profile");
        }
        let same = |(other, known): &(String, Value)| {
            known["mac"]["address"] == nic["mac"]["address"] && !nic["mac"].is_null()
                || other == vm && known["name"] == nic["name"]
        };
        if self.nics.iter().any(same) {
            return refused(409, "[MAC Address is in use.]");
        }
        nic["id"] = self.id().into();
        self.nics.push((vm.to_owned(), nic.clone()));
        (201, nic)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for link in &self.links {
            fs::remove_file(link).ok();
        }
    }
}

/// The device of a disk in its machine.
pub fn link(disk: &str) -> PathBuf {
    Path::new(DEVICES).join(format!("virtio-{}", &disk[..20]))
}

fn shown(attachment: &Attachment) -> Value {
    let Attachment { vm, disk, active, bootable, interface } = attachment;
    json!({"id": disk, "disk": {"id": disk}, "vm": {"id": vm}, "active": active, "bootable": bootable,
        "interface": interface})
}

fn missing() -> Answer {
    (404, json!({"reason": "Not Found", "detail": "Entity not found"}))
}

fn refused(status: u16, words: &str) -> Answer {
    (status, json!({"reason": "Operation Failed", "detail": words}))
}

/// oVirt's search, as far as names go: quotes hold a text together and cannot be escaped, `*` stands for anything.
fn search(request: &Request, key: &str, all: Vec<Value>) -> Answer {
    let Some(query) = request.query("search") else { return (200, collection(key, all)) };
    let term = Regex::new(r#"^name\s*=\s*(?:"([^"]*)"|([^\s"]+))$"#).unwrap();
    let Some(found) = term.captures(query.trim()) else {
        return (
            400,
            json!({"reason": "Bad Request", "detail": format!("cannot parse the search: {query}")}),
        );
    };
    let name = found.get(1).or(found.get(2)).unwrap().as_str();
    let pattern: Vec<String> = name.split('*').map(regex::escape).collect();
    let pattern = Regex::new(&format!("(?s)^{}$", pattern.join(".*"))).unwrap();
    let matching =
        all.into_iter().filter(|thing| pattern.is_match(thing["name"].as_str().unwrap_or_default()));
    (200, collection(key, matching.collect()))
}

/// An engine leaves the key out where there is nothing.
fn collection(key: &str, things: Vec<Value>) -> Value {
    if things.is_empty() { json!({}) } else { json!({key: things}) }
}

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

pub type Answer = (u16, Value);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub id: String,
    pub vm: String,
    pub disk: String,
    pub active: bool,
    pub bootable: bool,
    pub interface: String,
}

#[derive(Debug)]
pub struct World {
    /// It takes only plain names of machines, as a real one does.
    pub strict: bool,
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
    /// Attachments have ids of their own.
    pub own_ids: bool,
    /// It does not say whether an attachment is active.
    pub mute: bool,
    /// A cancelled transfer is never over.
    pub stubborn: bool,
    /// Collections that it does not know.
    pub unknown: Vec<&'static str>,
    /// The machine that the tests run on.
    pub host: String,
    directory: PathBuf,
    pub links: Vec<PathBuf>,
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
            strict: false,
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
            own_ids: false,
            mute: false,
            stubborn: false,
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

    pub fn id(&mut self) -> String {
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
            id: disk.clone(),
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
                    self.attachments.iter().filter(|one| one.vm == *id).map(|one| self.shown(one)).collect();
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

    fn add_machine(&mut self, body: &Value) -> Answer {
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        if self.named(&name).is_some() {
            return refused(
                409,
                "[Cannot add VM. The VM name is already in use, please choose a unique name and try again.]",
            );
        }
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.strict && !name.chars().all(plain) {
            return refused(
                400,
                "[Cannot add VM. The given name contains special characters. Only lower-case and upper-case letters, numbers, \
                 '_', '-', '.' are allowed.]",
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

pub fn missing() -> Answer {
    (404, json!({"reason": "Not Found", "detail": "Entity not found"}))
}

pub fn refused(status: u16, words: &str) -> Answer {
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

//! Two clouds, a conversion host in each, and jobs from the one to the other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::converter::{ADDRESS, Converter};
use crate::exports::site::have;
use crate::openstack::fake::state::Volume;
use crate::openstack::fake::{Fake, Handle, USER};
use crate::openstack::plugger::Plugger;
use crate::rig::job::Job;
use crate::rig::sandbox::Sandbox;
use crate::rig::{always, poll, root};

pub const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// Of each source disk in bytes; its cloud calls it 1 GiB.
pub const SIZE: u64 = 6 * MIB + 512;
/// The guest at the source.
pub const GUEST: &str = "source-guest";

/// What the guest boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    Volume,
    Image,
}

pub struct Site {
    pub sandbox: Sandbox,
    pub source: Fake,
    pub destination: Fake,
    pub converter: Converter,
    /// Ids of the source's volumes, in the order of their devices; of a guest that boots from an image without the first.
    pub volumes: Vec<String>,
    before: (Value, Value, Value),
    _pluggers: [Plugger; 2],
}

impl Site {
    /// `None`, with a printed reason, where that cannot be.
    pub fn new(name: &str, boot: Boot) -> Option<Self> {
        let tools = [
            "nbdkit",
            "qemu-nbd",
            "qemu-img",
            "losetup",
            "sshd",
            "ssh",
            "ssh-keygen",
            "ssh-agent",
            "nsenter",
            "ip",
        ];
        if !have(&tools) || !root::possible() {
            return None;
        }
        let mut sandbox = Sandbox::new(name);
        for directory in ["source", "volumes"] {
            fs::create_dir(sandbox.path(directory)).unwrap();
        }
        let (source, destination) = (Fake::start(), Fake::start());
        let volumes = furnish(&source, boot);
        let origins = volumes.iter().map(String::as_str).chain((boot == Boot::Image).then_some(GUEST));
        for (number, origin) in origins.enumerate() {
            let file = fs::File::create(sandbox.path("source").join(format!("{origin}.raw"))).unwrap();
            file.set_len(SIZE).unwrap();
            let mut bytes = vec![0; 2 * MIB as usize];
            blake3::Hasher::new().update(&[number as u8]).finalize_xof().fill(&mut bytes);
            // Around a chunk's end, and to the last byte.
            file.write_all_at(&bytes, 3 * MIB + 4096).unwrap();
            file.write_all_at(b"end", SIZE - 3).unwrap();
        }
        let pluggers = [
            plugger(source.handle(), "converter", sandbox.path("source"), SIZE),
            plugger(destination.handle(), "srv", sandbox.path("volumes"), 1 << 30),
        ];
        let converter = Converter::start(&sandbox.dir);
        sandbox.through = converter.words();
        let before = Default::default();
        let mut site = Self { sandbox, source, destination, converter, volumes, before, _pluggers: pluggers };
        site.configure(&json!({}));
        site.before = site.now();
        Some(site)
    }

    /// More keys of the site configuration. 600 s become 30 s.
    pub fn configure(&mut self, more: &Value) {
        let mut keys = Map::from_iter([("patience_percent".to_owned(), json!(5))]);
        // Nothing is converted.
        keys.insert("virt_v2v".to_owned(), json!("/nowhere/virt-v2v"));
        keys.extend(more.as_object().unwrap().clone());
        self.sandbox.configure("job", &keys);
    }

    pub fn document(&self, more: &Value) -> Vec<u8> {
        let environment = |fake: &Fake| {
            json!({"os-auth_url": fake.url(), "os-username": USER.0, "os-password": USER.1, "os-project_name": "p",
                "os-user_domain_name": "Default", "os-project_domain_name": "Default"})
        };
        let mut document = json!({
            "vm_name": "moved",
            "transport_method": "ssh",
            "ssh_key": self.converter.key(),
            "osp_source_environment": environment(&self.source),
            "osp_source_vm_id": GUEST,
            "osp_source_conversion_vm_id": "converter",
            "osp_environment": environment(&self.destination),
            "osp_destination_project_id": "dest",
            "osp_flavor_id": "m1",
            "osp_security_groups_ids": ["sg1"],
            "osp_server_id": "srv",
            "network_mappings": [
                {"source": "a", "destination": "net1", "mac_address": "fa:16:3e:00:00:01", "ip_address": "10.0.0.7"},
            ],
        });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document.to_string().into_bytes()
    }

    pub fn start(&self, more: &Value) -> Job {
        self.sandbox.start(self.document(more), LIMIT)
    }

    /// The last state, when everything has ended as it must.
    pub fn end(&self, job: &mut Job) -> Value {
        let last = job.wait_finished(LIMIT);
        assert!(last.is_some(), "no last state: {:?}\n{}", job.last_state(), self.source.story());
        let left = job.gone_within(LIMIT);
        assert!(left.is_ok(), "processes left: {left:?}");
        job.wait_exit(LIMIT);
        let (stdout, stderr) = (job.stdout(), job.stderr());
        let seen = job.end();
        let mut broken = always::states(&seen);
        let secrets = [USER.1, "token-"].map(str::to_owned);
        broken.extend(always::leftovers(
            &self.sandbox,
            &secrets,
            &[("stdout", &stdout), ("stderr", &stderr)],
        ));
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        seen.states.last().unwrap().clone()
    }

    pub fn run(&self, more: &Value) -> Value {
        let mut job = self.start(more);
        self.end(&mut job)
    }

    pub fn tag(&self, job: &Job) -> String {
        let file = PathBuf::from(job.reply().unwrap()["state_file"].as_str().unwrap());
        file.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned()
    }

    /// Kills every process of the job as a power cut would.
    pub fn cut(&self, job: &Job) {
        let cut = || {
            let alive = job.alive();
            for (pid, _) in &alive {
                // Gone in the meantime is as good.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            alive.is_empty().then_some(())
        };
        poll(LIMIT, cut).expect("all are killed");
    }

    /// Both clouds when nothing is under way any more, and how the source's volumes are attached.
    fn now(&self) -> (Value, Value, Value) {
        let settled = |fake: &Fake| {
            for _ in 0..20 {
                fake.world(|world| {
                    world.look_at_volumes(|_| true);
                    world.look_at_servers(|_| true);
                });
            }
            fake.world(|world| {
                // In which order a server names its volumes is its own.
                world.servers.iter_mut().for_each(|server| server.volumes.sort());
                world.snapshots.retain(|snapshot| !matches!(snapshot.next, Some((_, "gone"))));
                world.inventory()
            })
        };
        let devices = self.source.world(|world| {
            let device = |volume: &Volume| (volume.id.clone(), json!([volume.attached, volume.manner]));
            Value::Object(world.volumes.iter().map(device).collect())
        });
        (settled(&self.source), devices, settled(&self.destination))
    }

    /// The source is as it was found, and its conversion host too.
    pub fn source_untouched(&self) -> Result<(), String> {
        let (source, devices, _) = self.now();
        let left = self.converter.left();
        if (&source, &devices) == (&self.before.0, &self.before.1) && left.is_empty() {
            return Ok(());
        }
        Err(format!(
            "left on the conversion host: {left:?}\n{source:#}{devices:#}\nbefore: {:#}{:#}\n{}",
            self.before.0,
            self.before.1,
            self.source.story()
        ))
    }

    /// Nothing is at the destination that was not there.
    pub fn destination_untouched(&self) -> Result<(), String> {
        let (_, _, destination) = self.now();
        match destination == self.before.2 {
            true => Ok(()),
            false => {
                Err(format!("{destination:#}\nbefore: {:#}\n{}", self.before.2, self.destination.story()))
            }
        }
    }

    /// The new server's volumes, in order.
    pub fn arrived(&self, last: &Value) -> Vec<Volume> {
        assert_eq!(last["failed"], false, "{last:#}\n{}\n{}", self.source.story(), self.destination.story());
        self.destination.world(|world| {
            let server =
                world.servers.iter().find(|server| last["vm_id"] == server.id).expect("the new server");
            assert_eq!(
                (server.name.as_str(), server.project.as_str(), server.status),
                ("moved", "dest", "ACTIVE")
            );
            server.volumes.iter().map(|id| world.volume(id).expect("its volume").clone()).collect()
        })
    }

    /// The bytes of the new volume are those of this one at the source, or of the guest's own disk.
    pub fn is_copy(&self, volume: &Volume, origin: &str) -> bool {
        let mut copy = vec![0; SIZE as usize];
        let file = fs::File::open(self.sandbox.path("volumes").join(format!("{}.raw", volume.id))).unwrap();
        file.read_exact_at(&mut copy, 0).unwrap();
        copy == fs::read(self.sandbox.path("source").join(format!("{origin}.raw"))).unwrap()
    }
}

/// A guest with three disks, switched off; a bystander with a disk; a conversion host.
fn furnish(cloud: &Fake, boot: Boot) -> Vec<String> {
    cloud.world(|world| {
        world.add_server("converter", "p", "conversion host");
        world.servers.last_mut().unwrap().access = ADDRESS.to_owned();
        world.add_server("bystander", "p", "rhosp-migration");
        world.add_server(GUEST, "p", "database");
        let guest = world.servers.last_mut().unwrap();
        guest.status = "SHUTOFF";
        guest.image = (boot == Boot::Image).then(|| "image-1".to_owned());
        let mut volumes = Vec::new();
        let devices: &[&str] = if boot == Boot::Image {
            &["/dev/vdb", "/dev/vdc"]
        } else {
            &["/dev/vda", "/dev/vdb", "/dev/vdc"]
        };
        for device in devices {
            let id = world.id();
            let volume = world.add_volume(&id, "p", &format!("disk {device}"));
            (volume.status, volume.attached) = ("in-use", Some((GUEST.to_owned(), (*device).to_owned())));
            if *device == "/dev/vda" {
                (volume.bootable, volume.kind) = (true, "fast".to_owned());
                volume.description = json!("what it boots from");
                let properties = [("hw_firmware_type", "uefi"), ("checksum", "0123"), ("min_disk", "1")];
                volume.image_metadata =
                    properties.map(|(key, value)| (key.to_owned(), json!(value))).into_iter().collect();
            }
            if *device == "/dev/vdb" {
                volume.manner = (Some("data".to_owned()), true);
            }
            volumes.push(id);
        }
        let attached = world.id();
        let volume = world.add_volume(&attached, "p", "rhosp-migration");
        (volume.status, volume.attached) = ("in-use", Some(("bystander".to_owned(), "/dev/vda".to_owned())));
        let guest = world.servers.last_mut().unwrap();
        // Not in the order of the devices.
        guest.volumes = volumes.iter().rev().cloned().collect();
        volumes
    })
}

/// Devices for the volumes of a server: new ones are as long as they are said to be, and have the bytes of their origin.
fn plugger(cloud: Handle, server: &'static str, directory: PathBuf, size: u64) -> Plugger {
    Plugger::start(Duration::from_millis(100), move || {
        let attached: BTreeMap<String, Option<String>> = cloud.look(|world| {
            let here = |volume: &&Volume| {
                volume.status == "in-use" && volume.attached.as_ref().is_some_and(|(host, _)| host == server)
            };
            world
                .volumes
                .iter()
                .filter(here)
                .map(|volume| (volume.id.clone(), volume.origin.clone()))
                .collect()
        });
        let file = |(volume, origin): (String, Option<String>)| file_of(&directory, volume, origin, size);
        Some(attached.into_iter().filter_map(file).collect())
    })
}

fn file_of(directory: &Path, volume: String, origin: Option<String>, size: u64) -> Option<(String, PathBuf)> {
    let path = directory.join(format!("{volume}.raw"));
    match origin {
        _ if path.exists() => {}
        Some(origin) => drop(fs::copy(directory.join(format!("{origin}.raw")), &path).ok()?),
        None => fs::File::create(&path).ok()?.set_len(size).ok()?,
    }
    Some((volume, path))
}

//! A sandbox with an engine, and jobs that go there.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::engine::{Engine, PASSWORD};
use super::world::World;
use crate::exports::site::skip;
use crate::rig::always;
use crate::rig::job::Job;
use crate::two_phase::site::{Site, converted};

/// Percent of the usual patience: an answer is waited for 1.2 s, a locked disk 12 s.
const PATIENCE: u32 = 2;

/// A guest of two disks, and an engine.
pub struct Lab {
    pub site: Site,
    pub engine: Engine,
}

impl Lab {
    /// `None`, with a printed reason, where this machine cannot have devices of the engine's.
    pub fn new(layout: &'static str) -> Option<Self> {
        let devices = Path::new("/dev/disk/by-id");
        if fs::create_dir_all(devices).is_err() || !nix::unistd::getuid().is_root() {
            skip("disks of an engine are links below /dev, which only root can make");
            return None;
        }
        let mut site = Site::new(layout)?;
        fs::create_dir(site.sandbox.path("engine")).unwrap();
        let engine = Engine::start(&site.sandbox.path("engine"));
        site.set(json!({"ca_bundle": engine.certificate.file, "patience_percent": PATIENCE}));
        Some(Self { site, engine })
    }

    /// Keys of a document that goes to the engine in two phases.
    pub fn keys(&self, more: &Value) -> Value {
        let mut keys = json!({
            "output_directory": null,
            "rhv_url": self.engine.url,
            "rhv_password": PASSWORD,
            "rhv_cluster": "Default",
            "rhv_storage": "data",
            "conversion_host_uuid": format!("/api/vms/{}", self.engine.world().host),
        });
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    }

    /// The same of one in which virt-v2v does it all.
    pub fn one_phase(&self, more: &Value) -> Value {
        let mut keys = self.keys(&json!({"two_phase": false, "conversion_host_uuid": null}));
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    }

    pub fn start(&self, more: &Value) -> Job {
        self.site.start(&self.keys(more))
    }

    /// A whole two-phase job; its last state.
    pub fn run(&self, more: &Value) -> Value {
        let mut job = self.start(more);
        self.end(&mut job)
    }

    /// A whole one-phase job; its last state.
    pub fn run_one_phase(&self, more: &Value) -> Value {
        let mut job = self.site.start(&self.one_phase(more));
        self.end(&mut job)
    }

    /// The last state of a job that has told no secret.
    pub fn end(&self, job: &mut Job) -> Value {
        let last = self.site.end(job);
        let secrets = [PASSWORD.to_owned(), "token-1".to_owned(), "rhv-Secret%2B7431".to_owned()];
        let broken = always::leftovers(&self.site.sandbox, &secrets, &[("stdout", &job.stdout())]);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        last
    }

    /// `virt-v2v-wrapper cleanup <tag>` with the password on stdin: whether all went well, and what it said.
    pub fn cleanup(&self, tag: &str) -> (bool, String) {
        let password = json!({"rhv_password": PASSWORD}).to_string();
        let output = self.site.sandbox.child(&["cleanup", tag], &password).wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// The same for a job that could be resumed, and is not going to be.
    pub fn discard(&self, tag: &str) -> (bool, String) {
        let password = json!({"rhv_password": PASSWORD}).to_string();
        let child = self.site.sandbox.child(&["cleanup", "--discard", tag], &password);
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// Tags of the jobs so far, in layout `job`.
    pub fn tags(&self) -> Vec<String> {
        self.site.names("state/jobs")
    }

    /// The guest is there: one machine of that name with both disks, which hold the converted bytes and are its alone, and
    /// nothing else of this job.
    pub fn assert_there(&self, last: &Value, name: &str) -> String {
        assert_eq!(last["failed"], false, "{last:#}");
        let world = self.engine.world();
        let vm = world.named(name).unwrap_or_else(|| panic!("no {name}: {:#?}", world.vms));
        let id = vm["id"].as_str().unwrap().to_owned();
        assert_eq!(last["vm_id"], id, "{last:#}");
        assert_eq!(world.vms.len(), 2, "{:#?}", world.vms);
        assert_eq!((world.disks.len(), world.attachments.len()), (2, 2), "{world:#?}");
        for (index, attachment) in world.disks_of(&id).into_iter().enumerate() {
            let disk = &world.disks[&attachment.disk];
            assert_eq!(disk["name"], format!("{name}_Disk{}", index + 1));
            assert_eq!((&disk["shareable"], attachment.active), (&json!(false), true), "{disk}");
            assert_eq!(attachment.bootable, index == 0);
            let bytes = fs::read(world.file(&attachment.disk)).unwrap();
            let expected = converted(self.site.bytes(index));
            assert_eq!(bytes.len(), expected.len().next_multiple_of(4096));
            assert_eq!(blake3::hash(&bytes[..expected.len()]), blake3::hash(&expected), "disk {index}");
            assert!(!super::disks::link(&attachment.id).exists(), "it is still a device of this host");
        }
        drop(world);
        assert_eq!(self.site.names("tmp"), [""; 0]);
        id
    }

    /// Both disks are in the conversion host, for a later job.
    pub fn assert_kept(&self) {
        let world = self.engine.world();
        assert_eq!((world.vms.len(), world.disks.len(), world.attachments.len()), (1, 2, 2), "{world:#?}");
    }

    /// Nothing is there but what was.
    pub fn assert_as_before(&self) {
        let world = self.engine.world();
        assert_eq!(world.vms.len(), 1, "{:#?}", world.vms);
        assert!(
            world.disks.is_empty() && world.attachments.is_empty() && world.nics.is_empty(),
            "{world:#?}"
        );
    }
}

/// The last message.
pub fn message(last: &Value) -> &str {
    last["last_message"]["message"].as_str().unwrap_or_else(|| panic!("no message: {last:#}"))
}

/// Puts a disk of virt-v2v's there, as it makes one.
pub fn disk_of_virt_v2v(world: &mut World, guest: &str) -> String {
    world.disk(&format!("{guest}-000"), "Uploaded by virt-v2v")
}

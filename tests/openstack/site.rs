//! A sandbox whose destination is a fake OpenStack, with things of somebody else in it, and jobs that go there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::fake::{Fake, USER};
use super::plugger::Plugger;
use crate::exports::site::have;
use crate::rig::always;
use crate::rig::job::Job;
use crate::rig::poll;
use crate::rig::sandbox::Sandbox;
use crate::two_phase::site::play_to;

/// Nothing here takes so long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(120);
pub const MIB: u64 = 1 << 20;
/// Of the disks: the second is no whole number of GiB, nor of anything else.
pub const SIZES: [u64; 2] = [4 * MIB, 5 * MIB + 512];
/// What the guest is called.
pub const NAME: &str = "My_Machine";

/// How a job converts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// virt-v2v makes two volumes.
    OnePhase,
    /// The program does.
    TwoPhase,
}

pub struct Site {
    pub sandbox: Sandbox,
    pub fake: Fake,
    /// The volumes that virt-v2v makes.
    pub volumes: Vec<String>,
    mode: Mode,
    before: Value,
    _plugger: Option<Plugger>,
}

impl Site {
    /// `None`, with a printed reason, where a tool is missing.
    pub fn new(mode: Mode) -> Option<Self> {
        if mode == Mode::TwoPhase && !have(&["nbdkit", "qemu-nbd", "qemu-img", "qemu-io", "losetup"]) {
            return None;
        }
        let fake = Fake::start();
        fake.world(|world| {
            // Nobody else's thing is ours, however it is called.
            for project in ["p", "dest"] {
                let id = world.id();
                world.add_volume(&id, project, &format!("{NAME}_Disk1"));
            }
            let id = world.id();
            world.add_port(&id, &format!("{NAME}_port_0"), "00:50:56:ff:ff:ff");
            world.add_server("bystander", "dest", &format!("{NAME} 2"));
            let attached = world.id();
            let volume = world.add_volume(&attached, "dest", NAME);
            (volume.status, volume.attached) =
                ("in-use", Some(("bystander".to_owned(), "/dev/vda".to_owned())));
        });
        let before = fake.world(|world| world.inventory());
        let mut site = Self {
            sandbox: Sandbox::new("openstack"),
            fake,
            volumes: Vec::new(),
            mode,
            before,
            _plugger: None,
        };
        site.set(json!({}));
        match mode {
            Mode::OnePhase => site.convert(2),
            Mode::TwoPhase => site.disks(),
        }
        Some(site)
    }

    /// More keys of the site configuration.
    pub fn set(&mut self, more: Value) {
        let mut keys = Map::new();
        // 600 s become 12 s, and an answer that never comes is waited for a little more than two.
        keys.insert("patience_percent".into(), json!(2));
        keys.extend(more.as_object().unwrap().clone());
        self.sandbox.configure("job", &keys);
    }

    /// What a virt-v2v for this guest makes, one volume a disk, and what its log says of them.
    fn convert(&mut self, count: usize) {
        for index in 1..=count {
            let id = self.fake.world(|world| {
                let id = world.id();
                let volume = world.add_volume(&id, "p", &format!("{NAME}-sd{index}"));
                volume.bootable = index == 1;
                volume.description = json!(format!("{NAME} disk {index}/{count} converted by virt-v2v"));
                let pairs = [
                    ("virt_v2v_guest_id", "guest".to_owned()),
                    ("virt_v2v_disk_index", format!("{index}/{count}")),
                ];
                volume.metadata =
                    pairs.map(|(key, value)| (key.to_owned(), json!(value))).into_iter().collect();
                id
            });
            self.volumes.push(id);
        }
        let steps: Vec<Value> = vec![json!({"text": show(&self.volumes)})];
        self.play(&steps, 0);
    }

    pub fn play(&self, steps: &[Value], exit: i32) {
        self.sandbox.scenario(&json!({"steps": steps, "exit": exit, "on_term": "exit"}));
    }

    /// Two small disks, a virt-v2v-in-place that changes them, and devices for volumes that are attached to `srv`.
    fn disks(&mut self) {
        let source = self.sandbox.path("source");
        fs::create_dir(&source).unwrap();
        for (index, size) in SIZES.into_iter().enumerate() {
            let file = fs::File::create(self.source(index)).unwrap();
            file.set_len(size).unwrap();
            let mut bytes = vec![0; MIB as usize];
            blake3::Hasher::new().update(&[index as u8]).finalize_xof().fill(&mut bytes);
            file.write_all_at(&bytes, 4096).unwrap();
        }
        play_to(&self.sandbox, &[], 0);
        let directory = self.sandbox.path("volumes");
        fs::create_dir(&directory).unwrap();
        let world = self.fake.handle();
        self._plugger = Some(Plugger::start(Duration::from_millis(50), move || {
            let attached: BTreeMap<String, u64> = world.look(|world| {
                let of = |volume: &&super::fake::state::Volume| {
                    (volume.status == "in-use" || world.keeps_available)
                        && volume.attached.as_ref().is_some_and(|(server, _)| server == "srv")
                };
                world.volumes.iter().filter(of).map(|volume| (volume.id.clone(), volume.size)).collect()
            });
            let file = |(volume, size): (String, u64)| {
                let path = directory.join(format!("{volume}.raw"));
                let file =
                    fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).ok()?;
                file.set_len(size << 30).ok()?;
                Some((volume, path))
            };
            Some(attached.into_iter().filter_map(file).collect())
        }));
    }

    pub fn source(&self, disk: usize) -> PathBuf {
        self.sandbox.path("source").join(["a.img", "b.img"][disk])
    }

    /// The bytes of a volume that was attached.
    pub fn bytes(&self, volume: &str, length: u64) -> Vec<u8> {
        let file = fs::File::open(self.sandbox.path("volumes").join(format!("{volume}.raw"))).unwrap();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub fn document(&self, more: &Value) -> Vec<u8> {
        let mut document = json!({
            "vm_name": NAME,
            "osp_environment": {
                "os-auth_url": format!("{}/v3", self.fake.url()),
                "os-username": USER.0,
                "os-password": USER.1,
                "os-project_name": "p",
                "os-user_domain_name": "Default",
                "os-project_domain_name": "Default",
            },
            "osp_destination_project_id": "dest",
            "osp_flavor_id": "m1",
            "osp_security_groups_ids": ["sg1"],
            "osp_server_id": "srv",
            "osp_guest_id": "guest",
            "network_mappings": [
                {"source": "a", "destination": "net1", "mac_address": "00:50:56:00:00:01", "ip_address": "10.0.0.7"},
                {"source": "b", "destination": "net2", "mac_address": "00:50:56:00:00:02", "ip_address": "10.0.0.8"},
            ],
        });
        let of_mode = match self.mode {
            Mode::OnePhase => json!({
                "transport_method": "vddk",
                "vmware_fingerprint": "01:23:45:67:89:AB:CD:EA:DB:EE:F0:12:34:56:78:9A:BC:DE:F0:12",
                "vmware_uri": "esx://root@127.0.0.1?no_verify=1",
                "vmware_password": "vmw-secret",
            }),
            Mode::TwoPhase => json!({
                "transport_method": "local",
                "two_phase": true,
                "source_disks": [self.source(0), self.source(1)],
            }),
        };
        for part in [&of_mode, more] {
            document.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        }
        document.to_string().into_bytes()
    }

    pub fn start(&self, more: &Value) -> Job {
        self.sandbox.start(self.document(more), LIMIT)
    }

    /// The last state, when everything has ended as it must.
    pub fn end(&self, job: &mut Job) -> Value {
        let last = job.wait_finished(LIMIT);
        assert!(last.is_some(), "no last state: {:?}\n{}", job.last_state(), self.fake.story());
        let left = job.gone_within(LIMIT);
        assert!(left.is_ok(), "processes left: {left:?}");
        job.wait_exit(LIMIT);
        let seen = job.end();
        let mut broken = always::states(&seen);
        let secrets = [USER.1, "vmw-secret", "token-"].map(str::to_owned);
        broken.extend(always::leftovers(
            &self.sandbox,
            &secrets,
            &[("stdout", &job.stdout()), ("stderr", &job.stderr())],
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

    /// Only what was there before the job is there, as it was.
    pub fn untouched(&self) -> Result<(), String> {
        let now = self.settled();
        if now == self.before {
            return Ok(());
        }
        Err(format!("left or changed: {now:#}\nbefore: {:#}\n{}", self.before, self.fake.story()))
    }

    /// When nothing is under way any more.
    fn settled(&self) -> Value {
        for _ in 0..20 {
            self.fake.world(|world| {
                world.look_at_volumes(|_| true);
                world.look_at_servers(|_| true);
            });
        }
        self.fake.world(|world| world.inventory())
    }

    /// One new server in the destination project, ACTIVE, with two volumes in order and two ports; nothing else is new, and
    /// what was there is as it was. The ids of its volumes.
    pub fn arrived(&self, last: &Value) -> Result<Vec<String>, String> {
        let now = self.settled();
        let fail = |why: &str| Err(format!("{why}: {now:#}\n{last:#}\n{}", self.fake.story()));
        if last["failed"] != false {
            return fail("the job failed");
        }
        let new = |kind: &str| -> Vec<String> {
            let before = self.before[kind].as_object().unwrap();
            now[kind].as_object().unwrap().keys().filter(|id| !before.contains_key(*id)).cloned().collect()
        };
        for kind in ["volumes", "ports", "servers"] {
            let before = self.before[kind].as_object().unwrap();
            if before.iter().any(|(id, as_it_was)| now[kind].get(id) != Some(as_it_was)) {
                return fail("what was there has changed");
            }
        }
        let (volumes, ports, servers) = (new("volumes"), new("ports"), new("servers"));
        if (volumes.len(), ports.len(), servers.len(), &now["transfers"]) != (2, 2, 1, &json!([])) {
            return fail("not one server with two volumes and two ports");
        }
        let id = &servers[0];
        if last["vm_id"] != **id {
            return fail("vm_id is another");
        }
        let story = self.fake.story();
        self.fake.world(|world| {
            let server = world.servers.iter().find(|server| server.id == *id).unwrap().clone();
            let fail = |why: &str| Err(format!("{why}: {server:?}\n{story}"));
            let own = |volume: &String| world.volume(volume).unwrap();
            if (server.name.as_str(), server.project.as_str(), server.flavor.as_str()) != (NAME, "dest", "m1")
            {
                return fail("another server");
            }
            if server.status != "ACTIVE" || server.volumes.len() != 2 || server.ports.len() != 2 {
                return fail("not as asked for");
            }
            if !server.volumes.iter().all(|volume| own(volume).project == "dest")
                || !own(&server.volumes[0]).bootable
            {
                return fail("the volumes are not as asked for");
            }
            if !self.volumes.is_empty() && server.volumes != self.volumes {
                return fail("the volumes are not in order");
            }
            let ports: Vec<Value> = server
                .ports
                .iter()
                .map(|id| world.ports.iter().find(|port| port.id == *id).unwrap())
                .map(|port| json!([port.network, port.mac, port.groups, port.project]))
                .collect();
            let wanted = json!([
                ["net1", "00:50:56:00:00:01", ["sg1"], "dest"],
                ["net2", "00:50:56:00:00:02", ["sg1"], "dest"]
            ]);
            if json!(ports) != wanted {
                return fail("the ports are not as asked for");
            }
            Ok(server.volumes)
        })
    }
}

/// What virt-v2v's log says when it waits for volumes and sets them up: each of them more than once.
pub fn show(volumes: &[String]) -> String {
    let mut text = String::new();
    for _ in 0..2 {
        for id in volumes {
            text += &format!("openstack '--os-username=admin' 'volume' 'show' '-f' 'json' '{id}'\n");
        }
    }
    text
}

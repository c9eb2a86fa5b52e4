//! What there is in the fake, and what it looks like.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

use super::super::http::Request;

/// Who may log in, with which password.
pub const USER: (&str, &str) = ("admin", "hunter2");
/// An application credential of [`USER`] in the project `p`: id and secret.
pub const CREDENTIAL: (&str, &str) = ("credential-1", "cred-secret");

/// A token.
#[derive(Debug, Clone)]
pub struct Token {
    pub id: String,
    pub project: String,
}

/// A state that comes by itself, after so many looks at the thing.
pub type Next = Option<(u32, &'static str)>;

#[derive(Debug, Clone)]
pub struct Volume {
    pub id: String,
    pub project: String,
    pub name: String,
    pub description: Value,
    pub size: u64,
    pub status: &'static str,
    pub next: Next,
    pub kind: String,
    pub bootable: bool,
    pub metadata: Map<String, Value>,
    pub image_metadata: Map<String, Value>,
    /// Server and device.
    pub attached: Option<(String, String)>,
    /// With its attachment: its tag, and whether it goes with the server.
    pub manner: (Option<String>, bool),
    /// Whose bytes it was made with: a volume's, or a server's own disk.
    pub origin: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: String,
    pub project: String,
    pub name: String,
    pub volume: String,
    pub status: &'static str,
    pub next: Next,
    pub metadata: Map<String, Value>,
}

#[derive(Debug, Clone)]
pub struct Image {
    pub id: String,
    pub project: String,
    pub name: String,
    /// Of whose disk.
    pub server: String,
    pub min_disk: u64,
    pub status: &'static str,
    pub next: Next,
    pub metadata: Map<String, Value>,
}

#[derive(Debug, Clone)]
pub struct Transfer {
    pub id: String,
    pub project: String,
    pub name: String,
    pub volume: String,
    pub key: String,
}

#[derive(Debug, Clone)]
pub struct Port {
    pub id: String,
    pub project: String,
    pub name: String,
    pub description: String,
    pub network: String,
    pub mac: String,
    pub ips: Vec<String>,
    pub groups: Vec<String>,
    pub device: String,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub id: String,
    pub project: String,
    pub name: String,
    pub flavor: String,
    pub status: &'static str,
    pub next: Next,
    pub metadata: Map<String, Value>,
    /// In order; it boots from the first.
    pub volumes: Vec<String>,
    pub ports: Vec<String>,
    pub fault: Option<String>,
    pub access: String,
    /// What it was booted from, if it is no volume.
    pub image: Option<String>,
    /// Volumes that cinder has taken out of it, and it has not forgotten: for so many looks.
    pub leaving: Vec<(String, u32)>,
    /// What was done to it, the oldest first.
    pub actions: Vec<&'static str>,
}

/// Who has it, its name, and the ranges of its subnets.
#[derive(Debug, Clone)]
pub struct Network {
    pub id: String,
    pub project: String,
    pub name: String,
    pub ranges: Vec<&'static str>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// All of it.
#[derive(Debug, Default)]
pub struct World {
    pub base: String,
    pub tokens: Vec<Token>,
    pub projects: Vec<String>,
    pub volumes: Vec<Volume>,
    pub snapshots: Vec<Snapshot>,
    pub images: Vec<Image>,
    pub transfers: Vec<Transfer>,
    pub ports: Vec<Port>,
    pub servers: Vec<Server>,
    pub networks: Vec<Network>,
    /// Id, project.
    pub groups: Vec<(String, String)>,
    /// Id, memory in MiB, processors.
    pub flavors: Vec<(String, u64, u64)>,
    /// Volumes, GiB, servers, ports of each project; fewer than there are: none is left.
    pub quota: BTreeMap<&'static str, u64>,
    /// How many looks it takes until something is done.
    pub looks: u32,
    /// The next server ends in `ERROR` with these words.
    pub doom: Option<String>,
    /// Seconds that a token is good for.
    pub token_life: i64,
    /// What answers do not show: a part of the path, and a key.
    pub hidden: Vec<(&'static str, &'static str)>,
    /// Volumes of other projects are forbidden, not unknown.
    pub forbids_others: bool,
    /// A volume that a server has is `available` all the same.
    pub keeps_available: bool,
    /// Servers boot from any volume.
    pub boots_all: bool,
    /// Ports cannot be described.
    pub refuses_descriptions: bool,
    pub count: u64,
    /// Which of this process.
    pub number: u32,
}

impl World {
    /// Projects `p` and `dest`, network `net1` with 10.0.0.0/24 and fd00::/64, group `sg1`, flavor `m1`, server `srv` in `p`.
    pub fn new(port: u16) -> Self {
        let network = |id: &str, project: &str, ranges: &[&'static str]| Network {
            id: id.to_owned(),
            project: project.to_owned(),
            name: format!("{id} by name"),
            ranges: ranges.to_vec(),
        };
        let mut world = Self {
            base: format!("http://127.0.0.1:{port}"),
            projects: vec!["p".to_owned(), "dest".to_owned()],
            networks: vec![
                network("net1", "dest", &["10.0.0.0/24", "fd00::/64"]),
                network("net2", "dest", &["192.168.7.0/24"]),
            ],
            groups: vec![("sg1".to_owned(), "dest".to_owned()), ("sg2".to_owned(), "dest".to_owned())],
            flavors: vec![("m1".to_owned(), 512, 1)],
            quota: [("volumes", 20), ("gigabytes", 1000), ("instances", 10), ("ports", 50)].into(),
            looks: 1,
            token_life: 3600,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            ..Self::default()
        };
        world.add_server("srv", "p", "conversion host");
        world
    }

    /// An id that nobody has.
    pub fn id(&mut self) -> String {
        self.count += 1;
        // Its first twenty characters name a device of this host: no two fakes may have the same.
        let (fake, process) = (self.number & 0xfff, std::process::id() & 0xffff);
        format!("{:08x}-{process:04x}-4{fake:03x}-8000-{:012x}", self.count, self.count)
    }

    pub fn add_server(&mut self, id: &str, project: &str, name: &str) {
        self.servers.push(Server {
            id: id.to_owned(),
            project: project.to_owned(),
            name: name.to_owned(),
            flavor: "m1".to_owned(),
            status: "ACTIVE",
            next: None,
            metadata: Map::new(),
            volumes: Vec::new(),
            ports: Vec::new(),
            fault: None,
            access: String::new(),
            image: None,
            leaving: Vec::new(),
            actions: vec!["create"],
        });
    }

    /// A volume that is available.
    pub fn add_volume(&mut self, id: &str, project: &str, name: &str) -> &mut Volume {
        self.volumes.push(Volume {
            id: id.to_owned(),
            project: project.to_owned(),
            name: name.to_owned(),
            description: Value::Null,
            size: 1,
            status: "available",
            next: None,
            kind: "__DEFAULT__".to_owned(),
            bootable: false,
            metadata: Map::new(),
            image_metadata: Map::new(),
            attached: None,
            manner: (None, false),
            origin: None,
        });
        self.volumes.last_mut().unwrap()
    }

    pub fn add_port(&mut self, id: &str, name: &str, mac: &str) {
        self.ports.push(Port {
            id: id.to_owned(),
            project: "dest".to_owned(),
            name: name.to_owned(),
            description: String::new(),
            network: "net1".to_owned(),
            mac: mac.to_owned(),
            ips: Vec::new(),
            groups: vec!["sg1".to_owned()],
            device: String::new(),
        });
    }

    pub fn token(&self, request: &Request) -> Option<Token> {
        let id = request.header("x-auth-token")?;
        self.tokens.iter().find(|token| token.id == id).cloned()
    }

    pub fn project_of(&self, request: &Request) -> Option<String> {
        self.token(request).map(|token| token.project)
    }

    pub fn volume(&self, id: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// Time goes on when somebody looks.
    pub fn look_at_volumes(&mut self, looked: impl Fn(&Volume) -> bool) {
        for volume in self.volumes.iter_mut().filter(|volume| looked(volume)) {
            match &mut volume.next {
                Some((looks, _)) if *looks > 0 => *looks -= 1,
                Some((_, status)) => {
                    volume.status = status;
                    volume.next = None;
                    if volume.status == "available" {
                        volume.attached = None;
                    }
                }
                None => {}
            }
        }
        self.volumes.retain(|volume| volume.status != "gone");
    }

    pub fn look_at_servers(&mut self, looked: impl Fn(&Server) -> bool) {
        for server in self.servers.iter_mut().filter(|server| looked(server)) {
            match &mut server.next {
                Some((looks, _)) if *looks > 0 => *looks -= 1,
                Some((_, status)) => {
                    server.status = status;
                    server.next = None;
                }
                None => {}
            }
        }
        let gone: Vec<String> = self
            .servers
            .iter()
            .filter(|server| server.status == "GONE")
            .map(|server| server.id.clone())
            .collect();
        self.servers.retain(|server| server.status != "GONE");
        // A port that was there before its server stays; so does a volume that is not its own.
        self.ports.iter_mut().filter(|port| gone.contains(&port.device)).for_each(|port| port.device.clear());
        for volume in &mut self.volumes {
            if volume.attached.as_ref().is_some_and(|(server, _)| gone.contains(server)) {
                (volume.status, volume.attached) = ("available", None);
            }
        }
    }

    /// What a test may compare before and after: everything that lasts, without what a look changes.
    pub fn inventory(&self) -> Value {
        let volumes: Map<String, Value> = self
            .volumes
            .iter()
            .map(|volume| {
                let attached = volume.attached.as_ref().map(|(server, _)| server);
                (volume.id.clone(), json!([volume.project, volume.name, volume.status, attached]))
            })
            .collect();
        let transfers: Vec<&str> = self.transfers.iter().map(|transfer| transfer.volume.as_str()).collect();
        let ports: Map<String, Value> = self
            .ports
            .iter()
            .map(|port| (port.id.clone(), json!([port.project, port.name, port.device])))
            .collect();
        let servers: Map<String, Value> = self
            .servers
            .iter()
            .map(|server| (server.id.clone(), json!([server.project, server.name, server.volumes])))
            .collect();
        let snapshots: Vec<&str> = self.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
        let images: Vec<&str> = self.images.iter().map(|image| image.name.as_str()).collect();
        json!({"volumes": volumes, "transfers": transfers, "ports": ports, "servers": servers, "snapshots": snapshots,
            "images": images})
    }
}

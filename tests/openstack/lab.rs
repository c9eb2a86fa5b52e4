//! The real services (tests/rigs/openstack-up), started once for all tests of a process, and gone with it: their watcher sees to
//! that, however the process ends.
//!
//! In it: networks `net4` (10.9.0.0/24 and fd09::/64) and `net2` (10.8.0.0/24) and the security group `lab` in project `target`,
//! and a conversion server each in `admin` and `demo`, whose volumes are plugged into this host.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Answer, ask};
use super::plugger::Plugger;
use crate::exports::site::{find, skip};
use crate::rig::poll;

/// Of all users.
pub const PASSWORD: &str = "secret";
/// Nothing takes so long even where the machine has other work.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Offsets of the services from the first port.
const PORTS: [u16; 9] = [0, 1, 2, 3, 4, 5, 72, 73, 74];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Identity,
    Image,
    Volume,
    Compute,
    Network,
}

pub struct Lab {
    pub directory: PathBuf,
    pub port: u16,
    /// Project name to token and project id.
    tokens: BTreeMap<&'static str, (String, String)>,
    /// Of project `target`.
    pub networks: BTreeMap<&'static str, String>,
    pub group: String,
    /// Project name to conversion server.
    pub servers: BTreeMap<&'static str, String>,
    _pluggers: Mutex<Vec<Plugger>>,
}

/// One test at a time: each counts what there is before and after.
pub struct Turn {
    lab: &'static Lab,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Turn {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab
    }
}

/// `None`, with a printed reason, where it cannot run.
pub fn lab() -> Option<Turn> {
    static LAB: OnceLock<Option<Lab>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let lab = LAB.get_or_init(start).as_ref()?;
    // A test that failed has had its turn.
    Some(Turn { lab, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) })
}

fn start() -> Option<Lab> {
    let programs = [
        "keystone-manage",
        "glance-api",
        "cinder-api",
        "nova-api",
        "nova-compute",
        "neutron-server",
        "uwsgi",
        "epmd",
    ];
    let missing: Vec<&str> = programs.into_iter().filter(|program| find(program).is_none()).collect();
    if !missing.is_empty() || !nix::unistd::geteuid().is_root() {
        skip(&format!(
            "the real OpenStack needs root and packages (packaging/install test); not installed: {missing:?}"
        ));
        return None;
    }
    let process = std::process::id();
    let directory = PathBuf::from(format!("/dev/shm/v2v-openstack-{process}"));
    let port = free_ports();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../openstack-cache");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rigs/openstack-up");
    let log = std::env::temp_dir().join(format!("v2v-openstack-{process}.log"));
    let output = std::fs::File::create(&log).unwrap();
    let mut up = Command::new(script);
    up.arg("--until-gone").arg(process.to_string()).arg(&directory).arg(port.to_string());
    // Its services live on: they must not hold a pipe of ours.
    up.env("OPENSTACK_RIG_CACHE", cache).stdin(std::process::Stdio::null());
    up.stdout(output.try_clone().unwrap()).stderr(output);
    let status = up.status().unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    assert!(status.success(), "openstack-up: {status}\n{said}");
    let mut lab = Lab {
        directory,
        port,
        tokens: BTreeMap::new(),
        networks: BTreeMap::new(),
        group: String::new(),
        servers: BTreeMap::new(),
        _pluggers: Mutex::default(),
    };
    for (project, user) in [("admin", "admin"), ("demo", "demo"), ("target", "demo")] {
        let token = lab.login(user, project);
        lab.tokens.insert(project, token);
    }
    lab.furnish();
    Some(lab)
}

/// The first of a run of ports that nobody has.
fn free_ports() -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 90).unwrap() * 100;
    let is_free =
        |base: &u16| PORTS.iter().all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok());
    (first..32_000).step_by(100).find(is_free).expect("free ports")
}

impl Lab {
    pub fn url(&self, service: Service, project: &str) -> String {
        let at = |offset: u16, path: &str| format!("http://127.0.0.1:{}{path}", self.port + offset);
        match service {
            Service::Identity => at(0, "/v3"),
            Service::Image => at(1, "/v2"),
            Service::Volume => at(2, &format!("/v3/{}", self.tokens[project].1)),
            Service::Compute => at(3, "/v2.1"),
            Service::Network => at(5, "/v2.0"),
        }
    }

    /// Token and project id.
    pub fn login(&self, user: &str, project: &str) -> (String, String) {
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"],
                "password": {"user": {"name": user, "domain": domain, "password": PASSWORD}}},
            "scope": {"project": {"name": project, "domain": domain}}}});
        let url = format!("{}/auth/tokens", self.url(Service::Identity, project));
        let answer = ask("POST", &url, &[], Some(body.to_string().as_bytes())).unwrap();
        let id = answer.header("x-subject-token").unwrap_or_else(|| panic!("{answer:?}")).to_owned();
        (id, answer.body["token"]["project"]["id"].as_str().unwrap().to_owned())
    }

    pub fn project(&self, name: &str) -> &str {
        &self.tokens[name].1
    }

    /// Asks in a project.
    pub fn ask(&self, method: &str, project: &str, service: Service, path: &str, body: &Value) -> Answer {
        let url = format!("{}{path}", self.url(service, project));
        let body = (!body.is_null()).then(|| body.to_string());
        // Of nova 2.79: a server may have no network, and an attachment shows all that it is.
        let headers =
            [("X-Auth-Token", self.tokens[project].0.as_str()), ("OpenStack-API-Version", "compute 2.79")];
        let headers = &headers[..if service == Service::Compute { 2 } else { 1 }];
        ask(method, &url, headers, body.as_deref().map(str::as_bytes))
            .unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// The same, and it must be good: what it answers.
    pub fn get(&self, project: &str, service: Service, path: &str) -> Value {
        let answer = self.ask("GET", project, service, path, &Value::Null);
        assert!(answer.status < 300, "GET {path}: {answer:?}");
        answer.body
    }

    pub fn post(&self, project: &str, service: Service, path: &str, body: &Value) -> Value {
        let answer = self.ask("POST", project, service, path, body);
        assert!(answer.status < 300, "POST {path}: {answer:?}");
        answer.body
    }

    fn furnish(&mut self) {
        for (name, ranges) in [("net4", &["10.9.0.0/24", "fd09::/64"][..]), ("net2", &["10.8.0.0/24"])] {
            let network =
                self.post("target", Service::Network, "/networks", &json!({"network": {"name": name}}));
            let id = network["network"]["id"].as_str().unwrap().to_owned();
            for range in ranges {
                let version = if range.contains(':') { 6 } else { 4 };
                let subnet = json!({"subnet": {"network_id": id, "cidr": range, "ip_version": version, "enable_dhcp": false}});
                self.post("target", Service::Network, "/subnets", &subnet);
            }
            self.networks.insert(name, id);
        }
        let group = json!({"security_group": {"name": "lab"}});
        let group = self.post("target", Service::Network, "/security-groups", &group);
        self.group = group["security_group"]["id"].as_str().unwrap().to_owned();
        let image = json!({"name": "conversion host", "disk_format": "raw", "container_format": "bare", "visibility": "public"});
        let image = self.post("admin", Service::Image, "/images", &image)["id"].as_str().unwrap().to_owned();
        let url = format!("{}/images/{image}/file", self.url(Service::Image, "admin"));
        let headers =
            [("X-Auth-Token", self.tokens["admin"].0.as_str()), ("Content-Type", "application/octet-stream")];
        let uploaded = ask("PUT", &url, &headers, Some(&[0; 512])).unwrap();
        assert_eq!(uploaded.status, 204, "{uploaded:?}");
        for project in ["admin", "demo"] {
            let server = (0..5).find_map(|_| self.conversion_server(project, &image));
            self.servers.insert(project, server.expect("a conversion server"));
        }
        for (project, server) in self.servers.clone() {
            let (url, token) = (self.url(Service::Compute, project), self.tokens[project].0.clone());
            let volumes = self.directory.join("volumes");
            self._pluggers.lock().unwrap().push(Plugger::start(Duration::from_millis(500), move || {
                let url = format!("{url}/servers/{server}/os-volume_attachments");
                let answer = ask("GET", &url, &[("X-Auth-Token", &token)], None).ok()?;
                let all = answer.body["volumeAttachments"].as_array()?.clone();
                let of = |attachment: Value| {
                    let id = attachment["volumeId"].as_str()?.to_owned();
                    let file = volumes.join(format!("{id}.raw"));
                    Some((id, file))
                };
                Some(all.into_iter().filter_map(of).collect())
            }));
        }
    }

    /// `None`: nova has lost it. Its services on sqlite do when they write at the same moment.
    fn conversion_server(&self, project: &str, image: &str) -> Option<String> {
        let server = json!({"server": {"name": "conversion host", "flavorRef": "m1.disk", "imageRef": image,
            "networks": "none"}});
        let made = self.post(project, Service::Compute, "/servers", &server);
        let id = made["server"]["id"].as_str().unwrap().to_owned();
        let path = format!("/servers/{id}");
        let status = poll(LIMIT / 4, || {
            std::thread::sleep(Duration::from_millis(300));
            let shown = self.get(project, Service::Compute, &path);
            let status = shown["server"]["status"].as_str().unwrap().to_owned();
            (status != "BUILD").then_some(status)
        });
        if status.as_deref() == Some("ACTIVE") {
            return Some(id);
        }
        self.ask("DELETE", project, Service::Compute, &path, &Value::Null);
        None
    }

    /// Asks until the answer is good.
    pub fn wait(&self, project: &str, service: Service, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = poll(LIMIT, || {
            let answer = self.ask("GET", project, service, path, &Value::Null);
            last = answer.body;
            let is_good = good(&last);
            if !is_good {
                std::thread::sleep(Duration::from_millis(200));
            }
            is_good.then_some(())
        });
        assert!(found.is_some(), "{path}: {last:#}");
        last
    }

    /// The file of a volume.
    pub fn file(&self, volume: &str) -> PathBuf {
        self.directory.join("volumes").join(format!("{volume}.raw"))
    }

    /// What of a kind a project has: ids.
    pub fn ids(&self, project: &str, service: Service, path: &str, key: &str) -> Vec<String> {
        let own = self.project(project);
        let all = self.get(project, service, path);
        let entries = all[key].as_array().unwrap().iter();
        // An administrator sees the ports of all.
        let mine = entries.filter(|entry| entry["project_id"].as_str().is_none_or(|project| project == own));
        let mut ids: Vec<String> = mine.map(|entry| entry["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    }
}

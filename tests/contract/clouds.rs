//! The services of a case of the group `cloud`: what they hold before, and what they must hold at the end, however many
//! requests that took.

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::openstack::fake::{Fake, Fault, Harm};
use crate::ovirt::engine::Engine;
use crate::rig::matching::differences;
use crate::rig::sandbox::Sandbox;

/// Those that a case asks for.
pub(super) struct Clouds {
    openstack: Option<Fake>,
    ovirt: Option<Engine>,
    /// Servers that were there before the job.
    before: Vec<String>,
}

impl Clouds {
    /// Starts them. What the document says is what the engine knows.
    pub(super) fn start(wanted: &Value, input: &Value, sandbox: &Sandbox) -> Self {
        let ovirt = wanted.get("ovirt").map(|wanted| ovirt(wanted, input, sandbox));
        let openstack = wanted.get("openstack").map(openstack);
        let servers = openstack.iter().flat_map(|fake| fake.world(|world| world.servers.clone()));
        let before = servers.map(|server| server.id).collect();
        Self { openstack, ovirt, before }
    }

    /// Where they are.
    pub(super) fn placeholders(&self) -> Vec<(String, String)> {
        let openstack = self.openstack.iter().map(|fake| ("${OPENSTACK_URL}".to_owned(), fake.url()));
        let ovirt = self.ovirt.iter().flat_map(|engine| {
            let url = engine.url.trim_end_matches("/ovirt-engine/api").to_owned();
            let authority = engine.certificate.file.to_str().expect("a path").to_owned();
            [("${OVIRT_URL}".to_owned(), url), ("${CA}".to_owned(), authority)]
        });
        openstack.chain(ovirt).collect()
    }

    /// What is not as expected.
    pub(super) fn broken(&self, effects: &Value, last: Option<&Value>) -> Vec<String> {
        let (Some(fake), Some(wanted)) = (&self.openstack, effects.get("openstack")) else {
            return Vec::new();
        };
        let mut wanted = wanted.clone();
        let has_id = wanted.as_object_mut().and_then(|wanted| wanted.remove("vm_id")) == Some(json!(true));
        let mut broken = differences("openstack", &wanted, Some(&self.held(fake)));
        // An empty object matches any: here it means that there are none.
        if wanted["volumes"] == json!({}) && self.held(fake)["volumes"] != json!({}) {
            broken.push(format!("openstack.volumes: {}", self.held(fake)["volumes"]));
        }
        let made = fake.world(|world| world.servers.last().map(|server| server.id.clone()));
        if has_id && last.and_then(|state| state["vm_id"].as_str()) != made.as_deref() {
            broken.push(format!("vm_id is {:?}, the server {made:?}", last.map(|state| &state["vm_id"])));
        }
        if !broken.is_empty() {
            broken.push(fake.story());
        }
        broken
    }

    /// What there is, in the words of the cases.
    fn held(&self, fake: &Fake) -> Value {
        fake.world(|world| {
            for _ in 0..20 {
                world.look_at_volumes(|_| true);
                world.look_at_servers(|_| true);
            }
            let port = |id: &String| {
                let port = world.ports.iter().find(|port| port.id == *id).expect("the port of a server");
                json!({"network": port.network, "mac": port.mac, "ip": port.ips.first(), "groups": port.groups})
            };
            let servers: Vec<Value> = world
                .servers
                .iter()
                .filter(|server| !self.before.contains(&server.id))
                .map(|server| {
                    json!({"project": server.project, "name": server.name, "flavor": server.flavor,
                        "volumes": server.volumes, "ports": server.ports.iter().map(port).collect::<Vec<_>>()})
                })
                .collect();
            let volumes: Map<String, Value> =
                world.volumes.iter().map(|volume| (volume.id.clone(), json!(volume.project))).collect();
            json!({"servers": servers, "volumes": volumes, "ports": world.ports.len(),
                "transfers": world.transfers.len()})
        })
    }
}

fn openstack(wanted: &Value) -> Fake {
    let fake = Fake::start();
    for id in wanted["volumes"].as_array().into_iter().flatten() {
        let id = id.as_str().expect("the id of a volume");
        // virt-v2v lets the first be booted from.
        fake.world(|world| world.add_volume(id, "p", "volume of virt-v2v").bootable = true);
    }
    for fault in wanted["faults"].as_array().into_iter().flatten() {
        let status = fault["status"].as_u64().expect("a status");
        let method = match fault["method"].as_str() {
            Some("POST") => "POST",
            Some("DELETE") => "DELETE",
            Some("PUT") => "PUT",
            _ => "GET",
        };
        let harm = Harm::Refuse(u16::try_from(status).expect("a status"), "the case refuses it");
        let path = Regex::new(fault["path"].as_str().expect("a path")).expect("pattern");
        fake.fail(Fault { path, ..Fault::always(method, "", harm) });
    }
    fake
}

fn ovirt(wanted: &Value, input: &Value, sandbox: &Sandbox) -> Engine {
    let directory = sandbox.path("engine");
    std::fs::create_dir_all(&directory).expect("a directory");
    let engine = Engine::start(&directory);
    let mut world = engine.world();
    world.password = input["rhv_password"].as_str().expect("a password").to_owned();
    if let Some(kind) = wanted.get("storage_type") {
        world.storage[0]["storage"]["type"] = kind.clone();
    }
    drop(world);
    engine
}

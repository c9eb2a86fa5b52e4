//! Nova v2.1: servers of volumes, attachments, flavors, limits.

use serde_json::{Value, json};

use super::super::http::{Answer, Request};
use super::state::{Image, Server, Token, Volume};
use super::{World, refuse};

pub fn version() -> Answer {
    let links = json!([]);
    let version = json!({"id": "v2.1", "status": "CURRENT", "version": "2.93", "min_version": "2.1",
        "updated": "2013-07-23T11:33:21Z", "links": links, "media-types": []});
    Answer::new(200, json!({"version": version}))
}

fn links() -> Value {
    json!([{"rel": "self", "href": "http://nowhere/"}, {"rel": "bookmark", "href": "http://nowhere/"}])
}

fn shown(world: &World, server: &Server) -> Value {
    let ports = world.ports.iter().filter(|port| port.device == server.id);
    let addresses: Vec<Value> = ports
        .flat_map(|port| {
            port.ips.iter().map(|ip| {
                json!({"version": if ip.contains(':') { 6 } else { 4 }, "addr": ip, "OS-EXT-IPS:type": "fixed",
                    "OS-EXT-IPS-MAC:mac_addr": port.mac})
            })
        })
        .collect();
    let is_active = server.status == "ACTIVE";
    let volumes: Vec<Value> = server.volumes.iter().map(|id| json!({"id": id})).collect();
    let groups = json!([{"name": "sg1"}]);
    let mut value = json!({
        "id": server.id, "name": server.name, "status": server.status, "tenant_id": server.project, "user_id": "admin",
        "metadata": server.metadata, "hostId": "",
        "image": server.image.as_ref().map_or(json!(""), |image| json!({"id": image, "links": links()})), "flavor": {"id": server.flavor, "links": links()},
        "created": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z",
        "addresses": if addresses.is_empty() { json!({}) } else { json!({"net": addresses}) },
        "accessIPv4": server.access, "accessIPv6": "", "links": links(), "OS-DCF:diskConfig": "MANUAL",
        "OS-EXT-AZ:availability_zone": "nova", "config_drive": "", "key_name": null, "OS-SRV-USG:launched_at": null,
        "OS-SRV-USG:terminated_at": null,
        "OS-EXT-STS:task_state": if server.next.is_some() { json!("spawning") } else { Value::Null },
        "OS-EXT-STS:vm_state": server.status.to_lowercase(), "OS-EXT-STS:power_state": u8::from(is_active),
        "os-extended-volumes:volumes_attached": volumes,
    });
    if is_active {
        value["progress"] = json!(0);
        value["security_groups"] = groups;
    }
    if let Some(words) = server.fault.as_ref().filter(|_| server.status == "ERROR") {
        value["fault"] = json!({"code": 500, "created": "2026-01-01T00:00:00Z", "message": words});
    }
    value
}

pub fn answer(world: &mut World, token: &Token, request: &Request, method: &str, path: &[&str]) -> Answer {
    match (method, path) {
        ("GET", ["flavors"]) => {
            let entry = |(id, ..): &(String, u64, u64)| json!({"id": id, "name": id, "links": links()});
            Answer::new(200, json!({"flavors": world.flavors.iter().map(entry).collect::<Vec<_>>()}))
        }
        ("GET", ["flavors", id]) => match world.flavors.iter().find(|(own, ..)| own == id) {
            Some((id, ram, vcpus)) => Answer::new(
                200,
                json!({"flavor": {"id": id, "name": id, "ram": ram, "disk": 0, "swap": "", "OS-FLV-EXT-DATA:ephemeral": 0,
                    "OS-FLV-DISABLED:disabled": false, "vcpus": vcpus, "os-flavor-access:is_public": true,
                    "rxtx_factor": 1.0, "links": links()}}),
            ),
            None => refuse(404, &format!("Flavor {id} could not be found.")),
        },
        ("GET", ["limits"]) => {
            let used = world.servers.iter().filter(|server| server.project == token.project).count() as u64;
            Answer::new(
                200,
                json!({"limits": {"rate": [], "absolute": {
                    "maxTotalInstances": world.quota["instances"], "maxTotalCores": 20, "maxTotalRAMSize": 51200,
                    "maxServerMeta": 128, "maxImageMeta": 128, "maxPersonality": 5, "maxPersonalitySize": 10240,
                    "maxTotalKeypairs": 100, "maxServerGroups": 10, "maxServerGroupMembers": 10,
                    "maxTotalFloatingIps": -1, "maxSecurityGroups": -1, "maxSecurityGroupRules": -1,
                    "totalRAMUsed": used * 512, "totalCoresUsed": used, "totalInstancesUsed": used,
                    "totalFloatingIpsUsed": 0, "totalSecurityGroupsUsed": 0, "totalServerGroupsUsed": 0}}}),
            )
        }
        ("GET", ["servers"] | ["servers", "detail"]) => {
            world.look_at_servers(|server| server.project == token.project);
            let mine = world.servers.iter().filter(|server| server.project == token.project);
            let mut all: Vec<Value> = mine.map(|server| shown(world, server)).collect();
            if path.len() == 1 {
                all =
                    all.iter().map(|s| json!({"id": s["id"], "name": s["name"], "links": links()})).collect();
            }
            Answer::new(200, json!({"servers": all}))
        }
        ("POST", ["servers"]) => create(world, token, &request.body["server"]),
        (_, ["servers", id, rest @ ..]) => {
            if method == "GET" {
                world.look_at_servers(|server| server.id == *id);
            }
            let mine = |server: &Server| server.id == *id && server.project == token.project;
            let Some(at) = world.servers.iter().position(mine) else {
                return refuse(404, &format!("Instance {id} could not be found."));
            };
            one(world, at, method, rest, request)
        }
        _ => refuse(404, "The resource could not be found."),
    }
}

fn create(world: &mut World, token: &Token, wanted: &Value) -> Answer {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&wanted["name"]);
    if name.trim() != name || name.chars().any(|character| character as u32 >= 0xffff) {
        let words = format!(
            "Invalid input for field/attribute name. Value: {name}. Can not start or end with whitespace."
        );
        return refuse(400, &words);
    }
    let flavor = text(&wanted["flavorRef"]);
    if !world.flavors.iter().any(|(id, ..)| *id == flavor) {
        return refuse(400, &format!("Flavor {flavor} could not be found."));
    }
    let used = world.servers.iter().filter(|server| server.project == token.project).count() as u64;
    if used >= world.quota["instances"] {
        return refuse(403, "Quota exceeded for instances: Requested 1, but already used all");
    }
    let mut disks: Vec<Value> = wanted["block_device_mapping_v2"].as_array().cloned().unwrap_or_default();
    disks.sort_by_key(|disk| disk["boot_index"] != 0);
    let mut volumes = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let id = text(&disk["uuid"]);
        let volume = world.volumes.iter().find(|volume| volume.id == id && volume.project == token.project);
        let Some(volume) = volume else {
            return refuse(400, &format!("Block Device Mapping is Invalid: failed to get volume {id}."));
        };
        if volume.status != "available" {
            return refuse(400, &format!("Invalid volume: Volume {id} status is {}.", volume.status));
        }
        if index == 0 && !volume.bootable && !world.boots_all {
            return refuse(400, &format!("Block Device {id} is not bootable."));
        }
        volumes.push(id);
    }
    if volumes.is_empty() {
        return refuse(400, "Invalid imageRef provided.");
    }
    let mut ports = Vec::new();
    for network in wanted["networks"].as_array().into_iter().flatten() {
        let id = text(&network["port"]);
        match world.ports.iter().find(|port| port.id == id) {
            None => return refuse(400, &format!("Port id {id} could not be found.")),
            Some(port) if !port.device.is_empty() => {
                return refuse(409, &format!("Port {id} is still in use."));
            }
            Some(_) => ports.push(id),
        }
    }
    let id = world.id();
    world
        .ports
        .iter_mut()
        .filter(|port| ports.contains(&port.id))
        .for_each(|port| port.device.clone_from(&id));
    let doom = world.doom.take();
    for (index, volume) in volumes.iter().enumerate() {
        let device = format!("/dev/vd{}", char::from(b'a' + u8::try_from(index).unwrap()));
        for own in world.volumes.iter_mut().filter(|own| own.id == *volume && doom.is_none()) {
            (own.status, own.attached) = ("in-use", Some((id.clone(), device.clone())));
        }
    }
    let end = if doom.is_some() { "ERROR" } else { "ACTIVE" };
    world.servers.push(Server {
        id: id.clone(),
        project: token.project.clone(),
        name: text(&wanted["name"]),
        flavor,
        status: "BUILD",
        next: Some((world.looks, end)),
        metadata: wanted["metadata"].as_object().cloned().unwrap_or_default(),
        volumes,
        ports,
        fault: doom,
        access: String::new(),
        image: None,
        leaving: Vec::new(),
        actions: vec!["create"],
    });
    let groups = json!([{"name": "default"}]);
    let groups =
        if wanted["security_groups"].is_array() { wanted["security_groups"].clone() } else { groups };
    Answer::new(
        202,
        json!({"server": {"id": id, "links": links(), "OS-DCF:diskConfig": "MANUAL", "security_groups": groups,
            "adminPass": "x"}}),
    )
}

fn one(world: &mut World, at: usize, method: &str, path: &[&str], request: &Request) -> Answer {
    let (looks, server, body) = (world.looks, world.servers[at].id.clone(), &request.body);
    // Since 2.79; older ones neither show nor take it.
    let has_manner = request.header("openstack-api-version") == Some("compute 2.79");
    let attachment = |volume: &Volume| {
        let device = volume.attached.as_ref().map(|(_, device)| device);
        let mut shown = json!({"id": volume.id, "volumeId": volume.id, "serverId": server, "device": device});
        if has_manner {
            (shown["tag"], shown["delete_on_termination"]) = (json!(volume.manner.0), json!(volume.manner.1));
        }
        json!(shown)
    };
    match (method, path) {
        ("GET", []) => Answer::new(200, json!({"server": shown(world, &world.servers[at])})),
        ("DELETE", []) => {
            let server = &mut world.servers[at];
            server.next = Some((looks, "GONE"));
            Answer::empty(204)
        }
        ("GET", ["os-instance-actions"]) => {
            let server = &world.servers[at];
            let action = |(number, action): (usize, &&str)| {
                json!({"action": action, "instance_uuid": server.id, "message": null, "project_id": server.project,
                    "request_id": format!("req-{number}"), "start_time": "2026-01-01T00:00:00.000000", "user_id": "admin"})
            };
            let all: Vec<Value> = server.actions.iter().enumerate().map(action).rev().collect();
            Answer::new(200, json!({"instanceActions": all}))
        }
        ("GET", ["os-volume_attachments"]) => {
            let leaving = &mut world.servers[at].leaving;
            leaving.retain(|(_, looks)| *looks > 0);
            leaving.iter_mut().for_each(|(_, looks)| *looks -= 1);
            let server = &world.servers[at];
            let leaving = server.leaving.iter().map(|(id, _)| id);
            let volumes = server.volumes.iter().chain(leaving).filter_map(|id| world.volume(id));
            Answer::new(200, json!({"volumeAttachments": volumes.map(attachment).collect::<Vec<_>>()}))
        }
        ("GET", ["os-volume_attachments", id]) => {
            if let Some((_, looks)) =
                world.servers[at].leaving.iter_mut().find(|(own, looks)| own == id && *looks > 0)
            {
                *looks -= 1;
                let volume = world.volume(id).cloned().unwrap();
                return Answer::new(200, json!({"volumeAttachment": attachment(&volume)}));
            }
            world.servers[at].leaving.retain(|(own, _)| own != id);
            let volume = world.servers[at].volumes.iter().find(|own| own == id);
            match volume.and_then(|id| world.volume(id)) {
                Some(volume) => Answer::new(200, json!({"volumeAttachment": attachment(volume)})),
                None => refuse(404, &format!("Instance {server} is not attached to volume {id}")),
            }
        }
        ("POST", ["action"]) if body["createImage"].is_object() => {
            let wanted = &body["createImage"];
            let image = Image {
                id: world.id(),
                project: world.servers[at].project.clone(),
                name: wanted["name"].as_str().unwrap_or_default().to_owned(),
                server,
                min_disk: 1,
                status: "queued",
                next: Some((looks, "active")),
                metadata: wanted["metadata"].as_object().cloned().unwrap_or_default(),
            };
            // Since 2.45.
            let answer = json!({"image_id": image.id});
            world.images.push(image);
            world.servers[at].actions.push("createImage");
            Answer::new(202, answer)
        }
        ("POST", ["os-volume_attachments"]) => {
            let id = body["volumeAttachment"]["volumeId"].as_str().unwrap_or_default().to_owned();
            let project = world.servers[at].project.clone();
            let wanted = &body["volumeAttachment"];
            if !has_manner && (wanted.get("tag").is_some() || wanted.get("delete_on_termination").is_some()) {
                return refuse(400, "Invalid input for field/attribute volumeAttachment.");
            }
            // The first that is free, whatever name is asked for: so does libvirt.
            let device =
                (b'b'..=b'z').map(|letter| format!("/dev/vd{}", char::from(letter))).find(|device| {
                    let place = Some((server.clone(), device.clone()));
                    !world.volumes.iter().any(|volume| volume.attached == place)
                });
            let volume = world.volumes.iter_mut().find(|volume| volume.id == id && volume.project == project);
            let Some(volume) = volume else {
                return refuse(404, &format!("Volume {id} could not be found."));
            };
            let leaving =
                world.servers.iter().find(|server| server.leaving.iter().any(|(own, _)| *own == id));
            let leaving = leaving.map(|server| (server.id.clone(), String::new()));
            if let Some((other, _)) = volume.attached.as_ref().or(leaving.as_ref()) {
                let words = format!("Invalid volume: volume {id} is already attached to instances: {other}");
                return refuse(400, &words);
            }
            if volume.status != "available" {
                return refuse(
                    400,
                    &format!(
                        "Invalid volume: Volume {id} status must be available or downloading to reserve"
                    ),
                );
            }
            if !world.keeps_available {
                (volume.status, volume.next) = ("attaching", Some((looks, "in-use")));
            }
            volume.attached = device.map(|device| (server.clone(), device));
            volume.manner =
                (wanted["tag"].as_str().map(str::to_owned), wanted["delete_on_termination"] == true);
            let answer = json!({"volumeAttachment": attachment(volume)});
            world.servers[at].volumes.push(id);
            world.servers[at].actions.push("attach_volume");
            Answer::new(200, answer)
        }
        ("DELETE", ["os-volume_attachments", id]) => {
            if !world.servers[at].volumes.iter().any(|own| own == id) {
                return refuse(404, &format!("Instance {server} is not attached to volume {id}"));
            }
            let volume = world.volumes.iter_mut().find(|volume| volume.id == *id).unwrap();
            if world.keeps_available {
                volume.attached = None;
                world.servers[at].volumes.retain(|own| own != id);
                return Answer::empty(202);
            }
            if volume.status != "in-use" {
                return refuse(
                    409,
                    &format!("Invalid volume: Invalid input received: volume {id} is {}", volume.status),
                );
            }
            if volume.attached.as_ref().is_some_and(|(_, device)| device == "/dev/vda") {
                return refuse(400, "Cannot detach a root device volume");
            }
            (volume.status, volume.next) = ("detaching", Some((looks, "available")));
            world.servers[at].volumes.retain(|own| own != id);
            world.servers[at].leaving.push(((*id).to_owned(), looks));
            world.servers[at].actions.push("detach_volume");
            Answer::empty(202)
        }
        _ => refuse(404, "The resource could not be found."),
    }
}

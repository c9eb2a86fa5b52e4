//! Neutron v2.0: networks, subnets, ports, security groups, quotas.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::http::{Answer, Request};
use super::World;
use super::state::{Network, Port, Token};

pub fn version() -> Answer {
    Answer::new(200, json!({"versions": [{"id": "v2.0", "status": "CURRENT", "links": []}]}))
}

pub fn error(kind: &str, words: &str) -> Value {
    json!({"NeutronError": {"type": kind, "message": words, "detail": ""}})
}

fn refuse(status: u16, kind: &str, words: &str) -> Answer {
    Answer::new(status, error(kind, words))
}

fn times(mut value: Value, project: &str) -> Value {
    let more = json!({"tenant_id": project, "project_id": project, "description": "", "tags": [],
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "revision_number": 1});
    for (key, text) in more.as_object().unwrap() {
        value.as_object_mut().unwrap().entry(key).or_insert(text.clone());
    }
    value
}

fn network(network: &Network) -> Value {
    let subnets: Vec<String> =
        (0..network.ranges.len()).map(|at| format!("{}-subnet-{at}", network.id)).collect();
    times(
        json!({"id": network.id, "name": network.name, "admin_state_up": true, "mtu": 1500, "status": "ACTIVE",
            "subnets": subnets, "shared": false, "availability_zone_hints": [], "availability_zones": [],
            "ipv4_address_scope": null, "ipv6_address_scope": null, "router:external": false}),
        &network.project,
    )
}

fn subnets(network: &Network) -> Vec<Value> {
    let one = |(at, range): (usize, &&'static str)| {
        times(
            json!({"id": format!("{}-subnet-{at}", network.id), "name": "", "network_id": network.id,
                "ip_version": if range.contains(':') { 6 } else { 4 }, "subnetpool_id": null, "enable_dhcp": false,
                "ipv6_ra_mode": null, "ipv6_address_mode": null, "gateway_ip": null, "cidr": range,
                "allocation_pools": [{"start": range, "end": range}], "host_routes": [], "dns_nameservers": [], "service_types": []}),
            &network.project,
        )
    };
    network.ranges.iter().enumerate().map(one).collect()
}

fn port(port: &Port) -> Value {
    let ips: Vec<Value> =
        port.ips.iter().map(|ip| json!({"subnet_id": "subnet", "ip_address": ip})).collect();
    times(
        json!({"id": port.id, "name": port.name, "network_id": port.network, "mac_address": port.mac,
            "admin_state_up": true, "status": if port.device.is_empty() { "DOWN" } else { "ACTIVE" },
            "device_id": port.device, "device_owner": if port.device.is_empty() { "" } else { "compute:nova" },
            "fixed_ips": ips, "allowed_address_pairs": [], "extra_dhcp_opts": [], "security_groups": port.groups,
            "description": port.description, "binding:vnic_type": "normal"}),
        &port.project,
    )
}

fn group(id: &str, project: &str) -> Value {
    times(
        json!({"id": id, "name": format!("{id} by name"), "stateful": true, "shared": false, "security_group_rules": []}),
        project,
    )
}

pub fn answer(world: &mut World, token: &Token, request: &Request, method: &str, path: &[&str]) -> Answer {
    let named = |value: &Value| request.query("name").is_none_or(|name| value["name"] == *name);
    let missing = |kind: &str, words: &str, id: &str| {
        refuse(404, &format!("{kind}NotFound"), &format!("{words} {id} could not be found."))
    };
    match (method, path) {
        ("GET", ["networks"]) => {
            let mine = world.networks.iter().filter(|network| network.project == token.project);
            let all: Vec<Value> = mine.map(network).filter(named).collect();
            Answer::new(200, json!({"networks": all}))
        }
        ("GET", ["networks", id]) => {
            let mine = |own: &&Network| own.id == *id && own.project == token.project;
            match world.networks.iter().find(mine) {
                Some(found) => Answer::new(200, json!({"network": network(found)})),
                None => missing("Network", "Network", id),
            }
        }
        ("GET", ["subnets"]) => {
            let wanted = request.query("network_id");
            let of = |network: &&Network| {
                network.project == token.project && wanted.as_ref().is_none_or(|id| network.id == *id)
            };
            let all: Vec<Value> = world.networks.iter().filter(of).flat_map(subnets).collect();
            Answer::new(200, json!({"subnets": all}))
        }
        ("GET", ["security-groups"]) => {
            let mine = world.groups.iter().filter(|(_, project)| *project == token.project);
            let all: Vec<Value> = mine.map(|(id, project)| group(id, project)).filter(named).collect();
            Answer::new(200, json!({"security_groups": all}))
        }
        ("GET", ["security-groups", id]) => {
            match world.groups.iter().find(|(own, project)| own == id && *project == token.project) {
                Some((id, project)) => Answer::new(200, json!({"security_group": group(id, project)})),
                None => refuse(404, "SecurityGroupNotFound", &format!("Security group {id} does not exist")),
            }
        }
        ("GET", ["ports"]) => {
            let mine = world.ports.iter().filter(|port| port.project == token.project);
            let all: Vec<Value> = mine.map(port).filter(named).collect();
            Answer::new(200, json!({"ports": all}))
        }
        ("POST", ["ports"]) => create(world, token, &request.body["port"]),
        (_, ["ports", id]) => {
            let mine = |own: &Port| own.id == *id && own.project == token.project;
            let Some(at) = world.ports.iter().position(mine) else { return missing("Port", "Port", id) };
            if method == "DELETE" {
                world.ports.remove(at);
                return Answer::empty(204);
            }
            Answer::new(200, json!({"port": port(&world.ports[at])}))
        }
        ("GET", ["quotas", _, "details.json" | "details"]) => {
            let used = world.ports.iter().filter(|port| port.project == token.project).count();
            let quota = |limit: u64, used: usize| json!({"limit": limit, "used": used, "reserved": 0});
            let port = quota(world.quota["ports"], used);
            Answer::new(
                200,
                json!({"quota": {"network": quota(100, 2), "subnet": quota(100, 3), "subnetpool": quota(100, 0),
                    "port": port, "rbac_policy": quota(10, 0), "security_group": quota(10, 2),
                    "security_group_rule": quota(100, 6)}}),
            )
        }
        ("GET", ["quotas", _]) => Answer::new(200, json!({"quota": {"port": world.quota["ports"]}})),
        _ => refuse(404, "HTTPNotFound", "The resource could not be found."),
    }
}

fn create(world: &mut World, token: &Token, wanted: &Value) -> Answer {
    let text = |key: &str| wanted[key].as_str().unwrap_or_default().to_owned();
    if world.refuses_descriptions && !wanted["description"].is_null() {
        return refuse(400, "HTTPBadRequest", "Unrecognized attribute(s) 'description'");
    }
    let wanted_network = text("network_id");
    let Some(found) =
        world.networks.iter().find(|own| own.id == wanted_network && own.project == token.project)
    else {
        let words = format!("Network {wanted_network} could not be found.");
        return refuse(404, "NetworkNotFound", &words);
    };
    let used = world.ports.iter().filter(|port| port.project == token.project).count() as u64;
    if used >= world.quota["ports"] {
        return refuse(409, "OverQuota", "Quota exceeded for resources: ['port'].");
    }
    let texts = |key: &str| -> Vec<String> {
        wanted[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let groups = texts("security_groups");
    if let Some(group) = groups.iter().find(|group| !world.groups.iter().any(|(id, _)| id == *group)) {
        return refuse(404, "SecurityGroupNotFound", &format!("Security group {group} does not exist"));
    }
    let addresses: Vec<String> = wanted["fixed_ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["ip_address"].as_str().map(str::to_owned))
        .collect();
    for ip in &addresses {
        if !found.ranges.iter().any(|range| is_within(ip, range)) {
            let words =
                format!("IP address {ip} is not a valid IP for any of the subnets on the specified network.");
            return refuse(400, "InvalidIpForNetwork", &words);
        }
        if world.ports.iter().any(|port| port.network == wanted_network && port.ips.contains(ip)) {
            let words = format!("IP address {ip} already allocated in subnet subnet");
            return refuse(409, "IpAddressAlreadyAllocated", &words);
        }
    }
    // One of each subnet where none is asked for, as neutron does.
    let ips = match addresses.is_empty() {
        false => addresses,
        true => found.ranges.iter().map(|range| free(world, range)).collect(),
    };
    let mac = match text("mac_address") {
        mac if mac.is_empty() => {
            format!("fa:16:3e:00:{:02x}:{:02x}", world.count >> 8 & 255, world.count & 255)
        }
        mac => mac.to_lowercase(),
    };
    if world.ports.iter().any(|port| port.network == wanted_network && port.mac == mac) {
        let words = format!(
            "Unable to complete operation for network {wanted_network}. The mac address {mac} is in use."
        );
        return refuse(409, "MacAddressInUse", &words);
    }
    let port_ = Port {
        id: world.id(),
        project: token.project.clone(),
        name: text("name"),
        description: text("description"),
        network: wanted_network,
        mac,
        ips,
        groups,
        device: String::new(),
    };
    let value = port(&port_);
    world.ports.push(port_);
    Answer::new(201, json!({"port": value}))
}

/// The first address of a range that nobody has.
fn free(world: &World, range: &str) -> String {
    let (first, _) = range.split_once('/').unwrap();
    let base = first.strip_suffix(".0").map(|base| format!("{base}.")).unwrap_or_else(|| first.to_owned());
    let taken = |ip: &String| world.ports.iter().any(|port| port.ips.contains(ip));
    (100..200).map(|number| format!("{base}{number}")).find(|ip| !taken(ip)).unwrap()
}

fn is_within(ip: &str, range: &str) -> bool {
    let bits = |ip: &str| match ip.parse() {
        Ok(IpAddr::V4(ip)) => Some((32, u128::from(u32::from(ip)))),
        Ok(IpAddr::V6(ip)) => Some((128, u128::from(ip))),
        Err(_) => None,
    };
    let (first, length) = range.split_once('/').unwrap();
    let length: u32 = length.parse().unwrap();
    match (bits(ip), bits(first)) {
        (Some((width, ip)), Some((other, first))) if width == other => {
            ip.checked_shr(width - length) == first.checked_shr(width - length)
        }
        _ => false,
    }
}

//! Cinder v3: volumes, their actions, transfers, types, limits.

use serde_json::{Map, Value, json};

use super::super::http::{Answer, Request};
use super::state::{Token, Transfer, Volume};
use super::{World, refuse, snapshot};

const NOT_FREE: &str = "Invalid volume: Volume status must be available or error or error_restoring or error_extending or \
                        error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a \
                        transfer, or be disassociated from snapshots after volume transfer.";

pub fn version() -> Answer {
    let version =
        json!({"id": "v3.0", "status": "CURRENT", "version": "3.70", "min_version": "3.0", "links": []});
    Answer::new(300, json!({"versions": [version]}))
}

fn shown(world: &World, volume: &Volume) -> Value {
    let attachments: Vec<Value> = volume
        .attached
        .iter()
        .filter(|_| volume.status == "in-use" || volume.status == "detaching")
        .map(|(server, device)| {
            json!({"id": volume.id, "attachment_id": format!("at-{}", volume.id), "volume_id": volume.id,
                "server_id": server, "host_name": null, "device": device, "attached_at": "2026-01-01T00:00:00.000000"})
        })
        .collect();
    let mut value = json!({
        "id": volume.id, "status": volume.status, "size": volume.size, "availability_zone": "nova",
        "created_at": "2026-01-01T00:00:00.000000", "updated_at": null, "name": volume.name,
        "description": volume.description, "volume_type": volume.kind, "snapshot_id": null, "source_volid": null,
        "metadata": volume.metadata, "links": [{"rel": "self", "href": format!("{}/x", world.base)}],
        "user_id": "admin", "bootable": volume.bootable.to_string(), "encrypted": false, "replication_status": null,
        "consistencygroup_id": null, "multiattach": false, "attachments": attachments,
        "os-vol-tenant-attr:tenant_id": volume.project,
    });
    if !volume.image_metadata.is_empty() {
        value["volume_image_metadata"] = json!(volume.image_metadata);
    }
    value
}

fn offer(world: &World, transfer: &Transfer) -> Value {
    json!({"id": transfer.id, "created_at": "2026-01-01T00:00:00.000000", "name": transfer.name,
        "volume_id": transfer.volume, "links": [{"rel": "self", "href": format!("{}/x", world.base)}]})
}

pub fn answer(world: &mut World, token: &Token, request: &Request, method: &str, path: &[&str]) -> Answer {
    let own =
        |world: &World, id: &str| world.volumes.iter().position(|v| v.id == id && v.project == token.project);
    // A server goes by itself, whoever looks.
    if method == "GET" {
        world.look_at_servers(|server| matches!(server.next, Some((_, "GONE"))));
    }
    match (method, path) {
        ("GET", ["volumes"] | ["volumes", "detail"]) => {
            world.look_at_volumes(|volume| volume.project == token.project);
            let mine = world.volumes.iter().filter(|volume| volume.project == token.project);
            let mut all: Vec<Value> = mine.map(|volume| shown(world, volume)).collect();
            if path.len() == 1 {
                all = all
                    .iter()
                    .map(|v| json!({"id": v["id"], "name": v["name"], "links": v["links"]}))
                    .collect();
            }
            Answer::new(200, json!({"volumes": all}))
        }
        ("POST", ["volumes"]) => create(world, token, &request.body["volume"]),
        (_, ["volumes", id, rest @ ..]) => {
            if method == "GET" {
                world.look_at_volumes(|volume| volume.id == *id);
            }
            let Some(at) = own(world, id) else {
                if world.forbids_others && world.volume(id).is_some() {
                    return refuse(403, "Policy doesn't allow volume:get to be performed.");
                }
                return refuse(404, &format!("Volume {id} could not be found."));
            };
            one(world, at, method, rest, &request.body)
        }
        (_, ["snapshots", rest @ ..]) => snapshot::answer(world, token, method, rest, &request.body),
        ("GET", ["types"]) => Answer::new(200, json!({"volume_types": types()})),
        ("GET", ["types", id]) => match types().into_iter().find(|kind| kind["id"] == *id) {
            Some(kind) => Answer::new(200, json!({"volume_type": kind})),
            None => refuse(404, &format!("Volume type {id} could not be found.")),
        },
        ("GET", ["limits"]) => {
            let mine = || world.volumes.iter().filter(|volume| volume.project == token.project);
            let used: u64 = mine().map(|volume| volume.size).sum();
            Answer::new(
                200,
                json!({"limits": {"rate": [], "absolute": {
                    "maxTotalVolumes": world.quota["volumes"], "maxTotalSnapshots": 10,
                    "maxTotalVolumeGigabytes": world.quota["gigabytes"], "maxTotalBackups": 10,
                    "maxTotalBackupGigabytes": 1000, "totalVolumesUsed": mine().count(), "totalGigabytesUsed": used,
                    "totalSnapshotsUsed": 0, "totalBackupsUsed": 0, "totalBackupGigabytesUsed": 0}}}),
            )
        }
        (_, ["os-volume-transfer" | "volume-transfers", rest @ ..]) => {
            transfers(world, token, method, rest, &request.body)
        }
        _ => refuse(404, "The resource could not be found."),
    }
}

fn types() -> Vec<Value> {
    let kind = |id: &str, name: &str| {
        json!({"id": id, "name": name, "is_public": true, "description": "", "extra_specs": {},
            "os-volume-type-access:is_public": true})
    };
    vec![kind("type-default", "__DEFAULT__"), kind("type-fast", "fast")]
}

fn create(world: &mut World, token: &Token, wanted: &Value) -> Answer {
    let mine = world.volumes.iter().filter(|volume| volume.project == token.project).count();
    if mine as u64 >= world.quota["volumes"] {
        return refuse(
            413,
            "VolumeLimitExceeded: Maximum number of volumes allowed exceeded for quota 'volumes'.",
        );
    }
    let kind = wanted["volume_type"].as_str().unwrap_or("__DEFAULT__");
    let Some(kind) = types().into_iter().find(|one| one["id"] == kind || one["name"] == kind) else {
        return refuse(404, &format!("Volume type {kind} could not be found."));
    };
    let origin = match (wanted["snapshot_id"].as_str(), wanted["imageRef"].as_str()) {
        (Some(id), _) => match world.snapshots.iter().find(|snapshot| snapshot.id == id) {
            Some(snapshot) if snapshot.status == "available" => Some(snapshot.volume.clone()),
            Some(_) => {
                return refuse(
                    400,
                    "Invalid snapshot: Originating snapshot status must be one of 'available' values",
                );
            }
            None => return refuse(404, &format!("Snapshot {id} could not be found.")),
        },
        (None, Some(id)) => match world.images.iter().find(|image| image.id == id) {
            Some(image) if image.status == "active" => Some(image.server.clone()),
            _ => return refuse(400, "Invalid image identifier or unable to access requested image."),
        },
        (None, None) => None,
    };
    let of_image = wanted["imageRef"].is_string();
    let (id, looks) = (world.id(), world.looks);
    let volume = world.add_volume(&id, &token.project, wanted["name"].as_str().unwrap_or_default());
    (volume.origin, volume.bootable) = (origin, of_image);
    volume.description = wanted["description"].clone();
    volume.size = wanted["size"].as_u64().unwrap_or(1);
    volume.metadata = wanted["metadata"].as_object().cloned().unwrap_or_default();
    volume.kind = kind["name"].as_str().unwrap().to_owned();
    (volume.status, volume.next) = ("creating", Some((looks, "available")));
    let mut value = shown(world, world.volumes.last().unwrap());
    value.as_object_mut().unwrap().remove("os-vol-tenant-attr:tenant_id");
    Answer::new(202, json!({"volume": value}))
}

fn one(world: &mut World, at: usize, method: &str, path: &[&str], body: &Value) -> Answer {
    let looks = world.looks;
    let add =
        |to: &mut Map<String, Value>, more: &Value| to.extend(more.as_object().cloned().unwrap_or_default());
    match (method, path) {
        ("GET", []) => Answer::new(200, json!({"volume": shown(world, &world.volumes[at])})),
        ("DELETE", []) => {
            let volume = &mut world.volumes[at];
            if !volume.status.starts_with("error") && volume.status != "available" {
                return refuse(400, NOT_FREE);
            }
            let id = volume.id.clone();
            if world.snapshots.iter().any(|snapshot| snapshot.volume == id) {
                return refuse(400, NOT_FREE);
            }
            let volume = &mut world.volumes[at];
            (volume.status, volume.next) = ("deleting", Some((looks, "gone")));
            Answer::empty(202)
        }
        ("POST", ["metadata"]) => {
            let volume = &mut world.volumes[at];
            add(&mut volume.metadata, &body["metadata"]);
            Answer::new(200, json!({"metadata": volume.metadata}))
        }
        ("POST", ["action"]) => {
            let volume = &mut world.volumes[at];
            if let Some(bootable) = body["os-set_bootable"]["bootable"].as_bool() {
                volume.bootable = bootable;
                return Answer::empty(200);
            }
            if let Some(metadata) = body["os-set_image_metadata"].get("metadata") {
                add(&mut volume.image_metadata, metadata);
                return Answer::new(200, json!({"metadata": volume.image_metadata}));
            }
            if body.get("os-reset_status").is_some() {
                return refuse(
                    403,
                    "Policy doesn't allow volume_extension:volume_admin_actions:reset_status to be performed.",
                );
            }
            refuse(400, "There is no such action.")
        }
        _ => refuse(404, "The resource could not be found."),
    }
}

fn transfers(world: &mut World, token: &Token, method: &str, path: &[&str], body: &Value) -> Answer {
    match (method, path) {
        ("GET", [] | ["detail"]) => {
            let mine = world.transfers.iter().filter(|transfer| transfer.project == token.project);
            let all: Vec<Value> = mine.map(|transfer| offer(world, transfer)).collect();
            Answer::new(200, json!({"transfers": all}))
        }
        ("POST", []) => {
            let wanted = &body["transfer"];
            let volume = wanted["volume_id"].as_str().unwrap_or_default().to_owned();
            let found = world.volumes.iter_mut().find(|own| own.id == volume && own.project == token.project);
            let Some(found) = found else {
                return refuse(404, &format!("Volume {volume} could not be found."));
            };
            if found.status != "available" {
                return refuse(400, "Invalid volume: status must be available");
            }
            found.status = "awaiting-transfer";
            let (id, key) = (world.id(), format!("key-{}", world.count));
            let name = wanted["name"].as_str().unwrap_or_default().to_owned();
            let transfer = Transfer { id, project: token.project.clone(), name, volume, key };
            let mut value = offer(world, &transfer);
            value["auth_key"] = json!(transfer.key);
            world.transfers.push(transfer);
            Answer::new(202, json!({"transfer": value}))
        }
        ("POST", [id, "accept"]) => {
            // Whoever has the key.
            let Some(at) = world.transfers.iter().position(|transfer| transfer.id == *id) else {
                return refuse(404, &format!("Transfer {id} could not be found."));
            };
            if body["accept"]["auth_key"] != world.transfers[at].key {
                return refuse(
                    400,
                    &format!("Invalid auth key: Attempt to transfer {id} with invalid auth key."),
                );
            }
            let transfer = world.transfers.remove(at);
            for volume in world.volumes.iter_mut().filter(|volume| volume.id == transfer.volume) {
                volume.project.clone_from(&token.project);
                volume.status = "available";
            }
            let mut value = offer(world, &transfer);
            value.as_object_mut().unwrap().remove("created_at");
            Answer::new(202, json!({"transfer": value}))
        }
        (_, [id]) => {
            let mine = |transfer: &Transfer| transfer.id == *id && transfer.project == token.project;
            let Some(at) = world.transfers.iter().position(mine) else {
                return refuse(404, &format!("Transfer {id} could not be found."));
            };
            if method == "GET" {
                return Answer::new(200, json!({"transfer": offer(world, &world.transfers[at])}));
            }
            let transfer = world.transfers.remove(at);
            let volumes = world.volumes.iter_mut().filter(|volume| volume.id == transfer.volume);
            volumes.for_each(|volume| volume.status = "available");
            Answer::empty(202)
        }
        _ => refuse(404, "The resource could not be found."),
    }
}

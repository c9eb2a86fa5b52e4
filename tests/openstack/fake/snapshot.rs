//! Cinder's snapshots.

use serde_json::{Value, json};

use super::super::http::Answer;
use super::state::{Snapshot, Token};
use super::{World, refuse};

fn shown(snapshot: &Snapshot) -> Value {
    json!({"id": snapshot.id, "name": snapshot.name, "status": snapshot.status, "volume_id": snapshot.volume,
        "size": 1, "metadata": snapshot.metadata, "description": null, "created_at": "2026-01-01T00:00:00.000000",
        "os-extended-snapshot-attributes:project_id": snapshot.project})
}

pub fn answer(world: &mut World, token: &Token, method: &str, path: &[&str], body: &Value) -> Answer {
    for snapshot in &mut world.snapshots {
        match &mut snapshot.next {
            _ if method != "GET" => {}
            Some((looks, _)) if *looks > 0 => *looks -= 1,
            Some((_, status)) => (snapshot.status, snapshot.next) = (status, None),
            None => {}
        }
    }
    world.snapshots.retain(|snapshot| snapshot.status != "gone");
    let looks = world.looks;
    let own = |world: &World, id: &str| {
        world.snapshots.iter().position(|snapshot| snapshot.id == id && snapshot.project == token.project)
    };
    match (method, path) {
        ("GET", [] | ["detail"]) => {
            let mine = world.snapshots.iter().filter(|snapshot| snapshot.project == token.project);
            Answer::new(200, json!({"snapshots": mine.map(shown).collect::<Vec<_>>()}))
        }
        ("POST", []) => {
            let wanted = &body["snapshot"];
            let id = wanted["volume_id"].as_str().unwrap_or_default().to_owned();
            let Some(volume) = world.volume(&id).filter(|volume| volume.project == token.project) else {
                return refuse(404, &format!("Volume {id} could not be found."));
            };
            if volume.status != "available" && wanted["force"] != true {
                return refuse(400, "Invalid volume: Volume status must be available to take a snapshot");
            }
            let snapshot = Snapshot {
                id: world.id(),
                project: token.project.clone(),
                name: wanted["name"].as_str().unwrap_or_default().to_owned(),
                volume: id,
                status: "creating",
                next: Some((looks, "available")),
                metadata: wanted["metadata"].as_object().cloned().unwrap_or_default(),
            };
            let answer = json!({"snapshot": shown(&snapshot)});
            world.snapshots.push(snapshot);
            Answer::new(202, answer)
        }
        ("GET", [id]) => match own(world, id) {
            Some(at) => Answer::new(200, json!({"snapshot": shown(&world.snapshots[at])})),
            None => refuse(404, &format!("Snapshot {id} could not be found.")),
        },
        ("DELETE", [id]) => match own(world, id) {
            Some(at) if world.snapshots[at].status == "available" => {
                (world.snapshots[at].status, world.snapshots[at].next) = ("deleting", Some((looks, "gone")));
                Answer::empty(202)
            }
            Some(_) => refuse(400, "Invalid snapshot: Snapshot status must be available or error"),
            None => refuse(404, &format!("Snapshot {id} could not be found.")),
        },
        _ => refuse(404, "The resource could not be found."),
    }
}

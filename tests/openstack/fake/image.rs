//! Glance v2: images that nova has made of servers.

use serde_json::{Value, json};

use super::super::http::{Answer, Request};
use super::state::{Image, Token};
use super::{World, refuse};

fn shown(image: &Image) -> Value {
    let mut value = json!({
        "id": image.id, "name": image.name, "status": image.status, "min_disk": image.min_disk, "min_ram": 0,
        "size": 12_345, "virtual_size": null, "disk_format": "raw", "container_format": "bare", "owner": image.project,
        "visibility": "private", "protected": false, "tags": [], "created_at": "2026-01-01T00:00:00Z",
    });
    // Properties stand beside the rest.
    value.as_object_mut().unwrap().extend(image.metadata.clone());
    value
}

pub fn answer(world: &mut World, token: &Token, request: &Request, method: &str, path: &[&str]) -> Answer {
    for image in &mut world.images {
        if method == "GET" {
            match &mut image.next {
                Some((looks, _)) if *looks > 0 => *looks -= 1,
                Some((_, status)) => (image.status, image.next) = (status, None),
                None => {}
            }
        }
    }
    let own = |world: &World, id: &str| {
        world.images.iter().position(|image| image.id == id && image.project == token.project)
    };
    match (method, path) {
        ("GET", ["images"]) => {
            let wanted = |image: &&Image| {
                let pairs = request.path.split_once('?').map_or("", |(_, query)| query).split('&');
                image.project == token.project
                    && pairs.filter_map(|pair| pair.split_once('=')).all(|(key, value)| {
                        shown(image)[key].as_str().is_none_or(|has| has == super::http::decoded(value))
                            && (key == "limit" || key == "marker" || !shown(image)[key].is_null())
                    })
            };
            let all: Vec<Value> = world.images.iter().filter(wanted).map(shown).collect();
            Answer::new(200, json!({"images": all}))
        }
        ("GET", ["images", id]) => match own(world, id) {
            Some(at) => Answer::new(200, shown(&world.images[at])),
            None => refuse(404, &format!("No image found with ID {id}")),
        },
        ("DELETE", ["images", id]) => match own(world, id) {
            Some(at) => {
                world.images.remove(at);
                Answer::empty(204)
            }
            None => refuse(404, &format!("Failed to find image {id} to delete")),
        },
        _ => refuse(404, "The resource could not be found."),
    }
}

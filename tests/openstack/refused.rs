//! What cannot end well is told before virt-v2v runs; and names that a shell, a pattern or a query would trip over.

use serde_json::{Value, json};

use super::fake::{Fault, Harm, World};
use super::site::{Mode, Site};

/// What is different in the cloud.
type Change = Box<dyn FnOnce(&mut World)>;

/// The message of a job that ends before virt-v2v has run, with nothing in the cloud touched.
fn refused(change: impl FnOnce(&mut World), more: &Value) -> Option<String> {
    let site = Site::new(Mode::OnePhase)?;
    // As if virt-v2v had not made anything yet.
    site.fake.world(|world| {
        world.volumes.retain(|volume| !site.volumes.contains(&volume.id));
        change(world);
    });
    let before = site.fake.world(|world| world.inventory());
    let last = site.run(more);
    assert_eq!(last["failed"], true, "{more}: {last:#}\n{}", site.fake.story());
    assert!(site.sandbox.record().is_none(), "{more}: virt-v2v was run");
    let changes = site.fake.seen().into_iter().filter(|seen| seen.request.method != "GET");
    let changes: Vec<String> =
        changes.map(|seen| seen.request.path).filter(|path| path != "/v3/auth/tokens").collect();
    assert_eq!(changes, Vec::<String>::new(), "{more}");
    assert_eq!(site.fake.world(|world| world.inventory()), before);
    Some(last["last_message"]["message"].as_str().unwrap().to_owned())
}

#[test]
fn what_is_missing_taken_or_exhausted_is_told_before_virt_v2v_runs() {
    let nothing = |_: &mut World| ();
    let bad = |network: &str| json!({"network_mappings": [{"source": "a", "destination": network, "mac_address": "00:50:56:00:00:01"}]});
    let environment = |key: &str, value: &str| {
        let mut environment = json!({"os-auth_url": "", "os-username": "admin", "os-password": "hunter2",
            "os-project_name": "p"});
        environment[key] = json!(value);
        environment
    };
    let cases: Vec<(Change, Value, Vec<&str>)> = vec![
        (Box::new(nothing), json!({"osp_flavor_id": "m1.huge"}), vec!["osp_flavor_id", "m1.huge"]),
        (Box::new(nothing), bad("no such network"), vec!["network", "no such network"]),
        (Box::new(nothing), json!({"osp_security_groups_ids": ["sg1", "sg9"]}), vec!["security", "sg9"]),
        (Box::new(nothing), json!({"osp_volume_type_id": "tape"}), vec!["osp_volume_type_id", "tape"]),
        (
            Box::new(|world: &mut World| world.add_server("other", "dest", super::site::NAME)),
            json!({}),
            vec!["VM with the name \"My_Machine\" already exists on the destination"],
        ),
        (
            Box::new(|world: &mut World| _ = world.quota.insert("instances", 1)),
            json!({}),
            vec!["quota", "servers"],
        ),
        (Box::new(|world: &mut World| _ = world.quota.insert("ports", 2)), json!({}), vec!["quota", "ports"]),
        (Box::new(nothing), json!({"osp_destination_project_id": "nowhere"}), vec!["401"]),
    ];
    for (change, more, words) in cases {
        let Some(message) = refused(change, &more) else { return };
        for word in words {
            assert!(message.contains(word), "{more}: {message}");
        }
    }
    // Wrong passwords stand in no text: `always` looks for them.
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    let mut wrong = environment("os-password", "another-password");
    wrong["os-auth_url"] = json!(site.fake.url());
    let last = site.run(&json!({"osp_environment": wrong}));
    let message = last["last_message"]["message"].as_str().unwrap();
    assert!(message.contains("401") && !message.contains("another-password"), "{message}");
    assert!(site.sandbox.record().is_none(), "virt-v2v was run");
}

/// Volumes of a two-phase job are asked for only where there is room for all of them.
#[test]
fn a_quota_of_volumes_is_told_before_anything_is_copied() {
    for (key, most, words) in [("volumes", 2, "volumes"), ("gigabytes", 2, "GiB of volumes")] {
        let Some(site) = Site::new(Mode::TwoPhase) else { return };
        site.fake.world(|world| world.quota.insert(key, most));
        let last = site.run(&json!({}));
        let message = last["last_message"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("quota") && message.contains(words), "{last:#}");
        assert_eq!(site.fake.count("POST", "/volumes$"), 0, "{}", site.fake.story());
        site.untouched().unwrap();
    }
}

#[test]
fn a_name_is_a_name_whatever_is_in_it() {
    for name in [
        "it's \"quoted\" & 'more'",
        "a b  c",
        "*",
        ".*",
        "Größe 日本",
        "a?b=c#d&e",
        "$(reboot); `x`",
        "100%41",
    ] {
        let Some(site) = Site::new(Mode::OnePhase) else { return };
        // Taken by none of these: a pattern would say so.
        site.fake.world(|world| {
            world.add_server("x1", "dest", &format!("{name} 2"));
            world.add_server("x2", "dest", "xx");
        });
        let last = site.run(&json!({"vm_name": name}));
        assert_eq!(last["failed"], false, "{name}: {last:#}\n{}", site.fake.story());
        let (server, port) = site.fake.world(|world| {
            (world.servers.last().unwrap().name.clone(), world.ports.last().unwrap().name.clone())
        });
        assert_eq!((server.as_str(), port), (name, format!("{name}_port_1")), "{}", site.fake.story());
    }
}

/// Nova takes printable names of the first plane without spaces at their ends; hours of copying are not lost by one that is not.
#[test]
fn a_name_that_nova_does_not_take_is_made_one_that_it_does() {
    for (name, taken) in
        [(" spaced  out ", "spaced  out"), ("rocket \u{1f680}\u{200b}\u{ff01}", "rocket __\u{ff01}")]
    {
        let Some(site) = Site::new(Mode::OnePhase) else { return };
        let last = site.run(&json!({"vm_name": name}));
        assert_eq!(last["failed"], false, "{name}: {last:#}\n{}", site.fake.story());
        let made = site.fake.world(|world| world.servers.last().unwrap().name.clone());
        assert_eq!(made, taken);
        assert!(last["warnings"].to_string().contains("may not take"), "{last:#}");
    }
    // Another reason stays the reason.
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    site.fake.fail(Fault::always("POST", "/servers$", Harm::Refuse(400, "no such flavor today")));
    let last = site.run(&json!({"vm_name": " x "}));
    let message = last["last_message"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("Create VM failed") && message.contains("no such flavor today"), "{last:#}");
    site.untouched().unwrap();
}

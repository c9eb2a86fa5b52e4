//! What is looked up before anything is copied, and said when it is wrong.

use serde_json::{Value, json};

use super::engine::{Effect, Fault};
use super::site::{Lab, message};

/// Nothing was begun.
fn refused(lab: &Lab, keys: &Value) -> String {
    let last = lab.run(keys);
    assert_eq!(last["failed"], true, "{last:#}");
    assert_eq!(lab.engine.count("^(POST|PUT|DELETE) (vms|disks)"), 0, "{:?}", lab.engine.lines());
    message(&last).to_owned()
}

/// A search that means something else, or nothing, must neither find a name nor miss it.
#[test]
fn a_name_is_taken_only_if_it_is_exactly_the_same() {
    for (name, others, taken) in [
        ("My Virtual", ["My Virtual 2", "MyXVirtual"], "My Virtual"),
        ("a*b?", ["axbc", "ab"], "a*b?"),
        ("say \"hi\" \\ %", ["say hi", "say \"hi\" / %"], "say \"hi\" \\ %"),
        ("名前 or name=x", ["x", "名前"], "名前 or name=x"),
    ] {
        let Some(lab) = Lab::new("uci") else { return };
        let keys = json!({"vm_name": name});
        for other in others {
            lab.engine.world().machine(other, "up");
        }
        lab.site.sandbox.scenario(&json!({"steps": []}));
        let last = lab.run_one_phase(&keys);
        assert_eq!(last["failed"], false, "{name}: {last:#}");
        lab.engine.world().machine(taken, "down");
        let text = refused(&lab, &keys);
        assert_eq!(text, format!("VM with the name \"{name}\" already exists on the destination"));
    }
}

#[test]
fn what_is_wrong_with_the_destination_is_said_before_anything_is_made() {
    type Break = fn(&mut super::world::World);
    let mapped = json!({"network_mappings": [{"source": "a", "destination": "nowhere"}]});
    let cases: [(Break, Value, &str); 8] = [
        (|world| world.storage.clear(), json!({}), "Found 0 domains matching \"data\"!"),
        (
            |world| world.storage.push(json!({"id": "second", "name": "data"})),
            json!({"allocation": "sparse"}),
            "Found 2 domains matching \"data\"!",
        ),
        (
            |world| world.storage[0]["data_centers"]["data_center"][0]["id"] = "other".into(),
            json!({}),
            "the storage domain \"data\" does not belong to the data center of the cluster \"Default\"",
        ),
        (|_| (), json!({"rhv_cluster": "default"}), "there is no cluster \"default\" at https://127.0.0.1:"),
        (
            |_| (),
            json!({"conversion_host_uuid": "/api/vms/none"}),
            "VM none not found,\nhow can this script be running on a machine that does not exist?",
        ),
        (
            |world| {
                let host = world.host.clone();
                world.vms.get_mut(&host).unwrap()["status"] = "paused".into();
            },
            json!({}),
            "is not running,\nhow can this script be running on a machine that is not up?",
        ),
        (|_| (), mapped, "nowhere is neither a network of the cluster \"Default\" with a vNIC profile"),
        (
            |_| (),
            json!({"rhv_password": "wrong"}),
            "does not let admin@internal in (Cannot authenticate user: the user name or password is incorrect.)",
        ),
    ];
    for (change, keys, expected) in cases {
        let Some(lab) = Lab::new("uci") else { return };
        change(&mut lab.engine.world());
        let text = refused(&lab, &keys);
        assert!(text.contains(expected), "{text}\n  {expected}");
        assert!(lab.engine.world().tokens.is_empty(), "a token was not given back");
    }
}

/// An engine, or something that stands in for one, that does not know a collection tells nothing wrong.
#[test]
fn what_the_engine_does_not_tell_is_a_warning() {
    let Some(lab) = Lab::new("uci") else { return };
    lab.engine.world().unknown = vec!["clusters", "networks", "vnicprofiles", "operatingsystems"];
    let last = lab.run(&json!({"network_mappings": [{"source": "a", "destination": "ovirtmgmt"}]}));
    lab.assert_there(&last, "guest");
    let warnings = last["warnings"].to_string();
    for words in ["does not tell whether there is a cluster", "network_mappings could not be checked"] {
        assert!(warnings.contains(words), "{warnings}");
    }
    let Some(lab) = Lab::new("uci") else { return };
    lab.engine.world().unknown = vec!["clusters", "storagedomains", "vms"];
    lab.site.sandbox.scenario(&json!({"steps": []}));
    let last = lab.run_one_phase(&json!({}));
    assert_eq!(last["failed"], false, "{last:#}");
    assert_eq!(last["warnings"].as_array().map(Vec::len), Some(3), "{last:#}");
}

/// Tokens where there are some, the password with each request where there are none.
#[test]
fn an_engine_without_the_sso_service_is_spoken_to_all_the_same() {
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.world().sso = false;
    let last = lab.run(&json!({}));
    lab.assert_there(&last, "guest");
    let requests = lab.engine.requests();
    assert!(requests.iter().skip(1).all(|request| request.authorization.starts_with("Basic ")));
    assert!(
        requests
            .iter()
            .all(|request| !request.path.contains("Secret") && request.query("password").is_none())
    );
}

/// Whose certificate it is, is looked at; unless the user says otherwise.
#[test]
fn a_certificate_that_nobody_vouches_for_is_refused() {
    let Some(mut lab) = Lab::new("uci") else { return };
    let other = crate::vsphere::certificates::self_signed(&lab.site.sandbox.path("engine"), "other");
    lab.site.set(json!({"ca_bundle": other.file}));
    let last = lab.run(&json!({}));
    assert!(message(&last).contains("is not trusted"), "{}", message(&last));
    assert_eq!(lab.engine.lines(), [""; 0]);
    let last = lab.run(&json!({"insecure_connection": true}));
    lab.assert_there(&last, "guest");
}

/// A document may name a bundle of its own, and another user.
#[test]
fn the_user_of_the_url_logs_in() {
    let Some(lab) = Lab::new("uci") else { return };
    let url = lab.engine.url.replace("https://", "https://bob%40corp%5Cx@");
    let text = refused(&lab, &json!({"rhv_url": url}));
    assert!(text.contains("does not let bob@corp\\x in"), "{text}");
    let url = lab.engine.url.replace("https://", "https://admin%40internal@");
    lab.engine.fault(Fault::at("^POST /ovirt-engine/sso", Effect::DropBefore));
    let last = lab.run(&json!({"rhv_url": url}));
    lab.assert_there(&last, "guest");
}

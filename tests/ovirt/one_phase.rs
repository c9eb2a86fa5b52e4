//! virt-v2v makes disks and machine: the program looks before, and cleans up after it.

use serde_json::{Value, json};

use super::site::{Lab, disk_of_virt_v2v, message};
use crate::two_phase::site::wait;

/// What virt-v2v prints when it has made a disk.
fn line(id: &str) -> Value {
    json!({"text": format!("disk.id = '{id}'\n")})
}

/// The table of contract.md 1.4; what the document says wins.
#[test]
fn the_allocation_is_that_of_the_storage_unless_it_is_given() {
    for (kind, given, expected) in [
        ("iscsi", None, "preallocated"),
        ("NFS", None, "sparse"),
        ("glusterfs", Some("anything"), "anything"),
    ] {
        let Some(lab) = Lab::new("uci") else { return };
        lab.engine.world().storage[0]["storage"]["type"] = kind.into();
        lab.site.sandbox.scenario(&json!({"steps": []}));
        let mut keys = json!({});
        if let Some(given) = given {
            keys["allocation"] = given.into();
        }
        let last = lab.run_one_phase(&keys);
        assert_eq!(last["failed"], false, "{last:#}");
        let record = lab.site.sandbox.record().unwrap();
        let argv: Vec<&str> = record["argv"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(argv.windows(2).any(|pair| pair == ["-oa", expected]), "{kind}: {argv:?}");
        assert_eq!(last.get("warnings"), None, "{last:#}");
    }
}

/// The id that virt-v2v's log tells is the machine's.
#[test]
fn the_machine_of_virt_v2v_stays_and_its_id_is_told() {
    let Some(lab) = Lab::new("uci") else { return };
    let (disk, vm) = {
        let mut world = lab.engine.world();
        let disk = disk_of_virt_v2v(&mut world, "guest");
        (disk, "01234567-89ab-cdef-0123-456789abcdef")
    };
    let ovf = json!({"text": format!("    <VirtualSystem ovf:id='{vm}'>\n")});
    lab.site.sandbox.scenario(&json!({"steps": [line(&disk), ovf]}));
    let last = lab.run_one_phase(&json!({}));
    assert_eq!((&last["failed"], &last["vm_id"]), (&json!(false), &json!(vm)), "{last:#}");
    assert!(lab.engine.world().disks.contains_key(&disk));
}

/// virt-v2v died while it uploaded: its transfers are cancelled, its disks removed; what only looks like its own stays.
#[test]
fn what_a_failed_virt_v2v_made_goes_and_what_is_theirs_stays() {
    let Some(lab) = Lab::new("uci") else { return };
    let (mine, uploading, theirs, used, other) = {
        let mut world = lab.engine.world();
        let mine = disk_of_virt_v2v(&mut world, "guest");
        let uploading = world.disk("guest-001", "Uploaded by virt-v2v");
        world.transfer(&uploading);
        let theirs = world.disk("database", "accounts of 2025");
        // A guest's console is in the log, too: it may name any disk.
        let used = disk_of_virt_v2v(&mut world, "guest");
        let machine = world.machine("theirs", "down");
        world.give(&machine, &used);
        let other = world.disk("untold", "");
        let busy = world.transfer(&other);
        (mine, uploading, theirs, used, (other, busy, machine))
    };
    let (other, busy, machine) = other;
    let ids = [&mine, &uploading, &theirs, &used].map(|id| line(id));
    let fail = json!({"text": "virt-v2v: error: the engine was restarted\n", "to": "err"});
    let ovf = json!({"text": format!("<VirtualSystem ovf:id='{machine}'>\n")});
    let steps: Vec<Value> = ids.into_iter().chain([ovf, fail]).collect();
    lab.site.sandbox.scenario(&json!({"steps": steps, "exit": 1}));
    let last = lab.run_one_phase(&json!({}));
    assert_eq!(last["failed"], true);
    assert_eq!(last.get("warnings"), None, "{last:#}");
    let world = lab.engine.world();
    let left: Vec<&String> = world.disks.keys().collect();
    for (disk, stays) in [(&mine, false), (&uploading, false), (&theirs, true), (&used, true), (&other, true)]
    {
        assert_eq!(left.contains(&disk), stays, "{:?}", world.disks.get(disk));
    }
    assert!(world.vms.contains_key(&machine), "a machine of theirs is gone");
    assert_eq!(world.transfers[&busy]["phase"], "transferring", "a transfer of theirs was cancelled");
}

/// virt-v2v was killed after its last step: the machine has the guest's name and only this job's disks.
#[test]
fn a_machine_of_a_cancelled_virt_v2v_goes_with_its_disks() {
    let Some(lab) = Lab::new("uci") else { return };
    let (disk, machine) = {
        let mut world = lab.engine.world();
        let disk = disk_of_virt_v2v(&mut world, "guest");
        (disk, world.machine("guest2", "down"))
    };
    let ovf = json!({"text": format!("<VirtualSystem ovf:id='{machine}'>\n")});
    let go = lab.site.sandbox.path("never");
    let steps = [line(&disk), ovf, json!({"wait_for": go})];
    lab.site.sandbox.scenario(&json!({"steps": steps, "on_term": "exit"}));
    let mut job = lab.site.start(&lab.one_phase(&json!({})));
    wait(&job, "the id of the machine", |state| state["vm_id"] == machine);
    {
        let mut world = lab.engine.world();
        world.vms.get_mut(&machine).unwrap()["name"] = "guest".into();
        world.give(&machine, &disk);
    }
    assert!(job.signal(nix::sys::signal::Signal::SIGTERM, "supervisor"));
    let last = lab.end(&mut job);
    assert!(message(&last).starts_with("Exiting on signal number 15"), "{last:#}");
    let world = lab.engine.world();
    assert!(!world.vms.contains_key(&machine), "{:#?}", world.vms);
}

/// An export domain needs no engine: nobody is asked.
#[test]
fn an_export_domain_is_virt_v2vs_alone() {
    let Some(lab) = Lab::new("uci") else { return };
    lab.site.sandbox.scenario(
        &json!({"steps": [{"text": "<VirtualSystem ovf:id='01234567-89ab-cdef-0123-456789abcdef'>\n"}]}),
    );
    let last = lab.run_one_phase(&json!({"rhv_url": null, "export_domain": "h:/p", "allocation": "sparse"}));
    assert_eq!(last["failed"], false, "{last:#}");
    assert_eq!(last["vm_id"], "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(lab.engine.lines(), [""; 0]);
}

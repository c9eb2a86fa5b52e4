//! Every step of a two-phase job, made to fail: by a lost answer or an expired token, which must not matter, and by a refusal,
//! after which nothing is left.

use serde_json::{Value, json};

use super::engine::{Effect, Fault};
use super::site::{Lab, message};

/// The requests of a whole job.
pub const STEPS: [&str; 14] = [
    "^POST /ovirt-engine/sso/oauth/token",
    "^GET vms$",
    "^GET clusters$",
    "^GET storagedomains$",
    "^GET vms/[^/]+$",
    "^POST disks$",
    "^GET disks/[^/]+$",
    "^POST vms/HOST/diskattachments$",
    "^PUT vms/HOST/diskattachments/",
    "^DELETE vms/HOST/diskattachments/",
    "^POST vms$",
    "^POST vms/NEW/diskattachments$",
    "^PUT vms/NEW/diskattachments/",
    "^POST vms/[^/]+/nics$",
];

/// A fault at a step: `HOST` is the conversion host, `NEW` any other machine.
pub fn at(lab: &Lab, line: &str, effect: Effect) -> Fault {
    let host = lab.engine.world().host.clone();
    let fault = Fault::at(&line.replace("HOST", &host).replace("NEW", "[^/]+"), effect);
    if line.contains("NEW") { fault.without(&host) } else { fault }
}

pub fn document(lab: &Lab) -> Value {
    let xml = lab.site.sandbox.path("guest.xml");
    let disk = |index: usize| {
        format!(
            "<disk type='file' device='disk'><driver type='raw'/><source file='{}'/><target dev='sd{}' bus='scsi'/></disk>",
            lab.site.source(index).display(),
            ["a", "b"][index]
        )
    };
    let nic = "<interface type='bridge'><mac address='00:50:56:01:02:03'/><source bridge='lan'/></interface>";
    let text = format!(
        "<domain type='kvm'><name>guest</name><memory unit='KiB'>1048576</memory><vcpu>1</vcpu><os><type>hvm</type></os>\
         <devices>{}{}{nic}</devices></domain>",
        disk(0),
        disk(1)
    );
    std::fs::write(&xml, text).unwrap();
    json!({"source_disks": null, "source_path": xml, "network_mappings": [{"source": "lan", "destination": "ovirtmgmt"}]})
}

fn whole(effect: Effect) {
    let Some(lab) = Lab::new("job") else { return };
    for line in STEPS {
        if effect != Effect::Expire || !line.contains("sso") {
            lab.engine.fault(at(&lab, line, effect));
        }
    }
    let last = lab.run(&document(&lab));
    lab.assert_there(&last, "guest");
    assert_eq!(lab.engine.unmet(), 0, "{effect:?}: {:?}", lab.engine.lines());
    assert_eq!(lab.engine.world().nics.len(), 1, "{effect:?}");
}

/// The connection breaks at each step once, before the engine did what it was asked for.
#[test]
fn connections_that_break_before_anything_is_done_do_not_matter() {
    whole(Effect::DropBefore);
}

/// The same after it did: nothing is made twice.
#[test]
fn connections_that_break_after_it_was_done_do_not_matter() {
    whole(Effect::DropAfter);
}

/// It does what it was asked for and never answers.
#[test]
fn answers_that_never_come_do_not_matter() {
    whole(Effect::SilenceAfter);
}

/// It does not even do it.
#[test]
fn requests_that_are_never_looked_at_do_not_matter() {
    whole(Effect::SilenceBefore);
}

/// A token lasts as long as it lasts.
#[test]
fn tokens_that_expire_at_every_step_are_renewed() {
    whole(Effect::Expire);
}

/// The engine fails at each step once: hours of copying are worth another try.
#[test]
fn a_failure_of_the_engine_that_is_over_soon_does_not_matter() {
    whole(Effect::Refuse(500, "[Internal error]"));
}

/// What is locked is asked for again.
#[test]
fn refusals_because_of_a_lock_are_waited_out() {
    let Some(lab) = Lab::new("job") else { return };
    let words = "[Cannot do that. The disk is locked. Please try again in a few minutes.]";
    for line in STEPS.into_iter().filter(|line| !line.starts_with("^GET") && !line.contains("sso")) {
        lab.engine.fault(at(&lab, line, Effect::Refuse(409, words)).times(3));
    }
    let last = lab.run(&document(&lab));
    lab.assert_there(&last, "guest");
    assert_eq!(lab.engine.unmet(), 0);
}

/// Refused for good, at each step in turn: the message names the step and the engine's own words, and nothing of ours is left.
#[test]
fn a_refusal_at_any_step_ends_the_job_and_leaves_nothing() {
    for (line, words) in [
        ("^GET clusters$", "cannot look up the cluster"),
        ("^POST disks$", "Create disk "),
        ("^GET disks/[^/]+$", "cannot look at a new disk"),
        ("^POST vms/HOST/diskattachments$", "Attach disk 1 to the conversion host failed"),
        ("^PUT vms/HOST/diskattachments/", "Detach disk "),
        ("^DELETE vms/HOST/diskattachments/", "Detach disk "),
        ("^POST vms$", "Create VM failed"),
        ("^POST vms/NEW/diskattachments$", "Attach disk 1 to the new VM failed"),
        ("^PUT vms/NEW/diskattachments/", "Make disk 1 not shareable failed"),
        ("^POST vms/[^/]+/nics$", "Create NIC 1 (lan) failed"),
    ] {
        let Some(lab) = Lab::new("job") else { return };
        let theirs = lab.engine.world().disk("theirs", "");
        lab.engine.fault(at(&lab, line, Effect::Refuse(409, "[A quota is exceeded.]")));
        let last = lab.run(&document(&lab));
        let text = message(&last);
        assert!(text.starts_with(words) && text.contains("[A quota is exceeded.]"), "{line}: {text}");
        assert_eq!(last.get("warnings"), None, "{line}: {last:#}");
        assert_eq!(lab.engine.unmet(), 0, "{line}");
        assert!(lab.engine.world().disks.remove(&theirs).is_some(), "{line}: a disk of theirs is gone");
        lab.assert_as_before();
    }
}

/// Broken for good, so that even undo cannot do its work: each thing left is told, and removed when the engine is well again.
#[test]
fn what_cannot_be_removed_is_told_and_removed_later() {
    for (line, kind) in [
        ("^DELETE disks/", "the disk"),
        ("^DELETE vms/[^/]+$", "the machine"),
        ("^(PUT|DELETE) vms/HOST/diskattachments/", "the attachment"),
        ("^POST /ovirt-engine/sso", ""),
    ] {
        let Some(lab) = Lab::new("job") else { return };
        lab.engine.fault(Fault::at("^POST vms/[^/]+/nics$", Effect::Refuse(400, "[no]")));
        let fault = at(&lab, line, Effect::Refuse(500, "[Internal error]")).times(1000);
        lab.engine.fault(if line.contains("sso") { fault.after(1) } else { fault });
        let last = lab.run(&document(&lab));
        assert_eq!(last["failed"], true, "{line}: {last:#}");
        let warnings = last["warnings"].to_string();
        assert!(
            warnings.contains("left at the destination") && warnings.contains(kind),
            "{line}: {warnings}"
        );
        assert!(warnings.contains("[Internal error]"), "{line}: {warnings}");
        lab.engine.no_more_faults();
        let tag = lab.tags().remove(0);
        let (done, said) = lab.cleanup(&tag);
        assert!(done, "{line}: {said}");
        lab.assert_as_before();
    }
}

/// The engine fails once at each step of an undo, too: it is asked again, because nobody else comes to remove what is left.
#[test]
fn an_undo_goes_on_after_a_failure() {
    for (refused, steps) in [
        ("^POST vms/[^/]+/nics$", ["^DELETE vms/[^/]+$", "^DELETE disks/"]),
        (
            "^POST vms/HOST/diskattachments$",
            ["^PUT vms/HOST/diskattachments/", "^DELETE vms/HOST/diskattachments/"],
        ),
    ] {
        let Some(lab) = Lab::new("job") else { return };
        let fault = at(&lab, refused, Effect::Refuse(400, "[no]"));
        // The second disk: the first one is in the conversion host.
        lab.engine.fault(if refused.contains("HOST") { fault.after(1) } else { fault });
        for line in steps {
            lab.engine.fault(at(&lab, line, Effect::Refuse(500, "[Internal error]")));
        }
        let last = lab.run(&document(&lab));
        assert!(message(&last).contains("[no]"), "{last:#}");
        assert_eq!(last.get("warnings"), None, "{last:#}");
        assert_eq!(lab.engine.unmet(), 0, "{:?}", lab.engine.lines());
        lab.assert_as_before();
    }
}

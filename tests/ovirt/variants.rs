//! Engines that answer otherwise than ours, and are right: what the API does not promise is not demanded, and what a job can
//! do without ends none.

use serde_json::{Value, json};

use super::engine::{Effect, Fault};
use super::faults::{STEPS, at, document};
use super::site::{Lab, message};

const ALWAYS: usize = 1000;
const HTML: &str = "<html><body><h1>Not for you</h1></body></html>";

/// A one-phase job beside these answers: its last state and what virt-v2v was told of the allocation.
fn one_phase(answers: &[(&str, Effect)], keys: &Value) -> Option<(Value, Option<String>)> {
    let lab = Lab::new("uci")?;
    for (line, effect) in answers {
        lab.engine.fault(Fault::at(line, *effect).times(ALWAYS));
    }
    lab.site.sandbox.scenario(&json!({"steps": []}));
    let last = lab.run_one_phase(keys);
    let record = lab.site.sandbox.record().unwrap_or_default();
    let argv: Vec<&str> = record["argv"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let allocation = argv.windows(2).find(|pair| pair[0] == "-oa").map(|pair| pair[1].to_owned());
    Some((last, allocation))
}

/// A cluster or a storage domain that the engine does not show is virt-v2v's matter, which looks for it, too.
#[test]
fn what_an_engine_does_not_show_ends_no_job_of_virt_v2v() {
    const TWO: &str = r#"{"storage_domain": [{"id": "a", "name": "data"}, {"id": "b", "name": "data"}]}"#;
    let sparse = json!({"allocation": "sparse"});
    for (answers, keys, allocation, warning) in [
        (vec![("^GET clusters$", Effect::Say(200, "{}"))], json!({}), "sparse", "there is no cluster"),
        (vec![("^GET clusters$", Effect::Say(403, HTML))], json!({}), "sparse", "does not tell whether"),
        (vec![("^GET clusters$", Effect::Say(501, ""))], json!({}), "sparse", "does not tell whether"),
        (vec![("^GET clusters$", Effect::Say(200, HTML))], json!({}), "sparse", "does not tell whether"),
        (vec![("^GET storagedomains$", Effect::Say(200, "{}"))], sparse.clone(), "sparse", "Found 0 domains"),
        (vec![("^GET storagedomains$", Effect::Say(200, TWO))], sparse.clone(), "sparse", "Found 2 domains"),
        (
            vec![("^GET vms$", Effect::Say(400, HTML))],
            sparse.clone(),
            "sparse",
            "there is a VM with the name",
        ),
    ] {
        let Some((last, given)) = one_phase(&answers, &keys) else { return };
        assert_eq!(last["failed"], false, "{answers:?}: {last:#}");
        assert_eq!(given.as_deref(), Some(allocation), "{answers:?}");
        assert!(last["warnings"].to_string().contains(warning), "{answers:?}: {last:#}");
    }
    // But where the allocation depends on it.
    let Some((last, _)) = one_phase(&[("^GET storagedomains$", Effect::Say(200, TWO))], &json!({})) else {
        return;
    };
    assert_eq!(message(&last), "Found 2 domains matching \"data\"!");
}

/// What is found by its name need not repeat it.
#[test]
fn what_a_search_finds_counts() {
    const FOUND: &str = r#"{"storage_domain": [{"id": "a", "storage": {"type": "fcp"}}]}"#;
    let Some((last, given)) = one_phase(&[("^GET storagedomains$", Effect::Say(200, FOUND))], &json!({}))
    else {
        return;
    };
    assert_eq!((&last["failed"], given.as_deref()), (&json!(false), Some("preallocated")), "{last:#}");
    assert_eq!(last.get("warnings"), None, "{last:#}");
}

/// An engine that does not understand the search shows all it has.
#[test]
fn a_search_that_is_refused_is_done_without() {
    let Some(lab) = Lab::new("uci") else { return };
    lab.engine.world().machine("guest", "down");
    for line in ["^GET vms$", "^GET clusters$", "^GET storagedomains$"] {
        lab.engine.fault(Fault::at(line, Effect::Say(400, r#"{"fault": {"reason": "no search"}}"#)));
    }
    let last = lab.run_one_phase(&json!({}));
    assert_eq!(message(&last), "VM with the name \"guest\" already exists on the destination");
    lab.engine.world().vms.retain(|_, vm| vm["name"] != "guest");
    lab.engine.fault(Fault::at("^GET vms$", Effect::Say(400, "")));
    let last = lab.run(&document(&lab));
    assert_eq!(lab.engine.unmet(), 0);
    lab.assert_there(&last, "guest");
    assert_eq!(last.get("warnings"), None, "{last:#}");
}

/// The same where an answer was lost, and what was made is looked for.
#[test]
fn what_was_made_is_found_without_a_search() {
    for search in ["^GET disks$", "^GET vms$"] {
        let Some(lab) = Lab::new("job") else { return };
        for line in ["^POST disks$", "^POST vms$"] {
            lab.engine.fault(Fault::at(line, Effect::DropAfter));
        }
        // Not the one for a name that is taken.
        let skip = usize::from(search.contains("vms"));
        lab.engine.fault(Fault::at(search, Effect::Say(400, HTML)).after(skip));
        let last = lab.run(&document(&lab));
        lab.assert_there(&last, "guest");
        assert_eq!(lab.engine.unmet(), 0, "{search}");
        assert_eq!((lab.engine.count("^POST disks$"), lab.engine.count("^POST vms$")), (2, 1));
    }
}

/// The program runs there, so it will be up; one that does not get so far is not.
#[test]
fn a_conversion_host_that_comes_up_is_waited_for() {
    for (times, comes_up) in [(3, true), (ALWAYS, false)] {
        let Some(lab) = Lab::new("job") else { return };
        let host = lab.engine.world().host.clone();
        let status = Effect::Say(200, r#"{"name": "conversion host", "status": "powering_up"}"#);
        lab.engine.fault(Fault::at(&format!("^GET vms/{host}$"), status).times(times));
        let last = lab.run(&document(&lab));
        match comes_up {
            true => drop(lab.assert_there(&last, "guest")),
            false => assert!(message(&last).starts_with(&format!("VM {host} is not running,")), "{last:#}"),
        }
    }
}

/// The token in a list, which some versions gave; or no token at all, in words of the same shape as a refusal.
#[test]
fn a_login_has_several_shapes() {
    const WORDS: &str = r#"{"error": "unauthorized"}"#;
    let Some(lab) = Lab::new("uci") else { return };
    lab.engine.world().tokens.insert("of-a-list".to_owned());
    let list = r#"[{"access_token": "of-a-list", "token_type": "bearer"}]"#;
    lab.engine.fault(Fault::at("^POST /ovirt-engine/sso", Effect::Say(200, list)));
    let last = lab.run(&json!({}));
    lab.assert_there(&last, "guest");
    let of_list = |header: &str| header == "Bearer of-a-list";
    assert!(lab.engine.requests().iter().skip(1).any(|request| of_list(&request.authorization)));
    let Some(lab) = Lab::new("uci") else { return };
    lab.engine.fault(Fault::at("^POST /ovirt-engine/sso/oauth", Effect::Say(401, WORDS)).times(ALWAYS));
    let last = lab.run(&json!({}));
    lab.assert_there(&last, "guest");
}

/// Attachments with ids of their own, which do not say whether they are active: the serial number is the attachment's
/// (contract.md 6.2).
#[test]
fn an_attachment_need_not_be_its_disk() {
    for (own_ids, mute) in [(true, false), (false, true), (true, true)] {
        let Some(lab) = Lab::new("job") else { return };
        lab.engine.world().own_ids = own_ids;
        lab.engine.world().mute = mute;
        let last = lab.run(&document(&lab));
        lab.assert_there(&last, "guest");
        // The same with answers that are lost, and in an undo.
        let Some(lab) = Lab::new("job") else { return };
        lab.engine.world().own_ids = own_ids;
        lab.engine.world().mute = mute;
        for line in STEPS.into_iter().filter(|line| line.contains("diskattachments")) {
            lab.engine.fault(at(&lab, line, Effect::DropAfter));
        }
        lab.engine.fault(Fault::at("^POST vms/[^/]+/nics$", Effect::Refuse(400, "[no]")));
        let last = lab.run(&document(&lab));
        assert!(message(&last).contains("Create NIC 1 (lan) failed"), "{last:#}");
        assert_eq!(last.get("warnings"), None, "{last:#}");
        lab.assert_as_before();
    }
}

/// A change is made, whatever the answer says about it.
#[test]
fn what_a_change_is_answered_with_does_not_matter() {
    const XML: &str = "<action><status>complete</status></action>";
    let Some(lab) = Lab::new("job") else { return };
    for line in STEPS.into_iter().filter(|line| !line.starts_with("^GET") && !line.contains("sso")) {
        lab.engine.fault(at(&lab, line, Effect::DoAndSay(XML)));
    }
    let last = lab.run(&document(&lab));
    lab.assert_there(&last, "guest");
    assert_eq!(lab.engine.unmet(), 0);
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.fault(Fault::at("^POST vms/[^/]+/nics$", Effect::Refuse(400, "[no]")));
    lab.engine.fault(Fault::at("^(DELETE|PUT) ", Effect::DoAndSay(XML)).times(ALWAYS));
    let last = lab.run(&document(&lab));
    assert_eq!(last.get("warnings"), None, "{last:#}");
    lab.assert_as_before();
}

/// A conflict is worth another try if it says that something is busy, or nothing at all.
#[test]
fn a_conflict_without_a_reason_is_waited_out() {
    for words in ["", "<html>Disk is busy</html>"] {
        let Some(lab) = Lab::new("job") else { return };
        for line in STEPS.into_iter().filter(|line| !line.starts_with("^GET") && !line.contains("sso")) {
            lab.engine.fault(at(&lab, line, Effect::Say(409, words)).times(2));
        }
        let last = lab.run(&document(&lab));
        lab.assert_there(&last, "guest");
        assert_eq!(lab.engine.unmet(), 0);
    }
}

/// When all is copied, what only decorates the machine is no reason to lose it.
#[test]
fn a_list_of_systems_that_is_broken_loses_no_guest() {
    let Some(lab) = Lab::new("job") else { return };
    lab.site
        .play(&[json!({"text": "i_type = linux\ni_distro = rhel\ni_major_version = 9\ni_arch = x86_64\n"})]);
    lab.engine.fault(Fault::at("^GET operatingsystems", Effect::Say(500, HTML)).times(ALWAYS));
    let last = lab.run(&document(&lab));
    lab.assert_there(&last, "guest");
    assert!(lab.engine.count("^GET operatingsystems") > 0);
}

/// Nor is what was looked up already.
#[test]
fn networks_that_cannot_be_listed_any_more_lose_no_guest() {
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.fault(Fault::at("(networks|vnicprofiles)$", Effect::Say(500, HTML)).after(2).times(ALWAYS));
    let last = lab.run(&document(&lab));
    lab.assert_there(&last, "guest");
    assert_eq!(lab.engine.world().nics[0].1["vnic_profile"]["id"], "p-mgmt");
}

/// Every cluster has a network: an engine that shows none does not tell.
#[test]
fn networks_that_are_not_shown_are_a_warning() {
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.fault(Fault::at("networks$", Effect::Say(200, "{}")).times(ALWAYS));
    let last = lab.run(&document(&lab));
    lab.assert_there(&last, "guest");
    assert!(last["warnings"].to_string().contains("network_mappings could not be checked"), "{last:#}");
    let Some(lab) = Lab::new("job") else { return };
    lab.engine.fault(Fault::at("^GET clusters/.*networks$", Effect::Say(200, "{}")).times(ALWAYS));
    let last = lab.run(&document(&lab));
    lab.assert_there(&last, "guest");
    assert_eq!(lab.engine.world().nics[0].1["vnic_profile"]["id"], "p-mgmt");
}

/// virt-v2v's disks go when the engine says that they can, whatever it says of their transfers; and also where it tells
/// nothing of them but that they are there. One with another's name stays.
#[test]
fn disks_of_virt_v2v_go_whatever_the_engine_tells_of_them() {
    let Some(mut lab) = Lab::new("uci") else { return };
    lab.site.set(json!({"patience_percent": 2}));
    let (bare, uploading, foreign) = {
        let mut world = lab.engine.world();
        world.stubborn = true;
        let [bare, foreign] = ["disk-1", "database"].map(|name| world.disk(name, ""));
        for (id, keys) in [(&bare, &["name", "alias", "description"][..]), (&foreign, &["description"])] {
            let disk = world.disks.get_mut(id).unwrap().as_object_mut().unwrap();
            keys.iter().for_each(|key| drop(disk.remove(*key)));
        }
        let uploading = world.disk("guest-001", "Uploaded by virt-v2v");
        world.transfer(&uploading);
        (bare, uploading, foreign)
    };
    let told = [&bare, &uploading, &foreign].map(|id| json!({"text": format!("disk.id = '{id}'\n")}));
    lab.site.sandbox.scenario(&json!({"steps": told, "exit": 1}));
    let last = lab.run_one_phase(&json!({}));
    assert_eq!((&last["failed"], last.get("warnings")), (&json!(true), None), "{last:#}");
    let left: Vec<String> = lab.engine.world().disks.keys().cloned().collect();
    assert_eq!(left, [foreign]);
}

/// The engine's own failure is said at once, in its words.
#[test]
fn a_failure_of_the_engine_is_told_in_its_words() {
    for (body, words) in [
        (
            r#"{"fault": {"reason": "Operation Failed", "detail": "[Internal Engine Error]"}}"#,
            "[Internal Engine Error]",
        ),
        ("<html>\n<body>Server broken</body>", "<body>Server broken</body>"),
        ("", "it says no more"),
    ] {
        let Some(lab) = Lab::new("job") else { return };
        lab.engine.fault(at(&lab, "^POST vms$", Effect::Say(500, body)).times(ALWAYS));
        let last = lab.run(&document(&lab));
        let text = message(&last);
        assert!(text.starts_with("Create VM failed: ") && text.contains(words), "{text}");
        assert_eq!(last.get("warnings"), None, "{last:#}");
        lab.assert_as_before();
    }
}

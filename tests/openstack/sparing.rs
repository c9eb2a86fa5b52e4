//! Clouds that do and show less than most: no listings with details, no limits, no documents of versions, no attachments in
//! what Cinder shows. A job needs none of that to end well, or to leave nothing.

use serde_json::json;

use super::fake::{Fault, Harm};
use super::site::{Mode, Site, show};

/// Only what a job cannot do without is there.
fn bare(site: &Site) {
    for path in [
        "/detail$",
        "/limits$",
        "/quotas/",
        "/types",
        "^/compute/v2.1/?$",
        "^/volume(/v3)?/?$",
        "^/network/?$",
        "/servers/[^/]*/os-volume_attachments$",
    ] {
        site.fake.fail(Fault::always("GET", path, Harm::Refuse(404, "not here")));
    }
    site.fake.world(|world| {
        world.hidden = vec![
            ("/auth/tokens", "project"),
            ("/volume/", "os-vol-tenant-attr:tenant_id"),
            ("/volume/", "attachments"),
            ("/volume/", "metadata"),
            ("/volume/", "bootable"),
            ("/volume/", "created_at"),
            ("/compute/", "metadata"),
            ("/network/", "description"),
        ];
    });
}

#[test]
fn a_job_ends_well_where_a_cloud_says_little() {
    for mode in [Mode::OnePhase, Mode::TwoPhase] {
        let Some(site) = Site::new(mode) else { return };
        bare(&site);
        let last = site.run(&json!({}));
        site.arrived(&last).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

#[test]
fn a_job_that_fails_leaves_nothing_where_a_cloud_says_little() {
    for (method, path) in [("POST", "/servers$"), ("POST", "/ports$"), ("POST", "/accept$")] {
        for mode in [Mode::OnePhase, Mode::TwoPhase] {
            let Some(site) = Site::new(mode) else { return };
            bare(&site);
            // Nor any listing of volumes.
            site.fake.fail(Fault::always("GET", "/volumes$", Harm::Refuse(501, "not here")));
            site.fake.fail(Fault::always(method, path, Harm::Refuse(403, "forbidden here")));
            let last = site.run(&json!({}));
            assert_eq!(last["failed"], true, "{mode:?} {path}: {last:#}");
            assert!(last["last_message"]["message"].as_str().unwrap().contains("forbidden here"), "{last:#}");
            site.untouched().unwrap_or_else(|why| panic!("{mode:?} {path}: {why}\n{last:#}"));
            if mode == Mode::OnePhase {
                // Of the address in no subnet, where the job has got so far.
                let warnings = last["warnings"].to_string();
                assert!(!warnings.contains("cleanup") && !warnings.contains("not all"), "{path}: {warnings}");
            }
        }
    }
}

/// What cannot be said of the boot volume is told; whether the server boots without is nova's to say.
#[test]
fn a_cloud_that_forbids_to_say_what_a_volume_is_gets_its_server_all_the_same() {
    for status in [400, 403, 501] {
        let Some(site) = Site::new(Mode::TwoPhase) else { return };
        // As virt-v2v left it, and as no policy lets anybody change it.
        site.fake.world(|world| world.boots_all = true);
        site.fake.fail(Fault::always("POST", "/action$", Harm::Refuse(status, "the policy forbids it")));
        let last = site.run(&json!({}));
        assert_eq!(last["failed"], false, "{status}: {last:#}\n{}", site.fake.story());
        let warnings = last["warnings"].to_string();
        assert!(warnings.contains("image properties") && warnings.contains("forbids it"), "{warnings}");
    }
}

/// A Neutron without the extension for descriptions: the port is known by its answer.
#[test]
fn a_port_is_made_where_no_description_is_taken() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    site.fake.world(|world| world.refuses_descriptions = true);
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();
}

#[test]
fn a_server_whose_state_is_not_shown_is_taken_as_made() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    site.fake.world(|world| world.hidden = vec![("/servers/", "status")]);
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();
}

/// Ids and names are found in listings where a cloud shows single things to nobody, and does not heed filters by name.
#[test]
fn names_are_resolved_where_only_listings_are_shown() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    for path in ["/(networks|security-groups|flavors|types)/[^/]+$", "/servers/srv$"] {
        site.fake.fail(Fault::always("GET", path, Harm::Refuse(404, "not here")));
    }
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();
}

/// Contract.md 5 row 9: volumes stand in the log in any order, and their metadata is not shown.
#[test]
fn the_log_tells_which_disk_a_volume_is() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    site.fake.world(|world| {
        for volume in world.volumes.iter_mut().filter(|volume| site.volumes.contains(&volume.id)) {
            volume.metadata.clear();
            volume.bootable = true;
        }
    });
    let [first, second] = [0, 1].map(|at| site.volumes[at].clone());
    let set = |index: usize, id: &str| {
        format!("openstack 'volume' 'set' '--property' 'virt_v2v_disk_index={index}/2' '{id}'\n")
    };
    let text = show(&[second.clone(), first.clone()]) + &set(2, &second) + &set(1, &first);
    site.play(&[json!({"text": text})], 0);
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();
}

/// The later path of the two, which asks for a microversion.
#[test]
fn volumes_are_handed_over_by_whichever_path_there_is() {
    for status in [404, 501] {
        let Some(site) = Site::new(Mode::OnePhase) else { return };
        for method in ["GET", "POST", "DELETE"] {
            site.fake.fail(Fault::always(method, "/os-volume-transfer", Harm::Refuse(status, "not here")));
        }
        let last = site.run(&json!({}));
        site.arrived(&last).unwrap();
        let asked = site.fake.seen().into_iter().find(|seen| seen.request.path.contains("/volume-transfers"));
        assert_eq!(asked.unwrap().request.header("openstack-api-version"), Some("volume 3.55"));
    }
}

/// A volume that was handed over is forbidden to the project that had it, not unknown.
#[test]
fn a_volume_of_the_other_project_may_be_forbidden() {
    for path in ["/servers$", "no such path"] {
        let Some(site) = Site::new(Mode::OnePhase) else { return };
        site.fake.world(|world| world.forbids_others = true);
        site.fake.fail(Fault::always("POST", path, Harm::Refuse(403, "forbidden here")));
        let last = site.run(&json!({}));
        match last["failed"] == true {
            true => {
                assert!(!last["warnings"].to_string().contains("cleanup"), "{last:#}");
                site.untouched().unwrap();
            }
            false => drop(site.arrived(&last).unwrap()),
        }
    }
}

/// Cinder does not show at all that a server has a volume; with and without Nova's word for it.
#[test]
fn volumes_are_attached_and_detached_where_their_state_tells_nothing() {
    for (is_listed, path) in
        [(true, "no such path"), (false, "no such path"), (true, "/accept$"), (false, "/accept$")]
    {
        let Some(site) = Site::new(Mode::TwoPhase) else { return };
        site.fake.world(|world| world.keeps_available = true);
        if !is_listed {
            let missing = Harm::Refuse(404, "not here");
            site.fake.fail(Fault::always("GET", "/os-volume_attachments", missing));
        }
        site.fake.fail(Fault::always("POST", path, Harm::Refuse(403, "forbidden here")));
        let last = site.run(&json!({}));
        match path == "/accept$" {
            false => drop(site.arrived(&last).unwrap()),
            true => site.untouched().unwrap(),
        }
        let attached = site.fake.world(|world| world.servers[0].volumes.clone());
        assert_eq!(attached, Vec::<String>::new(), "{}", site.fake.story());
    }
}

/// Nova has taken it, and it came to nothing between two looks: nobody waits ten minutes for it.
#[test]
fn an_attachment_that_comes_to_nothing_is_told() {
    let Some(mut site) = Site::new(Mode::TwoPhase) else { return };
    site.set(json!({"patience_percent": 100}));
    site.fake.fail(Fault::always("POST", "/os-volume_attachments$", Harm::Refuse(200, "taken")));
    let last = site.run(&json!({}));
    let message = last["last_message"]["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("Cannot attach volume") && message.contains("could not be attached"),
        "{last:#}"
    );
    site.untouched().unwrap();
}

//! Keys of warm migration: what they default to, which go together, what is refused.

use super::*;

fn two_phase(more: Value) -> (TwoPhase, Vec<String>) {
    let plan = with("local", more.clone()).unwrap_or_else(|problems| panic!("{more}: {problems:?}"));
    (plan.two_phase.unwrap_or_else(|| panic!("{more}: one-phase")), plan.warnings)
}

#[test]
fn what_is_not_said_is_the_default() {
    let (two_phase, warnings) = two_phase(json!({"warm": true}));
    assert_eq!(
        two_phase.warm,
        Some(Warm {
            interval: 3600,
            finalize_at: None,
            finalize_window: 600,
            finalize_interval: 30,
            downtime_budget: None,
            quiesce: Quiesce::Auto,
        })
    );
    assert_eq!(two_phase.shutdown, Shutdown { mode: ShutdownMode::Never, settle: 0 });
    assert!(!two_phase.keep_change_tracking && warnings.is_empty(), "{warnings:?}");
    let plan = with("local", json!({"two_phase": true})).unwrap();
    assert_eq!(plan.two_phase.unwrap().warm, None);
}

#[test]
fn every_key_reaches_the_plan() {
    let (two_phase, warnings) = two_phase(json!({"warm": true, "two_phase": true, "iteration_seconds": 7,
        "delta_interval": "120", "finalize_at": "2026-11-21T14:00:00+01:00", "finalize_window": 60.0,
        "finalize_delta_interval": 0, "finalize_settle_seconds": 5, "shutdown_mode": "auto", "snapshot_quiesce": "require",
        "downtime_budget_seconds": 90, "keep_change_tracking": true}));
    assert_eq!(
        two_phase.warm,
        Some(Warm {
            interval: 120,
            finalize_at: Some(1_795_266_000),
            finalize_window: 60,
            finalize_interval: 0,
            downtime_budget: Some(90),
            quiesce: Quiesce::Require,
        })
    );
    assert_eq!(two_phase.shutdown, Shutdown { mode: ShutdownMode::Auto, settle: 5 });
    assert!(two_phase.keep_change_tracking && warnings.is_empty(), "{warnings:?}");
}

#[test]
fn values_have_several_spellings() {
    for (more, interval) in [
        (json!({"iteration_seconds": 7}), 7),
        (json!({"iteration_seconds": "60"}), 60),
        (json!({"iteration_seconds": 1.9}), 1),
        (json!({"iteration_seconds": 0}), 0),
        (json!({"delta_interval": 8}), 8),
        (json!({"delta_interval": 8, "iteration_seconds": 7}), 8),
        (json!({"delta_interval": null, "iteration_seconds": 7}), 7),
    ] {
        let mut document = json!({"warm": true});
        merge(&mut document, &more);
        assert_eq!(two_phase(document).0.warm.unwrap().interval, interval, "{more}");
    }
    for (value, quiesce) in [
        (json!("auto"), Quiesce::Auto),
        (json!("require"), Quiesce::Require),
        (json!(true), Quiesce::Require),
        (json!("never"), Quiesce::Never),
        (json!(false), Quiesce::Never),
        (json!(null), Quiesce::Auto),
    ] {
        let warm = two_phase(json!({"warm": true, "snapshot_quiesce": value})).0.warm;
        assert_eq!(warm.unwrap().quiesce, quiesce, "{value}");
    }
    for (value, mode) in [
        (json!("auto"), ShutdownMode::Auto),
        (json!("force"), ShutdownMode::Force),
        (json!("manual"), ShutdownMode::Manual),
        (json!("never"), ShutdownMode::Never),
        (json!(null), ShutdownMode::Never),
    ] {
        // It also counts for a machine that is not copied while it runs.
        let (cold, warnings) = two_phase(json!({"two_phase": true, "shutdown_mode": value}));
        assert_eq!((cold.shutdown.mode, warnings), (mode, vec![]), "{value}");
    }
}

#[test]
fn a_time_has_its_zone_or_is_refused() {
    for (text, at) in [
        ("2026-11-21T14:00:00Z", 1_795_269_600),
        ("2026-11-21T14:00:00z", 1_795_269_600),
        ("2026-11-21T14:00:00+02:00", 1_795_262_400),
        ("2026-11-21T14:00:00.999-05:30", 1_795_289_400),
        ("2026-11-21 14:00:00Z", 1_795_269_600),
        ("1969-12-31T23:59:59Z", -1),
    ] {
        let (two_phase, _) = two_phase(json!({"warm": true, "finalize_at": text}));
        assert_eq!(two_phase.warm.unwrap().finalize_at, Some(at), "{text}");
    }
    let zone =
        |text: &str| format!("finalize_at: {text} has no time zone: add Z (UTC) or an offset such as +02:00");
    let unreadable = |text: &str| {
        format!("finalize_at: {text} is no time in RFC 3339 with its zone, such as 2026-01-31T22:00:00+01:00")
    };
    for (text, problem) in [
        ("2026-11-21T14:00:00", zone("2026-11-21T14:00:00")),
        ("2026-11-21 14:00", zone("2026-11-21 14:00")),
        ("", unreadable("")),
        ("tonight", unreadable("tonight")),
        ("22:00", unreadable("22:00")),
        ("2026-02-30T14:00:00Z", unreadable("2026-02-30T14:00:00Z")),
        ("2026-11-21T25:00:00Z", unreadable("2026-11-21T25:00:00Z")),
        ("1795269600", unreadable("1795269600")),
        (
            "2026-11-21T14:00:00+01:00[America/New_York]",
            unreadable("2026-11-21T14:00:00+01:00[America/New_York]"),
        ),
    ] {
        refused("local", json!({"warm": true, "finalize_at": text}), &[&problem]);
        // Whoever misspells a time wants to know, whatever else the document asks for.
        refused("local", json!({"finalize_at": text}), &[&problem]);
    }
}

#[test]
fn wrong_values_are_named() {
    for key in [
        "delta_interval",
        "finalize_window",
        "finalize_delta_interval",
        "finalize_settle_seconds",
        "downtime_budget_seconds",
    ] {
        let problem = format!("{key} must be a whole number of seconds, 0 or more");
        for value in [json!(-1), json!("soon"), json!(1.5), json!("1.5"), json!("")] {
            let mut document = json!({"warm": true, "shutdown_mode": "auto"});
            document[key] = value;
            refused("local", document, &[&problem]);
        }
    }
    for (more, problem) in [
        (json!({"shutdown_mode": "now"}), "shutdown_mode: now is none of auto, force, manual, never"),
        (
            json!({"snapshot_quiesce": "yes"}),
            "snapshot_quiesce: yes is none of auto, require, never, true, false",
        ),
        (
            json!({"warm": true, "shutdown_mode": "auto", "downtime_budget_seconds": 0}),
            "downtime_budget_seconds must be at least 1: no last copy takes no time; leave the key out for no budget",
        ),
        (
            json!({"warm": true, "shutdown_mode": "auto", "downtime_budget_seconds": 15, "finalize_settle_seconds": 15}),
            "downtime_budget_seconds (15) must be more than finalize_settle_seconds (15): the virtual machine is off at \
             least that long",
        ),
        (
            json!({"warm": true, "downtime_budget_seconds": 60}),
            "downtime_budget_seconds needs shutdown_mode auto, force or manual: the last copy would begin by itself and \
             then be refused, as the virtual machine still runs",
        ),
    ] {
        refused("local", more, &[problem]);
    }
}

#[test]
fn only_vmware_over_vddk_is_copied_while_it_runs() {
    let problem = "warm needs transport_method vddk: only VMware over VDDK tells which blocks changed since the last \
                   copy; switch the virtual machine off and use two_phase";
    let ssh = json!({"warm": true, "transport_method": "ssh", "vmware_uri": "ssh://h/a.vmx"});
    refused("local", ssh.clone(), &[problem]);
    refused("local", json!({"warm": true, "transport_method": "local", "source_path": "/a"}), &[problem]);
    refused("local", json!({"warm": true, "transport_method": "ftp"}), &["Unknown transport method: ftp"]);
    // A site that does not honour the key does not refuse it either.
    let mut document = document("local");
    merge(&mut document, &ssh);
    let plan = run(&document, "two_phase = \"ignore\"", &around()).unwrap();
    assert!(plan.two_phase.is_none());
    assert_eq!(plan.warnings, ["warm is ignored, as the site configuration says: one-phase conversion"]);
}

#[test]
fn a_cutover_by_itself_of_a_running_machine_is_warned_of() {
    let at = json!({"warm": true, "finalize_at": "2026-11-21T14:00:00Z"});
    let (_, warnings) = two_phase(at.clone());
    assert_eq!(
        warnings,
        [
            "finalize_at with shutdown_mode never: the virtual machine must be off by then, or its last copy is refused"
        ]
    );
    let mut shuts_down = at;
    shuts_down["shutdown_mode"] = "manual".into();
    assert!(two_phase(shuts_down).1.is_empty());
}

#[test]
fn keys_without_effect_are_told() {
    let all = json!({"iteration_seconds": 1, "delta_interval": 1, "finalize_at": "2026-11-21T14:00:00Z",
        "finalize_window": 1, "finalize_delta_interval": 1, "snapshot_quiesce": true, "downtime_budget_seconds": 1,
        "keep_change_tracking": true, "shutdown_mode": "auto", "finalize_settle_seconds": 1});
    let without = |needed: &str, keys: &[&str]| -> Vec<String> {
        keys.iter().map(|key| format!("{key} has no effect without {needed}")).collect()
    };
    let warm = without(
        "warm",
        &[
            "iteration_seconds",
            "delta_interval",
            "finalize_at",
            "finalize_window",
            "finalize_delta_interval",
            "snapshot_quiesce",
            "downtime_budget_seconds",
            "keep_change_tracking",
        ],
    );
    let shutdown =
        without("two_phase and transport_method vddk", &["shutdown_mode", "finalize_settle_seconds"]);
    let mut cold = all.clone();
    cold["two_phase"] = true.into();
    let mut ssh = cold.clone();
    merge(&mut ssh, &json!({"transport_method": "ssh", "vmware_uri": "ssh://h/a.vmx"}));
    for (name, document, expected) in [
        ("one-phase", all, [warm.clone(), shutdown.clone()].concat()),
        ("cold", cold, warm.clone()),
        ("cold over ssh", ssh, [warm, shutdown].concat()),
        (
            "no end planned",
            json!({"warm": true, "finalize_window": 1, "finalize_delta_interval": 1}),
            without("finalize_at", &["finalize_window", "finalize_delta_interval"]),
        ),
    ] {
        assert_eq!(with("local", document).unwrap().warnings, expected, "{name}");
    }
}

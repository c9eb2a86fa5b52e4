//! Rules of the state.

use super::*;

mod warm;

fn started(disk: usize, count: usize, old: bool) -> Event {
    Event::CopyStarted { disk, count, target: old.then(|| "/dev/x".to_owned()) }
}
fn opened(path: &str) -> Event {
    Event::SourceOpened { path: path.into() }
}
fn percent(percent: f64) -> Event {
    Event::CopyProgress { percent }
}
fn disks(state: &State) -> Vec<(&str, f64)> {
    state.disks.iter().map(|disk| (disk.path.as_str(), disk.progress)).collect()
}
fn fold(paths: &[&str], events: Vec<Event>) -> State {
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    let mut state = State::with_disks(&paths, !paths.is_empty());
    for event in events {
        let before = state.progress;
        state.apply(event);
        assert!(state.progress >= before, "progress fell");
    }
    state
}

#[test]
fn limits_are_shown_with_both_keys_once_there_were_any() {
    let mut state = State::default();
    let shown = |state: &State| serde_json::to_value(state).unwrap().get("throttling").cloned();
    assert_eq!(shown(&state), None);
    state.apply(Event::Throttled { cpu: None, network: Some("1048576".to_owned()) });
    assert_eq!(shown(&state), Some(serde_json::json!({"cpu": null, "network": "1048576"})));
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap().throttling, state.throttling);
}

#[test]
fn disks_are_moved_inserted_and_closed_as_the_log_tells() {
    type Row = (&'static str, &'static [&'static str], Vec<Event>, Vec<(&'static str, f64)>);
    let table: Vec<Row> = vec![
        (
            "the copied disk comes first",
            &["a", "b"],
            vec![opened("a"), started(0, 2, true), opened("b"), percent(50.0)],
            vec![("b", 50.0), ("a", 0.0)],
        ),
        (
            "the next disk closes the one before",
            &["a", "b"],
            vec![
                started(0, 2, true),
                opened("b"),
                percent(50.0),
                started(1, 2, true),
                opened("a"),
                percent(99.5),
            ],
            vec![("b", 100.0), ("a", 99.5)],
        ),
        (
            "an unknown path is inserted",
            &["a"],
            vec![started(0, 1, true), opened("z"), percent(1.0)],
            vec![("z", 1.0), ("a", 0.0)],
        ),
        (
            "an unknown earlier disk is not invented",
            &[],
            vec![started(1, 2, true), opened("c"), percent(13.0)],
            vec![("c", 13.0)],
        ),
        (
            "1.4x progress without a path is ignored",
            &["a"],
            vec![started(0, 1, true), percent(9.0)],
            vec![("a", 0.0)],
        ),
        (
            "2.x progress goes by number",
            &["a", "b"],
            vec![started(1, 2, false), percent(9.0)],
            vec![("a", 0.0), ("b", 9.0)],
        ),
        (
            "2.x learns the paths from its servers",
            &["b", "a"],
            vec![
                Event::SourceServed { disk: 0, path: "a".into() },
                Event::SourceServed { disk: 1, path: "b".into() },
                started(0, 2, false),
                opened("parent of a"),
                percent(30.0),
                percent(20.0),
            ],
            vec![("a", 30.0), ("b", 0.0)],
        ),
        (
            "a late line of an earlier disk is not news",
            &["a", "b"],
            vec![started(1, 2, true), opened("a")],
            vec![("a", 0.0), ("b", 0.0)],
        ),
        (
            "2.x without any path has a name all the same",
            &[],
            vec![started(0, 1, false), percent(3.0)],
            vec![("disk 1", 3.0)],
        ),
        (
            "the end of the copies closes the last",
            &["a"],
            vec![started(0, 1, false), Event::CopyEnded],
            vec![("a", 100.0)],
        ),
    ];
    for (rule, paths, events, expected) in table {
        assert_eq!(disks(&fold(paths, events)), expected, "{rule}");
    }
}

#[test]
fn success_closes_every_disk_and_nothing_changes_afterwards() {
    let state = fold(
        &["a", "b"],
        vec![
            Event::Finished { failed: false },
            Event::Failed { message: "late".into() },
            Event::Finished { failed: true },
        ],
    );
    assert_eq!(disks(&state), [("a", 100.0), ("b", 100.0)]);
    assert_eq!(
        (state.failed, state.finished, state.last_message, state.progress),
        (Some(false), Some(true), None, 100.0)
    );
}

#[test]
fn failure_keeps_the_progress_that_was_reached() {
    let state = fold(&["a"], vec![started(0, 1, false), percent(40.0), Event::Finished { failed: true }]);
    assert_eq!(disks(&state), [("a", 40.0)]);
    assert_eq!(state.failed, Some(true));
}

#[test]
fn the_first_state_has_exactly_the_keys_of_the_contract_and_ours() {
    let json = serde_json::to_value(State::default()).unwrap();
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["disks", "progress", "sequence", "status", "updated_at", "version"]);
    assert_eq!(json["status"], "Preparing");
}

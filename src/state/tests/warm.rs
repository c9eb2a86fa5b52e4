//! Rules of a job whose machine is copied in rounds while it runs.

use serde_json::{Value, json};

use super::*;
use crate::event::FoundDisk;

fn found(paths: &[&str]) -> Event {
    let disk = |path: &&str| FoundDisk { path: (*path).to_owned(), ..FoundDisk::default() };
    Event::DisksFound { disks: paths.iter().map(disk).collect() }
}
fn enter(round: u32, last: bool) -> Event {
    Event::Entered(Phase::PreCopy { round, last })
}
fn start(round: u32, last: bool, at: f64) -> Event {
    Event::RoundStarted { round, last, at }
}
fn finish(round: u32, last: bool, at: f64, bytes: u64) -> Event {
    Event::RoundFinished { round, last, at, bytes }
}
fn begin(disk: usize, path: &str, change_id: &str, at: f64) -> Event {
    Event::RoundBegan { disk, path: path.into(), change_id: change_id.into(), at }
}
fn count(disk: usize, to_copy: u64) -> Event {
    Event::RoundCounted { disk, to_copy }
}
fn advance(disk: usize, copied: u64) -> Event {
    Event::RoundAdvanced { disk, copied }
}
fn end(disk: usize, last: bool, result: Result<&str, &str>) -> Event {
    let result = result.map(str::to_owned).map_err(str::to_owned);
    Event::RoundEnded { disk, at: 9.0, last, result }
}

/// A whole round of one disk.
fn round(round: u32, last: bool, bytes: u64) -> Vec<Event> {
    let at = f64::from(round) * 100.0;
    vec![
        enter(round, last),
        start(round, last, at),
        begin(0, &format!("a-{round}.vmdk"), &format!("change {round}"), at),
        count(0, bytes),
        advance(0, bytes),
        end(0, last, Ok("blake3-4MiB:ab")),
        finish(round, last, at + 10.0, bytes),
    ]
}

/// What the state shows after each event: job's progress, its bytes, the disk's progress.
fn trace(paths: &[&str], events: Vec<Event>) -> Vec<(f64, Option<u64>, Option<u64>, f64)> {
    let mut state = State::default();
    state.apply(found(paths));
    let show = |event| {
        let before = state.progress;
        state.apply(event);
        assert!(state.progress >= before, "progress fell");
        (state.progress, state.bytes_copied, state.bytes_total, state.disks[0].progress)
    };
    events.into_iter().map(show).collect()
}

#[test]
fn the_only_round_is_as_it_was() {
    let table = trace(
        &["a"],
        vec![enter(0, true), begin(0, "a", "*", 1.0), count(0, 200), advance(0, 100), end(0, true, Ok("c"))],
    );
    assert_eq!(
        table,
        [
            (2.0, None, None, 0.0),
            (2.0, None, None, 0.0),
            (2.0, Some(0), Some(200), 0.0),
            (43.5, Some(100), Some(200), 50.0),
            (85.0, Some(100), Some(200), 100.0),
        ]
    );
}

#[test]
fn progress_is_that_of_the_whole_job_and_bytes_are_those_of_the_round() {
    let table = trace(
        &["a"],
        vec![
            enter(0, false),
            start(0, false, 1.0),
            begin(0, "a", "*", 1.0),
            count(0, 200),
            advance(0, 100),
            advance(0, 200),
            end(0, false, Ok("c")),
            Event::Entered(Phase::Waiting),
            enter(1, false),
            start(1, false, 2.0),
            begin(0, "a-1", "1", 2.0),
            count(0, 10),
            advance(0, 10),
            end(0, false, Ok("c")),
            enter(2, true),
            start(2, true, 3.0),
            begin(0, "a-2", "2", 3.0),
            count(0, 20),
            advance(0, 10),
            end(0, true, Ok("c")),
        ],
    );
    assert_eq!(
        table,
        [
            (2.0, None, None, 0.0),
            (2.0, None, None, 0.0),
            (2.0, None, None, 0.0),
            (2.0, Some(0), Some(200), 0.0),
            (36.0, Some(100), Some(200), 47.5),
            (70.0, Some(200), Some(200), 95.0),
            (70.0, Some(200), Some(200), 95.0),
            // Between the rounds what was copied last stays.
            (70.0, Some(200), Some(200), 95.0),
            (70.0, Some(200), Some(200), 95.0),
            (70.0, Some(0), Some(0), 95.0),
            (70.0, Some(0), Some(0), 95.0),
            (70.0, Some(0), Some(10), 95.0),
            (70.0, Some(10), Some(10), 95.0),
            (70.0, Some(10), Some(10), 95.0),
            (70.0, Some(10), Some(10), 95.0),
            (70.0, Some(0), Some(0), 95.0),
            (70.0, Some(0), Some(0), 95.0),
            (70.0, Some(0), Some(20), 95.0),
            (77.5, Some(10), Some(20), 95.0),
            (85.0, Some(10), Some(20), 100.0),
        ]
    );
}

/// A last round in which the disks are copied one after the other.
#[test]
fn the_first_disk_alone_does_not_make_the_round() {
    let progress: Vec<f64> = trace(
        &["a", "b"],
        vec![
            enter(3, true),
            start(3, true, 1.0),
            begin(0, "a", "1", 1.0),
            count(0, 10),
            advance(0, 10),
            end(0, true, Ok("c")),
            begin(1, "b", "1", 1.0),
            count(1, 90),
            advance(1, 40),
            end(1, true, Ok("d")),
        ],
    )
    .into_iter()
    .map(|(job, ..)| job)
    .collect();
    assert_eq!(progress, [70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 71.5, 77.5, 85.0]);
}

#[test]
fn an_error_in_a_round_that_is_not_the_last_is_made_good() {
    for (last, copy, disk) in [
        (false, "Recoverable error during copy: no route", "Created"),
        (true, "Unrecoverable error during copy: no route", "Unrecoverable error during copy"),
    ] {
        let mut state = fold(&[], vec![found(&["a"]), enter(1, last), start(1, last, 1.0)]);
        for event in [begin(0, "a-1", "7", 1.0), count(0, 10), advance(0, 5), end(0, last, Err("no route"))] {
            state.apply(event);
        }
        let json = serde_json::to_value(&state).unwrap();
        let expected = json!({"change_id": "7", "path": "a-1", "copied": 5, "to_copy": 10, "start_time": 1.0,
            "end_time": 9.0, "status": copy, "error": true});
        assert_eq!(json["disks"][0]["copies"], json!([expected]));
        assert_eq!(json["disks"][0]["status"], json!(disk));
        assert_eq!(json["disks"][0].get("checksum"), None);
        if last {
            continue;
        }
        // The next round goes on.
        for event in round(2, false, 5) {
            state.apply(event);
        }
        assert_eq!(state.disks[0].two_phase.status.as_deref(), Some("Copied"));
        assert_eq!(state.disks[0].two_phase.checksum.as_deref(), Some("blake3-4MiB:ab"));
    }
}

/// contract.md 3.5: middle rounds lose change_id and path; and the list is bounded.
#[test]
fn rounds_of_a_disk_and_of_the_job_have_their_shape_and_their_bound() {
    let mut events = vec![found(&["a"])];
    (0..250).for_each(|number| events.extend(round(number, number == 249, u64::from(number) * 7)));
    let state = fold(&[], events);
    let json: Value = serde_json::to_value(&state).unwrap();
    let copies = json["disks"][0]["copies"].as_array().unwrap();
    let rounds = json["rounds"].as_array().unwrap();
    assert_eq!((copies.len(), rounds.len()), (100, 100));
    assert_eq!(
        (&copies[0]["change_id"], &copies[99]["change_id"]),
        (&json!("change 0"), &json!("change 249"))
    );
    assert_eq!((&copies[0]["path"], &copies[99]["path"]), (&json!("a-0.vmdk"), &json!("a-249.vmdk")));
    let middle =
        json!({"copied": 1736, "to_copy": 1736, "start_time": 24800.0, "end_time": 9.0, "status": "Copied"});
    assert_eq!(copies[98], middle);
    assert_eq!(
        rounds[0],
        json!({"round": 0, "last": false, "started_at": 0.0, "bytes": 0, "seconds": 10.0, "rate": 0})
    );
    assert_eq!(
        rounds[99],
        json!({"round": 249, "last": true, "started_at": 24900.0, "bytes": 1743, "seconds": 10.0, "rate": 174})
    );
    assert_eq!(serde_json::from_value::<State>(json).unwrap().rounds, state.rounds);
}

/// It is that of what the target holds; in a round nobody knows what that is.
#[test]
fn a_checksum_is_there_between_rounds_and_not_in_one() {
    let mut state = State::default();
    state.apply(found(&["a"]));
    let mut shown = Vec::new();
    for event in [round(0, false, 10), round(1, true, 10)].concat() {
        let before = state.disks[0].two_phase.checksum.is_some();
        let name = format!("{event:?}");
        state.apply(event);
        let after = state.disks[0].two_phase.checksum.is_some();
        if before != after {
            shown.push((name.split(' ').next().unwrap_or_default().to_owned(), after));
        }
    }
    let expected = [("RoundEnded", true), ("RoundBegan", false), ("RoundEnded", true)];
    assert_eq!(shown, expected.map(|(event, after)| (event.to_owned(), after)));
}

#[test]
fn a_clock_that_is_set_back_makes_no_negative_time() {
    let state = fold(&[], vec![found(&["a"]), start(1, false, 100.0), finish(1, false, 50.0, 7)]);
    assert_eq!(
        (state.rounds[0].seconds, state.rounds[0].rate, state.rounds[0].bytes),
        (Some(0.0), None, Some(7))
    );
    // One that nobody began is nobody's.
    let state = fold(&[], vec![finish(1, false, 50.0, 7)]);
    assert!(state.rounds.is_empty());
}

#[test]
fn what_is_planned_is_shown_until_it_begins() {
    let mut state = State::default();
    let shown = |state: &State| {
        let json = serde_json::to_value(state).unwrap();
        let of = |key: &str| json.get(key).and_then(Value::as_f64);
        (state.status.clone(), of("next_round_at"), of("predicted_downtime_seconds"))
    };
    for (event, status, next, downtime) in [
        (Event::Entered(Phase::Waiting), "Waiting", None, None),
        (Event::NextRound { at: Some(5.5) }, "Waiting", Some(5.5), None),
        (Event::PredictedDowntime { seconds: Some(12.345) }, "Waiting", Some(5.5), Some(12.3)),
        (Event::Entered(Phase::Paused), "Paused", Some(5.5), Some(12.3)),
        (Event::NextRound { at: None }, "Paused", None, Some(12.3)),
        (Event::NextRound { at: Some(7.0) }, "Paused", Some(7.0), Some(12.3)),
        (enter(1, false), "Pre-copy #1", None, Some(12.3)),
        (enter(2, true), "Pre-copy #2 (last)", None, Some(12.3)),
        (Event::Entered(Phase::StartingVirtV2v), "Starting virt-v2v", None, None),
    ] {
        state.apply(event);
        assert_eq!(shown(&state), (status.to_owned(), next, downtime));
    }
    state.apply(Event::NextRound { at: Some(9.0) });
    state.apply(Event::Finished { failed: true });
    assert_eq!(state.next_round_at, None);
}

#[test]
fn a_job_is_cut_over_from_its_last_round_on() {
    for (events, expected) in [
        (vec![], false),
        (round(0, false, 1), false),
        (vec![start(1, true, 1.0)], true),
        (vec![Event::Entered(Phase::StartingVirtV2v)], true),
        (vec![Event::Entered(Phase::Committing)], true),
    ] {
        assert_eq!(fold(&[], events.clone()).is_cut_over(), expected, "{events:?}");
    }
}

//! Rules of the schedule. Times are small numbers of seconds; a MiB is a MiB.

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A round an hour, nothing planned.
fn hourly() -> plan::Warm {
    plan::Warm {
        interval: 3600,
        finalize_at: None,
        finalize_window: 600,
        finalize_interval: 30,
        downtime_budget: None,
        quiesce: plan::Quiesce::Auto,
    }
}

fn round(snapshot_at: f64, began: f64, ended: f64, bytes: u64, first: bool) -> Measured {
    Measured { snapshot_at, began, ended, bytes, first }
}

/// Rounds as (snapshot, duration, bytes), the first of them the first.
fn after(warm: &plan::Warm, rounds: &[(f64, f64, u64)]) -> Schedule {
    let mut schedule = Schedule::new(warm);
    for (index, (snapshot, seconds, bytes)) in rounds.iter().enumerate() {
        schedule.round_ended(round(*snapshot, *snapshot, snapshot + seconds, *bytes, index == 0));
    }
    schedule
}

#[test]
fn the_next_round_begins_an_interval_after_the_last_one_and_never_past_the_end() {
    // The last round ended at 1000.
    for (rule, interval, finalize_at, window, finalize_interval, expected) in [
        ("no end planned", 3600, None, 600, 30, 4600.0),
        ("no pause at all", 0, None, 600, 30, 1000.0),
        ("the end is far", 3600, Some(100_000), 600, 30, 4600.0),
        ("the end comes before the next round", 3600, Some(1500), 0, 30, 1500.0),
        ("the window begins before the next round", 3600, Some(4000), 600, 30, 3400.0),
        ("in the window", 3600, Some(1500), 600, 30, 1030.0),
        ("in the window, shortly before the end", 3600, Some(1020), 600, 30, 1020.0),
        ("at the border of the window", 3600, Some(1610), 600, 30, 1030.0),
        ("an interval shorter than that of the window", 10, Some(1500), 600, 30, 1010.0),
        ("the end was during the round", 3600, Some(900), 600, 30, 900.0),
        ("a window longer than time", 3600, Some(5000), u64::MAX, 30, 1030.0),
        ("an interval longer than time", u64::MAX, Some(5000), 0, u64::MAX, 5000.0),
        ("an end before 1970", 3600, Some(-5), 600, 30, -5.0),
    ] {
        let warm =
            plan::Warm { interval, finalize_at, finalize_window: window, finalize_interval, ..hourly() };
        let schedule = after(&warm, &[(400.0, 600.0, GIB)]);
        for now in [1000.0, 1001.0, 2000.0, 1e12] {
            assert_eq!(schedule.next_round(now), expected, "{rule}, at {now}");
        }
    }
}

#[test]
fn before_the_first_round_and_after_a_failed_one() {
    let mut schedule = Schedule::new(&hourly());
    assert_eq!(schedule.next_round(7.0), 7.0);
    assert_eq!((schedule.predicted_downtime(7.0, 0), schedule.is_due(7.0)), (None, None));
    // It is not repeated at once, and what changed is counted from the last snapshot of which something is left.
    schedule.round_failed(1000.0);
    assert_eq!(schedule.next_round(1001.0), 4600.0);
    let mut schedule = after(&hourly(), &[(0.0, 100.0, GIB), (1000.0, 10.0, 100 * MIB)]);
    let before = schedule.predicted_downtime(3000.0, 0);
    schedule.round_failed(2000.0);
    assert_eq!(schedule.predicted_downtime(3000.0, 0), before);
    assert_eq!(schedule.next_round(2000.0), 5600.0);
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_the_rounds() {
    let schedule = after(&hourly(), &[(90_000.0, 10_000.0, GIB)]);
    for (now, expected) in [
        // A little: waits a little longer.
        (99_990.0, 103_600.0),
        (99_940.0, 103_600.0),
        // A day: at once.
        (99_939.0, 99_939.0),
        (10.0, 10.0),
        (-1.0, -1.0),
    ] {
        assert_eq!(schedule.next_round(now), expected, "{now}");
    }
    // Not past an end that is earlier still.
    let warm = plan::Warm { finalize_at: Some(50_000), ..hourly() };
    let schedule = after(&warm, &[(90_000.0, 10_000.0, GIB)]);
    assert_eq!(schedule.next_round(10.0), 10.0);
    assert_eq!(schedule.next_round(99_990.0), 50_000.0);
}

#[test]
fn the_prediction_is_made_of_what_was_measured() {
    // The first copy: 100 MiB/s.
    let base = (0.0, 1000.0, 100_000 * MIB);
    let row = |rule, rounds: &[(f64, f64, u64)], now, settle, expected| {
        let predicted = after(&hourly(), rounds).predicted_downtime(now, settle);
        let near = |(one, other): (f64, f64)| (one - other).abs() < 0.01;
        let same = match (predicted, expected) {
            (Some(one), Some(other)) => near((one, other)),
            (one, other) => one == other,
        };
        assert!(same, "{rule}: {predicted:?}, not {expected:?}");
    };
    row("only the first copy", &[base], 5000.0, 15, None);
    // 1 MiB/s changes; 10 s for nothing but a query and a snapshot.
    let idle = (4000.0, 10.0, 0);
    row("an idle machine", &[base, idle], 9000.0, 15, Some(10.0 + 15.0));
    // 4000 MiB in 4000 s; 60 s for it, of which 40 s at the speed of the first copy.
    let busy = (4000.0, 60.0, 4000 * MIB);
    row("right after the snapshot", &[base, busy], 4000.0, 0, Some(20.0));
    row("when half as much has changed", &[base, busy], 6000.0, 0, Some(40.0));
    row("when as much has changed", &[base, busy], 8000.0, 15, Some(60.0 + 15.0));
    // Twice as much: nobody has seen that, so as slowly as all of it was.
    row("when more has changed", &[base, busy], 12_000.0, 0, Some(120.0));
    // A large and a small one tell the bytes (20 ms for a MiB) from the rest (20 s).
    let large = (4000.0, 100.0, 4000 * MIB);
    let small = (5000.0, 30.0, 500 * MIB);
    row("two that differ, at the snapshot", &[base, large, small], 5000.0, 0, Some(20.0));
    // 0.5 MiB/s by now.
    row("two that differ, later", &[base, large, small], 9000.0, 0, Some(20.0 + 2000.0 * 0.02));
    // Larger and yet quicker: as quick as the first copy, no quicker. The machine changes 4 MiB/s.
    let quick = (5000.0, 50.0, 4000 * MIB);
    let slow = (4000.0, 60.0, 1000 * MIB);
    row("the larger was quicker", &[base, slow, quick], 5100.0, 0, Some(60.0 + (400.0 - 1000.0) * 0.01));
    // A job that goes on with an earlier one has not measured the first copy.
    let mut resumed = Schedule::new(&hourly());
    resumed.round_ended(round(1000.0, 1000.0, 1010.0, 100 * MIB, false));
    assert_eq!(resumed.predicted_downtime(1100.0, 0), None, "nobody knows since when those changed");
    resumed.round_ended(round(1100.0, 1100.0, 1110.0, 100 * MIB, false));
    assert_eq!(resumed.predicted_downtime(1150.0, 0), Some(10.0));
    assert_eq!(resumed.predicted_downtime(1300.0, 5), Some(25.0));
}

/// A machine whose rounds cost what a model says: the prediction is not far from what the next round costs.
#[test]
fn the_prediction_comes_true() {
    // Seconds for a snapshot and a query, MiB/s of a delta, MiB/s that the machine writes.
    for (fixed, speed, writes) in [(10.0, 50.0, 1.0), (3.0, 90.0, 0.01), (20.0, 40.0, 10.0)] {
        let cost = |mib: f64| fixed + mib / speed;
        let mut schedule = Schedule::new(&hourly());
        let mut snapshot = 0.0;
        let mut now = 2000.0;
        schedule.round_ended(round(snapshot, 0.0, now, 200_000 * MIB, true));
        for number in 0..5 {
            now = schedule.next_round(now);
            let mib = writes * (now - snapshot);
            if let Some(predicted) = schedule.predicted_downtime(now, 0) {
                let real = cost(mib);
                // Rather too much than too little: a budget is to be kept.
                let near = real * 0.9 - 1.0..=real * 1.3 + 1.0;
                assert!(near.contains(&predicted), "{number}: {predicted} for {real}");
            }
            schedule.round_ended(round(now, now, now + cost(mib), (mib * MIB as f64) as u64, false));
            snapshot = now;
            now += cost(mib);
        }
    }
}

#[test]
fn the_last_round_is_due_at_its_time_or_within_its_budget() {
    let at = plan::Warm { finalize_at: Some(5000), ..hourly() };
    let rounds = [(0.0, 1000.0, 100_000 * MIB), (4000.0, 60.0, 4000 * MIB)];
    // Also before anything was measured.
    for schedule in [Schedule::new(&at), after(&at, &rounds)] {
        assert_eq!(schedule.is_due(4999.9), None);
        assert_eq!(schedule.is_due(5000.0), Some(Due::FinalizeAt { at: 5000.0 }));
        assert_eq!(schedule.is_due(1e12), Some(Due::FinalizeAt { at: 5000.0 }));
    }
    let text = Due::FinalizeAt { at: 1_795_269_600.0 }.to_string();
    assert_eq!(text, "finalize_at (2026-11-21T14:00:00Z) has come");
    assert_eq!(Due::FinalizeAt { at: 1e300 }.to_string(), "finalize_at has come");

    let budget = plan::Warm { downtime_budget: Some(60), ..hourly() };
    assert_eq!(after(&budget, &rounds[..1]).is_due(1e12), None, "no delta was measured");
    let mut schedule = after(&budget, &rounds);
    // 20 s right after the snapshot, 60 s after 4000 s (see above).
    assert_eq!(schedule.is_due(8000.0).map(|due| matches!(due, Due::Budget { .. })), Some(true));
    assert_eq!(schedule.is_due(8100.0), None);
    schedule.set_settle(30);
    assert_eq!(schedule.is_due(8000.0), None, "the machine is off while it settles, too");
    let due = schedule.is_due(5000.0).expect("20 s, 10 s and 30 s");
    assert_eq!(
        due.to_string(),
        "the virtual machine would be off for about 60 s, and downtime_budget_seconds is 60"
    );
    assert_eq!(after(&hourly(), &rounds).is_due(4000.0), None, "nobody asked for it");
}

#[test]
fn no_clock_and_no_measurement_makes_nonsense() {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e18, 0.0, 1.0, 1e18];
    let warm = plan::Warm { finalize_at: Some(100), downtime_budget: Some(5), ..hourly() };
    for one in odd {
        for two in odd {
            for bytes in [0, 1, u64::MAX] {
                let mut schedule = Schedule::new(&warm);
                schedule.round_ended(round(one, two, one, bytes, true));
                schedule.round_ended(round(two, one, two, u64::MAX - bytes, false));
                schedule.round_ended(round(one, two, one, bytes, false));
                for now in odd {
                    let _ = schedule.next_round(now);
                    let _ = schedule.is_due(now).map(|due| due.to_string());
                    if let Some(seconds) = schedule.predicted_downtime(now, 1) {
                        assert!(seconds.is_nan() || seconds >= 1.0, "{seconds}");
                    }
                }
            }
        }
    }
    // Set back between two snapshots: what was known before still holds.
    let mut schedule = after(&hourly(), &[(0.0, 100.0, GIB), (1000.0, 10.0, 1000 * MIB)]);
    schedule.round_ended(round(500.0, 500.0, 510.0, 1000 * MIB, false));
    let (before, after) = (schedule.predicted_downtime(500.0, 0), schedule.predicted_downtime(1500.0, 0));
    assert!(before < after, "{before:?} {after:?}");
    // And a clock before the snapshot: nothing has changed yet.
    assert_eq!(schedule.predicted_downtime(0.0, 0), before);
}

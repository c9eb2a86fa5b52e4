//! Rules of the waiting, with a clock that runs as fast as nothing happens.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::plan;
use crate::warm::schedule::Measured;

/// Epoch seconds at the beginning of every test.
const BEGIN: f64 = 1_000_000.0;

/// The last round ended when the test begins.
fn schedule(interval: u64, finalize_at: Option<f64>, budget: Option<u64>) -> Schedule {
    let mut schedule = Schedule::new(&plan::Warm {
        interval,
        finalize_at: finalize_at.map(|at| at as i64),
        finalize_window: 0,
        finalize_interval: 30,
        downtime_budget: budget,
        quiesce: plan::Quiesce::Auto,
    });
    let mut ended = |began: f64, bytes: u64, first: bool| {
        schedule.round_ended(Measured { snapshot_at: began, began, ended: began + 10.0, bytes, first });
    };
    ended(BEGIN - 1010.0, 1 << 30, true);
    ended(BEGIN - 10.0, 1000 << 20, false);
    schedule
}

struct Job {
    directory: tempfile::TempDir,
    triggers: Triggers,
}

impl Job {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let triggers = Triggers::beside(&directory.path().join("state.json"));
        Self { directory, triggers }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Waits; what comes next, after how many seconds, and what was told.
    async fn wait(&self, schedule: &Schedule) -> (Next, u64, Vec<String>) {
        let (tell, told) = unbounded_channel();
        let begin = Instant::now();
        let clock = || BEGIN + begin.elapsed().as_secs_f64();
        let waiting = wait(&self.triggers, schedule, &tell, clock, async || ());
        let next = timeout(Duration::from_secs(1_000_000), waiting).await.expect("an end");
        (next, begin.elapsed().as_secs(), texts(told))
    }
}

/// The events in few words, predictions left out.
fn texts(mut told: UnboundedReceiver<Event>) -> Vec<String> {
    let mut texts = Vec::new();
    while let Ok(event) = told.try_recv() {
        match event {
            Event::Entered(phase) => texts.push(phase.text()),
            Event::NextRound { at: Some(at) } => texts.push(format!("+{}", at - BEGIN)),
            Event::NextRound { at: None } => texts.push("-".to_owned()),
            Event::PredictedDowntime { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    texts
}

/// Files made (Some) and removed (None) after so many seconds.
async fn play(directory: &Path, script: &[(u64, &str, Option<&str>)]) {
    let begin = Instant::now();
    for (at, name, content) in script {
        tokio::time::sleep_until(begin + Duration::from_millis(at * 1000 - 500)).await;
        match content {
            Some(content) => fs::write(directory.join(name), content).unwrap(),
            None => fs::remove_file(directory.join(name)).unwrap(),
        }
    }
    std::future::pending().await
}

fn asked(reason: &str) -> Next {
    Next::Cutover { reason: reason.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn it_ends_as_clients_and_the_time_say() {
    type Script<'a> = &'a [(u64, &'a str, Option<&'a str>)];
    let cutover = || asked("a client asked for it");
    let table: Vec<(&str, Script, Next, u64, &[&str])> = vec![
        ("nothing happens", &[], Next::Round, 3600, &["Waiting", "+3600", "-"]),
        ("cutover", &[(100, "cutover", Some(""))], cutover(), 100, &["Waiting", "+3600", "-"]),
        (
            "cutover now",
            &[(100, "cutover", Some("now"))],
            asked("a client asked for it, at once"),
            100,
            &["Waiting", "+3600", "-"],
        ),
        ("a round", &[(7, "copy_trigger", Some(""))], Next::Round, 7, &["Waiting", "+3600", "-"]),
        (
            "a pause counts",
            &[(100, "pause_operations", Some("")), (200, "pause_operations", None)],
            Next::Round,
            3600,
            &["Waiting", "+3600", "Paused", "-", "Waiting", "+3600", "-"],
        ),
        (
            "a pause longer than the interval",
            &[(100, "pause_operations", Some("")), (9000, "pause_operations", None)],
            Next::Round,
            9000,
            &["Waiting", "+3600", "Paused", "-", "Waiting"],
        ),
        (
            "what is asked for in a pause waits for its end",
            &[
                (100, "pause_operations", Some("")),
                (110, "copy_trigger", Some("")),
                (120, "cutover", Some("")),
                (9000, "pause_operations", None),
            ],
            cutover(),
            9000,
            &["Waiting", "+3600", "Paused", "-"],
        ),
        (
            "cutover now ends a pause",
            &[(100, "pause_operations", Some("")), (200, "cutover", Some("now"))],
            asked("a client asked for it, at once"),
            200,
            &["Waiting", "+3600", "Paused", "-"],
        ),
    ];
    for (rule, script, next, seconds, events) in table {
        let job = Job::new();
        let schedule = schedule(3600, None, None);
        let waited = tokio::select! {
            waited = job.wait(&schedule) => waited,
            () = play(job.directory.path(), script) => unreachable!(),
        };
        assert_eq!(waited, (next, seconds, events.iter().map(ToString::to_string).collect()), "{rule}");
        // Consumed once: nothing of it counts for the next waiting, but what was not obeyed.
        assert!(!job.path("cutover").exists() && !job.path("pause_operations").exists(), "{rule}");
        let left = script.iter().any(|(_, name, _)| *name == "cutover" || *name == "pause_operations");
        assert!(left || !job.path("copy_trigger").exists(), "{rule}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_during_a_round_is_seen_at_once() {
    let job = Job::new();
    let schedule = schedule(3600, None, None);
    fs::write(job.path("cutover"), "").unwrap();
    assert_eq!(job.wait(&schedule).await, (asked("a client asked for it"), 0, vec!["Waiting".to_owned()]));
    assert_eq!(job.wait(&schedule).await.0, Next::Round, "consumed once");
}

#[tokio::test(start_paused = true)]
async fn the_schedule_ends_it_too() {
    let finalize = asked("finalize_at (1970-01-12T13:50:00Z) has come");
    assert_eq!(Job::new().wait(&schedule(3600, Some(BEGIN + 200.0), None)).await.0, finalize);
    let (next, seconds, events) = Job::new().wait(&schedule(0, None, None)).await;
    assert_eq!((next, seconds, events.len()), (Next::Round, 0, 1));
    // 1 MiB/s changes, a delta of 1000 MiB took 10 s: less than that now.
    let (next, seconds, _) = Job::new().wait(&schedule(3600, None, Some(10))).await;
    assert!(matches!(next, Next::Cutover { .. }) && seconds == 0, "{next:?}");
}

/// Not more often than every five seconds, and it grows with the time.
#[tokio::test(start_paused = true)]
async fn the_prediction_is_told_now_and_then_also_in_a_pause() {
    let job = Job::new();
    fs::write(job.path("pause_operations"), "").unwrap();
    let schedule = schedule(3600, None, None);
    let (tell, mut told) = unbounded_channel();
    let begin = Instant::now();
    let clock = || BEGIN + begin.elapsed().as_secs_f64();
    let waiting = wait(&job.triggers, &schedule, &tell, clock, async || ());
    assert!(timeout(Duration::from_millis(60_500), waiting).await.is_err());
    let mut predicted = Vec::new();
    while let Ok(event) = told.try_recv() {
        if let Event::PredictedDowntime { seconds } = event {
            predicted.push(seconds.unwrap());
        }
    }
    assert_eq!(predicted.len(), 13);
    assert!(predicted.is_sorted_by(|one, other| one < other), "{predicted:?}");
}

/// A session that answers slowly does not hold up a cutover, and is asked once a minute.
#[tokio::test(start_paused = true)]
async fn the_session_is_kept_alive_beside_it() {
    let job = Job::new();
    let schedule = schedule(3600, None, None);
    let (tell, _told) = unbounded_channel();
    let begin = Instant::now();
    let calls = RefCell::new(Vec::new());
    let alive = async || {
        calls.borrow_mut().push(begin.elapsed().as_secs());
        if calls.borrow().len() == 3 {
            sleep(Duration::from_secs(100_000)).await;
        }
    };
    let clock = || BEGIN + begin.elapsed().as_secs_f64();
    let next = tokio::select! {
        next = wait(&job.triggers, &schedule, &tell, clock, alive) => next,
        () = play(job.directory.path(), &[(500, "cutover", Some(""))]) => unreachable!(),
    };
    assert_eq!((next, begin.elapsed().as_secs()), (asked("a client asked for it"), 500));
    assert_eq!(*calls.borrow(), [60, 120, 180]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_ends_the_waiting() {
    let job = Job::new();
    let schedule = schedule(3600, None, None);
    let (tell, _told) = unbounded_channel();
    let begin = Instant::now();
    let looks = Cell::new(0);
    let clock = || {
        looks.set(looks.get() + 1);
        let back = if begin.elapsed().as_secs() >= 10 { 86_400.0 } else { 0.0 };
        BEGIN + begin.elapsed().as_secs_f64() - back
    };
    let next = wait(&job.triggers, &schedule, &tell, clock, async || ()).await;
    assert_eq!((next, begin.elapsed().as_secs()), (Next::Round, 10));
    assert_eq!(looks.get(), 11, "once a second");
}

//! Each request by which a job changes the cloud fails once, in each way. What a good run asks is the table: a step that a later
//! program adds is in it by itself.

use std::sync::Mutex;

use regex::Regex;
use serde_json::{Value, json};

use super::fake::{Fault, Harm};
use super::site::{Mode, Site};

/// The `nth` request of this method to paths like this.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    method: &'static str,
    path: String,
    nth: usize,
}

const WORDS: &str = "the policy of this test forbids it";

/// All the harms, and whether the job ends well all the same; `None`: either way.
fn harms() -> Vec<(Harm, Option<bool>)> {
    vec![
        (Harm::Refuse(500, "it broke"), None),
        (Harm::Refuse(403, WORDS), Some(false)),
        (Harm::Refuse(409, WORDS), None),
        (Harm::Silence, Some(true)),
        (Harm::Expired, Some(true)),
        (Harm::CutBefore, Some(true)),
        (Harm::CutAfter, Some(true)),
        (Harm::DoneAndRefused, Some(true)),
    ]
}

/// The requests of a good run that change something, in order.
fn steps(mode: Mode) -> Option<Vec<Step>> {
    let site = Site::new(mode)?;
    let last = site.run(&json!({}));
    site.arrived(&last).unwrap();
    let id = Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").unwrap();
    let mut steps: Vec<Step> = Vec::new();
    for seen in site.fake.seen() {
        let method = match seen.request.method.as_str() {
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            _ => continue,
        };
        let path = format!("^{}$", id.replace_all(seen.request.plain(), "[^/]+"));
        let nth = steps.iter().filter(|step| step.method == method && step.path == path).count() + 1;
        steps.push(Step { method, path, nth });
    }
    Some(steps)
}

/// How the message of a job begins that fails there.
fn told(path: &str) -> &'static str {
    [
        ("/servers$", "Create VM failed"),
        ("/ports$", "Failed to create port"),
        ("transfer", "Failed to transfer volume"),
        ("/volumes$", "Error creating volume"),
        ("/action$", "Create VM failed"),
        ("os-volume_attachments$", "Cannot attach volume"),
        ("os-volume_attachments/", "Cannot detach volume"),
    ]
    .into_iter()
    .find_map(|(part, words)| path.contains(part).then_some(words))
    .unwrap_or_default()
}

fn one(mode: Mode, step: &Step, harm: &Harm, ends_well: Option<bool>) -> Result<(), String> {
    let site = Site::new(mode).unwrap();
    site.fake.fail(Fault::once(step.method, &step.path, harm.clone()).nth(step.nth));
    let mut job = site.start(&json!({}));
    let last = site.end(&mut job);
    if site.fake.struck() == 0 {
        return Err(format!("the fault did not strike\n{}", site.fake.story()));
    }
    let failed = last["failed"] == true;
    // A cloud that forbids to say what a volume is may boot from it all the same.
    let is_tried = step.path.ends_with("/action$");
    let ends_well = if is_tried && matches!(harm, Harm::Refuse(403, _)) { None } else { ends_well };
    if ends_well.is_some_and(|well| well == failed) {
        return Err(format!("it ended as it must not: {}\n{}", last["last_message"], site.fake.story()));
    }
    if !failed {
        return site.arrived(&last).map(drop);
    }
    let message = last["last_message"]["message"].as_str().unwrap_or_default();
    if let Harm::Refuse(_, words) = harm
        && (!message.starts_with(told(&step.path)) || !message.contains(words) && !is_tried)
    {
        return Err(format!("the message does not tell step and reason: {message}"));
    }
    if mode == Mode::OnePhase {
        return site.untouched();
    }
    // What is copied is not thrown away: the job can be gone on with, or be removed.
    let tag = site.tag(&job);
    if !message.contains("resume") {
        return site.untouched();
    }
    if step.nth.is_multiple_of(2) {
        let last = site.run(&json!({"resume": tag}));
        return site.arrived(&last).map(drop).map_err(|why| format!("after resume: {why}"));
    }
    let cleaned = cleanup(&site, &tag, &json!({}));
    site.untouched().map_err(|why| format!("after cleanup ({cleaned:?}): {why}"))
}

/// Some at once: they mostly wait.
fn all(mode: Mode, at_once: usize, wanted: impl Fn(&Step, &Harm) -> bool) {
    let Some(steps) = steps(mode) else { return };
    let mut queue = Vec::new();
    for step in &steps {
        for (harm, ends_well) in harms() {
            if wanted(step, &harm) {
                queue.push((step.clone(), harm, ends_well));
            }
        }
    }
    assert!(queue.len() >= 20, "only {} of {steps:?}", queue.len());
    let count = queue.len();
    let (queue, failures) = (Mutex::new(queue), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some((step, harm, ends_well)) = queue.lock().unwrap().pop() else { return };
                    if let Err(why) = one(mode, &step, &harm, ends_well) {
                        failures.lock().unwrap().push(format!("{step:?} {harm:?}:\n{why}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {count} ended badly\n\n{}\n", failures.len(), failures.join("\n\n"));
}

/// A login changes nothing: it is asked again whatever became of the first.
fn is_login(step: &Step) -> bool {
    step.path.contains("/auth/tokens")
}

#[test]
fn each_step_of_a_one_phase_job_that_fails_is_made_again_or_undone() {
    all(Mode::OnePhase, 6, |step, _| !is_login(step));
}

/// The steps that one-phase jobs have are in its table; here those before them.
#[test]
fn each_step_of_a_two_phase_job_that_fails_is_made_again_or_undone() {
    let is_finish =
        |step: &Step| ["transfer", "/ports$", "/servers$"].iter().any(|part| step.path.contains(part));
    all(Mode::TwoPhase, 3, |step, harm| {
        let forbidden = matches!(harm, Harm::Refuse(403, _));
        !is_login(step)
            && match is_finish(step) {
                false => step.nth == 1 || matches!(harm, Harm::CutAfter),
                true => step.nth == 1 && forbidden,
            }
    });
}

/// It does not get better: the job ends, and says it.
#[test]
fn a_step_that_fails_for_ever_is_undone() {
    for (path, harm) in [
        ("/servers$", Harm::Refuse(500, "it broke")),
        ("/servers$", Harm::CutBefore),
        ("/ports$", Harm::Refuse(500, "it broke")),
        ("/os-volume-transfer$|/volume-transfers$", Harm::Refuse(500, "it broke")),
        ("/accept$", Harm::Refuse(500, "it broke")),
        ("/accept$", Harm::CutBefore),
    ] {
        let Some(site) = Site::new(Mode::OnePhase) else { return };
        site.fake.fail(Fault::always("POST", path, harm.clone()));
        let last = site.run(&json!({}));
        assert_eq!(last["failed"], true, "{path} {harm:?}: {last:#}");
        let message = last["last_message"]["message"].as_str().unwrap();
        assert!(
            message.starts_with(told(&path.replace('|', ""))) || path.contains('|'),
            "{path} {harm:?}: {message}"
        );
        site.untouched().unwrap_or_else(|why| panic!("{path} {harm:?}: {why}"));
    }
}

/// The server comes to nothing after it was taken.
#[test]
fn a_server_that_ends_in_error_is_removed_and_its_cloud_quoted() {
    for mode in [Mode::OnePhase, Mode::TwoPhase] {
        let Some(site) = Site::new(mode) else { return };
        site.fake.world(|world| world.doom = Some("No valid host was found.".to_owned()));
        let last = site.run(&json!({}));
        let message = last["last_message"]["message"].as_str().unwrap_or_default();
        assert!(
            message.starts_with("Create VM failed") && message.contains("No valid host was found."),
            "{last:#}"
        );
        site.untouched().unwrap();
    }
}

/// What cannot be removed is told, and `cleanup` removes it when it can.
#[test]
fn what_cannot_be_removed_is_told_and_removed_later() {
    let Some(site) = Site::new(Mode::OnePhase) else { return };
    site.fake.fail(Fault::once("POST", "/servers$", Harm::Refuse(403, WORDS)));
    site.fake.fail(Fault::always("DELETE", "/(volumes|ports)/", Harm::Refuse(403, WORDS)));
    let mut job = site.start(&json!({}));
    let last = site.end(&mut job);
    let tag = site.tag(&job);
    let message = last["last_message"]["message"].as_str().unwrap();
    assert!(message.starts_with("Create VM failed"), "{message}");
    let warnings = last["warnings"].to_string();
    assert!(warnings.contains(&format!("virt-v2v-wrapper cleanup {tag}")), "{warnings}");
    assert!(site.volumes.iter().all(|id| warnings.contains(id)), "{warnings}");
    site.fake.heal();
    let cleaned = cleanup(&site, &tag, &json!({}));
    assert_eq!(cleaned.0, Some(0), "{}", cleaned.1);
    site.untouched().unwrap();
    // Once more there is nothing to do.
    assert_eq!(cleanup(&site, &tag, &json!({})).0, Some(0));
}

/// Only one of the two projects lets us in: what is there goes, and what is in the other is told.
#[test]
fn a_project_that_lets_nobody_in_keeps_nobody_from_the_other() {
    for (path, is_all_here) in [("/accept$", true), ("/servers$", false)] {
        let Some(site) = Site::new(Mode::OnePhase) else { return };
        site.fake.fail(Fault::always("POST", path, Harm::Refuse(403, WORDS)));
        // Two logins at the beginning; then the volumes' project, and then the other one.
        let refused = Fault::always("POST", "/auth/tokens$", Harm::Refuse(401, "no role there any more"));
        site.fake.fail(refused.nth(4));
        let mut job = site.start(&json!({}));
        let last = site.end(&mut job);
        assert_eq!(last["failed"], true, "{path}: {last:#}");
        let warnings = last["warnings"].to_string();
        assert_eq!(warnings.contains("no role there any more"), !is_all_here, "{path}: {warnings}");
        if is_all_here {
            site.untouched().unwrap_or_else(|why| panic!("{path}: {why}"));
            continue;
        }
        assert!(site.volumes.iter().all(|id| warnings.contains(id)), "{warnings}");
        let tag = site.tag(&job);
        site.fake.heal();
        let cleaned = cleanup(&site, &tag, &json!({}));
        assert_eq!(cleaned.0, Some(0), "{}", cleaned.1);
        site.untouched().unwrap_or_else(|why| panic!("{path}: {why}"));
    }
}

/// The cloud's own words tell it, before anything is copied.
#[test]
fn a_conversion_server_that_is_none_is_told_by_its_cloud() {
    let Some(site) = Site::new(Mode::TwoPhase) else { return };
    let last = site.run(&json!({"osp_server_id": "nobody"}));
    let message = last["last_message"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("Cannot attach volume") && message.contains("nobody"), "{last:#}");
    site.untouched().unwrap();
}

/// Exit code and words of `cleanup` with the document on stdin; nobody wants to go on with what is copied.
pub fn cleanup(site: &Site, tag: &str, more: &Value) -> (Option<i32>, String) {
    let document = String::from_utf8(site.document(more)).unwrap();
    let output = site.sandbox.child(&["cleanup", "--discard", tag], &document).wait_with_output().unwrap();
    let words = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    (output.status.code(), words.join(""))
}

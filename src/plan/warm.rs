//! Keys of warm migration, and of the shutdown before the last copy (contract.md 1.2, peers.md 2.3). Pure.
//!
//! What is decided with them while the job runs is [`crate::warm`]'s matter.

use serde::{Deserialize, Serialize};

use crate::document::{self, Document, Seconds};
use crate::plan::TwoPhase;
use crate::plan::problems::Findings;

const INTERVAL: u64 = 3600;
const FINALIZE_WINDOW: u64 = 600;
const FINALIZE_INTERVAL: u64 = 30;

/// When a machine that runs is copied, and how. All times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// From the end of one round to the beginning of the next.
    pub interval: u64,
    /// When the last round begins, since 1970.
    pub finalize_at: Option<i64>,
    /// How long before that `finalize_interval` counts instead.
    pub finalize_window: u64,
    /// From the end of one round to the beginning of the next, shortly before `finalize_at`.
    pub finalize_interval: u64,
    /// The last round begins as soon as the machine would be off for no longer than this.
    pub downtime_budget: Option<u64>,
    /// Whether the guest writes out its file systems before a snapshot.
    pub quiesce: Quiesce,
}

/// Who switches the machine off before the last copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Who.
    pub mode: ShutdownMode,
    /// Seconds from its shutdown to the last copy; 0: 30 for Windows guests, 15 for others.
    pub settle: u64,
}

/// `shutdown_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownMode {
    /// Nobody here: a machine that is on when it must be off is refused. The default.
    #[default]
    Never,
    /// The guest is asked; one that does not obey is switched off.
    Auto,
    /// It is switched off.
    Force,
    /// Somebody else, who is waited for.
    Manual,
}

/// `snapshot_quiesce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quiesce {
    /// If the guest can. The default.
    #[default]
    Auto,
    /// Without it there is no snapshot.
    Require,
    /// Not even asked.
    Never,
}

/// What the keys say, whether or not they have an effect.
pub(super) struct Keys {
    pub warm: Warm,
    pub shutdown: Shutdown,
}

/// Reads the keys. Wrong values are problems also where the key has no effect.
pub(super) fn keys(document: &Document, findings: &mut Findings) -> Keys {
    let mode = shutdown_mode(document, findings);
    let warm = Warm {
        interval: seconds("delta_interval", document.delta_interval, findings)
            .or_else(|| iteration_seconds(document))
            .unwrap_or(INTERVAL),
        finalize_at: finalize_at(document, findings),
        finalize_window: seconds("finalize_window", document.finalize_window, findings)
            .unwrap_or(FINALIZE_WINDOW),
        finalize_interval: seconds("finalize_delta_interval", document.finalize_delta_interval, findings)
            .unwrap_or(FINALIZE_INTERVAL),
        downtime_budget: seconds("downtime_budget_seconds", document.downtime_budget_seconds, findings),
        quiesce: quiesce(document, findings),
    };
    let settle =
        seconds("finalize_settle_seconds", document.finalize_settle_seconds, findings).unwrap_or_default();
    Keys { warm, shutdown: Shutdown { mode, settle } }
}

/// What warm migration needs, and what does not fit together.
pub(super) fn go_together(document: &Document, keys: &Keys, findings: &mut Findings) {
    if matches!(document.transport_method.as_deref(), Some("ssh" | "local")) {
        findings.ours(
            "warm needs transport_method vddk: only VMware over VDDK tells which blocks changed since the last copy; \
             switch the virtual machine off and use two_phase"
                .to_owned(),
        );
    }
    if keys.shutdown.mode == ShutdownMode::Never {
        if keys.warm.downtime_budget.is_some() {
            findings.ours(
                "downtime_budget_seconds needs shutdown_mode auto, force or manual: the last copy would begin by \
                 itself and then be refused, as the virtual machine still runs"
                    .to_owned(),
            );
        }
        if keys.warm.finalize_at.is_some() {
            findings.warn(
                "finalize_at with shutdown_mode never: the virtual machine must be off by then, or its last copy is \
                 refused"
                    .to_owned(),
            );
        }
    }
    match keys.warm.downtime_budget {
        Some(0) => findings.ours(
            "downtime_budget_seconds must be at least 1: no last copy takes no time; leave the key out for no budget"
                .to_owned(),
        ),
        Some(budget) if budget <= keys.shutdown.settle => findings.ours(format!(
            "downtime_budget_seconds ({budget}) must be more than finalize_settle_seconds ({}): the virtual machine \
             is off at least that long",
            keys.shutdown.settle
        )),
        _ => {}
    }
}

fn shutdown_mode(document: &Document, findings: &mut Findings) -> ShutdownMode {
    match document.shutdown_mode.as_deref() {
        None | Some("never") => ShutdownMode::Never,
        Some("auto") => ShutdownMode::Auto,
        Some("force") => ShutdownMode::Force,
        Some("manual") => ShutdownMode::Manual,
        Some(other) => {
            findings.ours(format!("shutdown_mode: {other} is none of auto, force, manual, never"));
            ShutdownMode::default()
        }
    }
}

fn quiesce(document: &Document, findings: &mut Findings) -> Quiesce {
    let Some(document::Quiesce(word)) = &document.snapshot_quiesce else { return Quiesce::default() };
    match word.as_str() {
        "auto" => Quiesce::Auto,
        "require" => Quiesce::Require,
        "never" => Quiesce::Never,
        other => {
            findings.ours(format!("snapshot_quiesce: {other} is none of auto, require, never, true, false"));
            Quiesce::default()
        }
    }
}

/// A time without a zone is another moment on another host: it is not guessed.
fn finalize_at(document: &Document, findings: &mut Findings) -> Option<i64> {
    let given = document.finalize_at.as_deref()?;
    // A zone's name in brackets is not RFC 3339, and may contradict the offset.
    match given.parse::<jiff::Timestamp>() {
        Ok(at) if !given.contains('[') => return Some(at.as_second()),
        _ if given.parse::<jiff::civil::DateTime>().is_ok() && !given.contains('[') => {
            findings.ours(format!(
                "finalize_at: {given} has no time zone: add Z (UTC) or an offset such as +02:00"
            ));
        }
        _ => findings.ours(format!(
            "finalize_at: {given} is no time in RFC 3339 with its zone, such as 2026-01-31T22:00:00+01:00"
        )),
    }
    None
}

fn seconds(key: &str, given: Option<Seconds>, findings: &mut Findings) -> Option<u64> {
    match given? {
        Seconds::Whole(seconds @ 0..) => return Some(seconds.unsigned_abs()),
        Seconds::Whole(_) | Seconds::Cut(_) | Seconds::Invalid => {
            findings.ours(format!("{key} must be a whole number of seconds, 0 or more"));
        }
    }
    None
}

/// As the old program took it; a wrong value is [`check_iteration_seconds`]'s matter.
fn iteration_seconds(document: &Document) -> Option<u64> {
    match document.iteration_seconds? {
        Seconds::Whole(seconds) | Seconds::Cut(seconds) => u64::try_from(seconds).ok(),
        Seconds::Invalid => None,
    }
}

/// The old program's text, at its place among the others.
pub(super) fn check_iteration_seconds(document: &Document, findings: &mut Findings) {
    match document.iteration_seconds {
        Some(Seconds::Invalid | Seconds::Whole(..0) | Seconds::Cut(..0)) => {
            findings.contract("Invalid value for `iteration_seconds`");
        }
        Some(Seconds::Whole(_) | Seconds::Cut(_)) | None => {}
    }
}

/// Keys of warm migration in a document that asks for something else.
pub(super) fn no_effect(document: &Document, two_phase: Option<&TwoPhase>, findings: &mut Findings) {
    let warm = two_phase.is_some_and(|two_phase| two_phase.warm.is_some());
    let is_vddk = document.transport_method.as_deref() == Some("vddk");
    // A machine that is copied over VDDK in two phases must be off, and can be switched off.
    let shuts_down = two_phase.is_some() && is_vddk;
    for (given, has_effect, key, needed) in [
        (document.iteration_seconds.is_some(), warm, "iteration_seconds", "warm"),
        (document.delta_interval.is_some(), warm, "delta_interval", "warm"),
        (document.finalize_at.is_some(), warm, "finalize_at", "warm"),
        (document.finalize_window.is_some(), warm, "finalize_window", "warm"),
        (document.finalize_delta_interval.is_some(), warm, "finalize_delta_interval", "warm"),
        (document.snapshot_quiesce.is_some(), warm, "snapshot_quiesce", "warm"),
        (document.downtime_budget_seconds.is_some(), warm, "downtime_budget_seconds", "warm"),
        (document.keep_change_tracking.is_some(), warm, "keep_change_tracking", "warm"),
        (
            document.shutdown_mode.is_some(),
            shuts_down,
            "shutdown_mode",
            "two_phase and transport_method vddk",
        ),
        (
            document.finalize_settle_seconds.is_some(),
            shuts_down,
            "finalize_settle_seconds",
            "two_phase and transport_method vddk",
        ),
    ] {
        if given && !has_effect {
            findings.warn(format!("{key} has no effect without {needed}"));
        }
    }
    if warm && document.finalize_at.is_none() {
        for (given, key) in [
            (document.finalize_window.is_some(), "finalize_window"),
            (document.finalize_delta_interval.is_some(), "finalize_delta_interval"),
        ] {
            if given {
                findings.warn(format!("{key} has no effect without finalize_at"));
            }
        }
    }
}

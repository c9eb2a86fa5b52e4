//! What a state says of a job whose machine runs while it is copied: its rounds, and what they are of the whole job
//! (contract.md 3.4). Pure.
//!
//! What a round is to one disk is [`super::two_phase`]'s; when it begins [`crate::warm::schedule`]'s.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::State;
use super::two_phase::MOST_ROUNDS;
use crate::event::Event;
use crate::phase::Phase;

/// Progress of the whole job when the copies of a cold job begin and end.
const COLD: (f64, f64) = (2.0, 85.0);
/// The same of the first round of a warm one, and of its last. The rounds between them change nothing: nobody knows how
/// many follow.
const FIRST: (f64, f64) = (2.0, 70.0);
const LAST: (f64, f64) = (70.0, 85.0);
/// Progress of a disk that is copied, but for its last round: a client must not think that it is done.
pub(super) const NOT_LAST: f64 = 95.0;

/// One round of copies, of all disks together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobRound {
    /// Which one, from 0.
    pub round: u32,
    /// Whether the machine is converted after it.
    pub last: bool,
    /// Seconds since 1970.
    pub started_at: f64,
    /// Bytes of data copied; absent while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// How long it took; absent while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seconds: Option<f64>,
    /// Bytes per second, over all of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate: Option<u64>,
}

/// The part of the job that the round that runs is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stretch {
    /// The only round.
    #[default]
    Cold,
    /// The first, and others follow.
    First,
    /// Neither the first nor the last.
    Between,
    /// The last of several.
    Last,
}

impl Stretch {
    fn of(round: u32, last: bool) -> Self {
        match (round, last) {
            (0, true) => Self::Cold,
            (0, false) => Self::First,
            (_, false) => Self::Between,
            (_, true) => Self::Last,
        }
    }

    /// Progress of the whole job at its beginning and its end.
    fn bounds(self) -> Option<(f64, f64)> {
        match self {
            Self::Cold => Some(COLD),
            Self::First => Some(FIRST),
            Self::Between => None,
            Self::Last => Some(LAST),
        }
    }

    /// What a disk's progress comes to with its last byte.
    pub(super) fn most_of_a_disk(self) -> f64 {
        match self {
            Self::Cold => 100.0,
            Self::First => NOT_LAST,
            // The bytes of a delta say nothing of the disk.
            Self::Between | Self::Last => 0.0,
        }
    }
}

impl State {
    /// Has the last round begun, so that no trigger counts any more?
    pub fn is_cut_over(&self) -> bool {
        let converting = [Phase::StartingVirtV2v, Phase::Committing].map(|phase| phase.text());
        self.rounds.last().is_some_and(|round| round.last) || converting.contains(&self.status)
    }

    pub(super) fn enter_round(&mut self, round: u32, last: bool) {
        self.stretch = Stretch::of(round, last);
        self.next_round_at = None;
        if let Some((begin, _)) = self.stretch.bounds() {
            self.raise(begin);
        }
    }

    /// `share` is how much of the round that runs is copied.
    pub(super) fn raise_copies(&mut self, share: f64) {
        if let Some((begin, end)) = self.stretch.bounds() {
            self.raise(begin + (end - begin) * share.clamp(0.0, 1.0));
        }
    }

    /// No round follows.
    pub(super) fn forget_plans(&mut self) {
        self.next_round_at = None;
        self.predicted_downtime_seconds = None;
    }

    pub(super) fn apply_warm(&mut self, event: Event) {
        match event {
            Event::RoundStarted { round, last, at } => {
                if self.rounds.len() >= MOST_ROUNDS {
                    self.rounds.remove(1);
                }
                self.rounds.push(JobRound { round, last, started_at: at, ..JobRound::default() });
                self.count_anew();
            }
            Event::RoundFinished { round, at, bytes, .. } => {
                let running = self.rounds.iter_mut().rev().find(|known| known.round == round);
                if let Some(running) = running {
                    running.finish(at, bytes);
                }
            }
            Event::NextRound { at } => self.next_round_at = at,
            Event::PredictedDowntime { seconds } => {
                self.predicted_downtime_seconds = seconds.map(|seconds| (seconds * 10.0).round() / 10.0);
            }
            _ => {}
        }
    }
}

impl JobRound {
    fn finish(&mut self, at: f64, bytes: u64) {
        // A clock that was set back makes no negative time.
        let seconds = (at - self.started_at).max(0.0);
        self.bytes = Some(bytes);
        self.seconds = Some((seconds * 1000.0).round() / 1000.0);
        self.rate = (seconds > 0.0).then(|| (bytes as f64 / seconds) as u64);
    }
}

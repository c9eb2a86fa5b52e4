//! When the next round of a warm migration begins, when the last one, and how long the machine would be off. Pure: times
//! are given, in seconds since 1970 by the host's clock, which may be set back at any moment.
//!
//! Asked by [`super::wait`] between two rounds; told of each round by whoever runs them.

use std::collections::VecDeque;
use std::fmt;

use crate::plan;

/// So many of the last deltas say what a delta costs.
const RECENT: usize = 8;
/// A clock that is set back by more than this makes the next round begin at once: nobody knows how long the last one is
/// ago, and an early round harms nobody.
const SET_BACK: f64 = 60.0;
/// Two snapshots nearer to each other than this say nothing of how fast the machine writes.
const SHORTEST: f64 = 1.0;
/// A delta this many times as large as the smallest tells what bytes cost apart from all else.
const LARGER: u64 = 2;
/// And by at least so many bytes.
const LARGER_BY: u64 = 1 << 20;

/// The rounds of one job in time.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: f64,
    finalize_at: Option<f64>,
    finalize_window: f64,
    finalize_interval: f64,
    budget: Option<f64>,
    settle: u64,
    /// End of the last round.
    ended: Option<f64>,
    /// When the last snapshot was taken.
    snapshot_at: Option<f64>,
    /// Bytes that the machine changes a second.
    changing: Option<f64>,
    /// Seconds that the first copy needed for a byte.
    base: Option<f64>,
    deltas: VecDeque<Delta>,
}

/// What one delta cost.
#[derive(Debug, Clone, Copy)]
struct Delta {
    bytes: u64,
    seconds: f64,
}

/// What was measured of a finished round. Times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// When its snapshot was taken: what changes from then on is copied by the next round.
    pub snapshot_at: f64,
    /// When it began, before the snapshot.
    pub began: f64,
    /// When it ended.
    pub ended: f64,
    /// Bytes of data copied.
    pub bytes: u64,
    /// It copied all of the disks, not what had changed.
    pub first: bool,
}

/// Why the last round begins. Shown as the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Due {
    /// The time has come.
    FinalizeAt {
        /// Seconds since 1970.
        at: f64,
    },
    /// The machine would be off for less than the budget.
    Budget {
        /// Seconds.
        predicted: f64,
        /// Seconds.
        budget: f64,
    },
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Due::FinalizeAt { at } => match jiff::Timestamp::from_second(*at as i64) {
                Ok(at) => write!(f, "finalize_at ({at}) has come"),
                Err(_) => write!(f, "finalize_at has come"),
            },
            Due::Budget { predicted, budget } => write!(
                f,
                "the virtual machine would be off for about {predicted:.0} s, and downtime_budget_seconds is {budget:.0}"
            ),
        }
    }
}

impl Schedule {
    /// Before the first round.
    pub fn new(warm: &plan::Warm) -> Self {
        Self {
            interval: warm.interval as f64,
            finalize_at: warm.finalize_at.map(|at| at as f64),
            finalize_window: warm.finalize_window as f64,
            finalize_interval: warm.finalize_interval as f64,
            budget: warm.downtime_budget.map(|budget| budget as f64),
            settle: 0,
            ended: None,
            snapshot_at: None,
            changing: None,
            base: None,
            deltas: VecDeque::new(),
        }
    }

    /// How many seconds pass between the machine's shutdown and its last copy, once that is known.
    pub fn set_settle(&mut self, seconds: u64) {
        self.settle = seconds;
    }

    /// What [`Self::set_settle`] was told.
    pub fn settle(&self) -> u64 {
        self.settle
    }

    /// A round ended without success: what it copied says nothing, but the next one does not follow at once.
    pub fn round_failed(&mut self, ended: f64) {
        self.ended = Some(ended);
    }

    /// Takes in a round that succeeded for all disks.
    pub fn round_ended(&mut self, round: Measured) {
        let seconds = (round.ended - round.began).max(0.0);
        if round.first {
            self.base = (round.bytes > 0 && seconds > 0.0).then(|| seconds / round.bytes as f64);
        } else {
            let between = self.snapshot_at.map(|before| round.snapshot_at - before);
            // A clock that was set back says nothing; what was known before still holds.
            if let Some(between) = between.filter(|between| *between >= SHORTEST) {
                self.changing = Some(round.bytes as f64 / between);
            }
            if self.deltas.len() >= RECENT {
                self.deltas.pop_front();
            }
            self.deltas.push_back(Delta { bytes: round.bytes, seconds });
        }
        self.snapshot_at = Some(round.snapshot_at);
        self.ended = Some(round.ended);
    }

    /// When the next round begins, in seconds since 1970; never later than `finalize_at`.
    pub fn next_round(&self, now: f64) -> f64 {
        let Some(ended) = self.ended else { return now };
        if ended - now > SET_BACK {
            return now;
        }
        let usual = ended + self.interval;
        let Some(at) = self.finalize_at else { return usual };
        let in_window = (at - self.finalize_window).max(ended + self.finalize_interval);
        usual.min(in_window).min(at)
    }

    /// Is it time for the last round? By the budget only after a delta was measured.
    pub fn is_due(&self, now: f64) -> Option<Due> {
        if let Some(at) = self.finalize_at.filter(|at| *at <= now) {
            return Some(Due::FinalizeAt { at });
        }
        let budget = self.budget?;
        let predicted = self.predicted_downtime(now, self.settle)?;
        (predicted <= budget).then_some(Due::Budget { predicted, budget })
    }

    /// Seconds that the machine would be off, until its last copy is done, if it were cut over at `now`: `settle`, and a
    /// round for what it changed since the last snapshot. `None` before the first delta was measured.
    pub fn predicted_downtime(&self, now: f64, settle: u64) -> Option<f64> {
        let since = (now - self.snapshot_at?).max(0.0);
        let bytes = self.changing? * since;
        Some(self.cost(bytes)? + settle as f64)
    }

    /// Seconds that a delta of so many bytes takes: the smallest one that was measured, with its query and its snapshot,
    /// and what the bytes more or less than its own make of it.
    fn cost(&self, bytes: f64) -> Option<f64> {
        let deltas = || self.deltas.iter();
        let smallest = deltas()
            .min_by(|one, other| one.bytes.cmp(&other.bytes).then(one.seconds.total_cmp(&other.seconds)))?;
        let largest = deltas().max_by_key(|delta| delta.bytes)?;
        let more = largest.bytes - smallest.bytes;
        let differ = more >= LARGER_BY && largest.bytes / LARGER >= smallest.bytes;
        // Without a query and a snapshot in it. No delta is read faster than the whole disk was.
        let apart = ((largest.seconds - smallest.seconds) / more as f64).max(self.base.unwrap_or(0.0));
        let apart = (differ && apart > 0.0).then_some(apart);
        let difference = bytes - smallest.bytes as f64;
        let each = if difference < 0.0 {
            // All alike: who knows what of it was the bytes. At least what the first copy needed for them.
            apart.or(self.base).unwrap_or(0.0)
        } else {
            let (bytes, seconds) = deltas().fold((0.0, 0.0), |(bytes, seconds), delta| {
                (bytes + delta.bytes as f64, seconds + delta.seconds)
            });
            let average = (bytes > 0.0).then(|| seconds / bytes);
            apart.or(average).or(self.base).unwrap_or(0.0)
        };
        Some((smallest.seconds + difference * each).max(0.0))
    }
}

#[cfg(test)]
mod tests;

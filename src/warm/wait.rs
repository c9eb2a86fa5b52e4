//! Waiting between two rounds of a warm migration: for the time of the next one, or for what a client asks for
//! (contract.md 6.3).
//!
//! Called by whoever runs the rounds, in the worker. It begins nothing itself, and may be dropped at any moment.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::schedule::Schedule;
use super::triggers::{Cutover, Triggers};
use crate::event::Event;
use crate::phase::Phase;

/// How often the files are looked at. The old program did every five seconds; clients count on no more.
const LOOK: Duration = Duration::from_secs(1);
/// How often the prediction is told at most: each one is a write of the state file.
const PREDICT: Duration = Duration::from_secs(5);
/// How often the session at the hypervisor is used, lest it expire.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// What comes after the waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A round.
    Round,
    /// The last one.
    Cutover {
        /// Why, as the end of a sentence.
        reason: String,
    },
}

/// Waits. `clock` gives seconds since 1970; `alive` is called once a minute beside it and may take its time (it is
/// dropped when the waiting ends).
///
/// The phase is `Waiting` from now on, or `Paused`; whoever begins the round says which phase comes then.
pub async fn wait(
    triggers: &Triggers,
    schedule: &Schedule,
    tell: &UnboundedSender<Event>,
    clock: impl Fn() -> f64,
    alive: impl AsyncFnMut(),
) -> Next {
    let mut watch = Watch { schedule, tell, paused: false, next_round: None, predict: Instant::now() };
    watch.say(Event::Entered(Phase::Waiting));
    let waiting = async {
        loop {
            if let Some(next) = watch.look(triggers, clock()) {
                return next;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        next = waiting => next,
        never = keep(alive) => match never {},
    }
}

async fn keep(mut alive: impl AsyncFnMut()) -> Infallible {
    loop {
        tokio::time::sleep(KEEP_ALIVE).await;
        alive().await;
    }
}

/// What was told already, so that it is told once.
struct Watch<'a> {
    schedule: &'a Schedule,
    tell: &'a UnboundedSender<Event>,
    paused: bool,
    next_round: Option<f64>,
    /// When the prediction may be told again.
    predict: Instant,
}

impl Watch<'_> {
    /// Is the waiting over?
    fn look(&mut self, triggers: &Triggers, now: f64) -> Option<Next> {
        let next = self.decide(triggers, now);
        match next {
            Some(_) => self.plan(None),
            None => self.predict(now),
        }
        next
    }

    fn decide(&mut self, triggers: &Triggers, now: f64) -> Option<Next> {
        let asked = triggers.asked();
        match asked.cutover {
            Some(Cutover::Now) => {
                triggers.consume_cutover();
                if asked.pause {
                    triggers.consume_pause();
                }
                return Some(Next::Cutover { reason: "a client asked for it, at once".to_owned() });
            }
            Some(Cutover::Asked) if !asked.pause => {
                triggers.consume_cutover();
                return Some(Next::Cutover { reason: "a client asked for it".to_owned() });
            }
            Some(Cutover::Asked) | None => {}
        }
        if asked.pause != self.paused {
            self.paused = asked.pause;
            tracing::info!("{}", if asked.pause { "paused by a client" } else { "the pause is over" });
            self.say(Event::Entered(if asked.pause { Phase::Paused } else { Phase::Waiting }));
        }
        if asked.pause {
            // Nobody knows how long.
            self.plan(None);
            return None;
        }
        if asked.copy {
            triggers.consume_copy();
            return Some(Next::Round);
        }
        if let Some(due) = self.schedule.is_due(now) {
            return Some(Next::Cutover { reason: due.to_string() });
        }
        let next_round = self.schedule.next_round(now);
        if next_round <= now {
            return Some(Next::Round);
        }
        self.plan(Some(next_round));
        None
    }

    fn plan(&mut self, at: Option<f64>) {
        if self.next_round != at {
            self.next_round = at;
            self.say(Event::NextRound { at });
        }
    }

    fn predict(&mut self, now: f64) {
        if Instant::now() < self.predict {
            return;
        }
        if let Some(seconds) = self.schedule.predicted_downtime(now, self.schedule.settle()) {
            self.say(Event::PredictedDowntime { seconds: Some(seconds) });
            self.predict = Instant::now() + PREDICT;
        }
    }

    fn say(&self, event: Event) {
        // The other end is only gone when the stage is over.
        drop(self.tell.send(event));
    }
}

#[cfg(test)]
mod tests;

//! The recorder: folds events into the state and decides when the state file is written.
//!
//! At once on the first change, then at most five times a second, so that nothing a client reads is older than
//! 250 ms (design.md "State file"). The one writer of the worker; [`crate::state_file`] does the writing.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::event::Event;
use crate::log::chain;
use crate::secret::Scrubber;
use crate::state::State;
use crate::{state_file, supervise};

const SHORTEST: Duration = Duration::from_millis(200);
/// A disk that was full is tried again after this.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// State and its file.
pub struct Recorder {
    path: PathBuf,
    scrubber: Scrubber,
    state: State,
    changed: bool,
    next: Instant,
}

impl Recorder {
    /// Goes on from `state`, which the file at `path` holds.
    pub fn new(path: PathBuf, state: State, scrubber: Scrubber) -> Self {
        Self { path, scrubber, state, changed: false, next: Instant::now() }
    }

    /// The state as it is now.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Folds an event, without the secrets that a tool's words may hold; the file follows by [`Self::write_if_due`].
    pub fn apply(&mut self, event: Event) {
        let event = event.map_text(|text| self.scrubber.scrub(&text));
        let before = self.state.clone();
        self.state.apply(event);
        self.changed |= self.state != before;
    }

    /// Folds an event and writes the file now.
    pub fn apply_now(&mut self, event: Event) {
        self.apply(event);
        self.write();
    }

    /// When the file is to be written next, if it is to be.
    pub fn due(&self) -> Option<Instant> {
        self.changed.then_some(self.next)
    }

    /// Writes the file if something changed and the last write is long enough ago.
    pub fn write_if_due(&mut self) {
        if self.due().is_some_and(|due| due <= Instant::now()) {
            self.write();
        }
    }

    /// Folds the event of a worker that begins and stores it without waiting for the disk, so that the reply does not
    /// wait for it either. [`Self::write_if_due`] makes it durable at once.
    pub fn apply_first(&mut self, event: Event) {
        self.apply(event);
        if let Err(error) = state_file::write_first(&self.path, &mut self.state) {
            tracing::error!("{}", chain(&error));
        }
    }

    fn write(&mut self) {
        match state_file::write(&self.path, &mut self.state) {
            Ok(()) => {
                self.changed = false;
                self.next = Instant::now() + SHORTEST;
            }
            Err(error) => {
                tracing::error!("{}", chain(&error));
                self.changed = true;
                self.next = Instant::now() + AFTER_ERROR;
            }
        }
    }

    /// The last event and the last write; whether it could be written ([`supervise::write_final`]).
    #[must_use]
    pub fn finish(mut self, failed: bool) -> bool {
        self.apply(Event::Finished { failed });
        supervise::write_final(&self.path, &mut self.state)
    }
}

//! The token bucket: how many bytes the copy engine may move now.
//!
//! Bytes are paid for before they are moved: over any time at most the rate times that time, and [`BURST`] more, has
//! passed. Whoever asked first is served first; a big request takes what comes in until it is paid, so it needs no big
//! bucket and cannot be overtaken for ever. For one thread; clones share.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// What an idle bucket saves up, as time at the rate that holds.
pub const BURST: Duration = Duration::from_millis(100);
/// Nothing is waited for longer in one piece.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);

/// One byte. Credit is counted in billionths of a byte, so that a nanosecond at one byte a second is one.
const BYTE: u128 = 1_000_000_000;

/// A shared limit in bytes per second.
#[derive(Debug, Clone, Default)]
pub struct Bucket(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    rate: Cell<Option<NonZeroU64>>,
    credit: Cell<u128>,
    /// Until when `credit` was counted.
    counted: Cell<Instant>,
    /// Held by the one who is being served; the others queue for it in the order in which they came.
    turn: Semaphore,
    waiting: Cell<usize>,
    changed: Notify,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            rate: Cell::new(None),
            credit: Cell::new(0),
            counted: Cell::new(Instant::now()),
            turn: Semaphore::new(1),
            waiting: Cell::new(0),
            changed: Notify::new(),
        }
    }
}

impl Bucket {
    /// A bucket with this rate in bytes per second; `None` lets everything pass.
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        let bucket = Self::default();
        bucket.set(rate);
        bucket
    }

    /// Changes the rate from now on, also for those who wait already.
    pub fn set(&self, rate: Option<NonZeroU64>) {
        let shared = &self.0;
        shared.count();
        shared.rate.set(rate);
        shared.changed.notify_waiters();
    }

    /// Bytes per second; `None`: no limit.
    pub fn rate(&self) -> Option<NonZeroU64> {
        self.0.rate.get()
    }

    /// Waits until `bytes` may be moved. Dropped before its end it has taken nothing.
    pub async fn take(&self, bytes: u64) {
        if bytes == 0 || self.0.rate.get().is_none() {
            return;
        }
        let shared = &self.0;
        let mut claim = Claim::of(shared, bytes);
        // Never closed.
        let Ok(_turn) = shared.turn.acquire().await else { return };
        while let Some(wait) = claim.pay() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shared.changed.notified() => {}
            }
        }
    }
}

impl Shared {
    /// Adds what came in since it was counted last. What nobody waits for is saved up only to [`BURST`].
    fn count(&self) {
        let now = Instant::now();
        let nanos = (now - self.counted.replace(now)).as_nanos();
        let Some(rate) = self.rate.get() else {
            self.credit.set(0);
            return;
        };
        let rate = u128::from(rate.get());
        let credit = self.credit.get().saturating_add(rate.saturating_mul(nanos));
        let most = if self.waiting.get() > 0 { u128::MAX } else { rate * BURST.as_nanos() };
        self.credit.set(credit.min(most));
    }
}

/// Somebody's claim: gives back what it has drawn if it is dropped before it is paid.
struct Claim<'a> {
    shared: &'a Shared,
    due: u128,
    drawn: u128,
}

impl<'a> Claim<'a> {
    fn of(shared: &'a Shared, bytes: u64) -> Self {
        // Before anybody waits, so that the idle time before is worth a burst at most.
        shared.count();
        shared.waiting.set(shared.waiting.get() + 1);
        Self { shared, due: u128::from(bytes) * BYTE, drawn: 0 }
    }

    /// Draws what there is. Gives how long to wait for the rest; `None`: it may pass.
    fn pay(&mut self) -> Option<Duration> {
        let shared = self.shared;
        shared.count();
        let Some(rate) = shared.rate.get() else {
            self.drawn = self.due;
            return None;
        };
        let rate = u128::from(rate.get());
        let credit = shared.credit.get();
        let draw = credit.min(self.due - self.drawn);
        self.drawn += draw;
        shared.credit.set(credit - draw);
        let left = self.due - self.drawn;
        if left == 0 {
            // Who was woken late (a stopped process) does not make those behind faster than the rate.
            shared.credit.set(shared.credit.get().min(rate * BURST.as_nanos()));
        }
        (left > 0).then(|| {
            let nanos = u64::try_from(left.div_ceil(rate)).unwrap_or(u64::MAX);
            Duration::from_nanos(nanos).min(LONGEST_SLEEP)
        })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        if self.drawn < self.due && shared.rate.get().is_some() {
            shared.credit.set(shared.credit.get() + self.drawn);
        }
        shared.waiting.set(shared.waiting.get() - 1);
    }
}

#[cfg(test)]
mod tests;

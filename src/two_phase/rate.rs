//! How fast a copy is, for people who watch it.

use std::collections::VecDeque;

use tokio::time::Instant;

/// The rate is that of so many of these.
const RATE_OVER: usize = 15;

/// Bytes per second over the last seconds.
#[derive(Default)]
pub(super) struct Rate {
    seen: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// So many are copied now; the rate, as soon as there is one.
    pub(super) fn after(&mut self, copied: u64) -> Option<u64> {
        let now = Instant::now();
        if copied == 0 {
            // Before the first bytes it is not the copy that takes time.
            self.seen.clear();
        }
        self.seen.push_back((now, copied));
        if self.seen.len() > RATE_OVER {
            self.seen.pop_front();
        }
        let (first, before) = *self.seen.front()?;
        let seconds = (now - first).as_secs_f64();
        (seconds > 0.5).then(|| (copied.saturating_sub(before) as f64 / seconds) as u64)
    }
}

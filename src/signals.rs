//! The worker's signals: what cancels it (its supervisor's death among that), and that a child ended.
//!
//! Only for the worker, which has a runtime; the supervisor reads its signals without one.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::supervise;

/// Streams of the signals that matter.
#[derive(Debug)]
pub struct Signals {
    cancel: [(i32, Signal); 5],
    child: Signal,
}

impl Signals {
    /// From here on these signals no longer end the process.
    pub fn listen() -> std::io::Result<Self> {
        let cancel = |number: i32| Ok::<_, std::io::Error>((number, signal(SignalKind::from_raw(number))?));
        Ok(Self {
            cancel: [
                cancel(libc::SIGTERM)?,
                cancel(libc::SIGINT)?,
                cancel(libc::SIGHUP)?,
                cancel(libc::SIGQUIT)?,
                cancel(supervise::ORPHANED as i32)?,
            ],
            child: signal(SignalKind::child())?,
        })
    }

    /// The number of the next signal that cancels the job. Safe to drop and call again.
    pub async fn cancelled(&mut self) -> i32 {
        let [term, int, hup, quit, orphaned] = &mut self.cancel;
        tokio::select! {
            _ = term.1.recv() => term.0,
            _ = int.1.recv() => int.0,
            _ = hup.1.recv() => hup.0,
            _ = quit.1.recv() => quit.0,
            _ = orphaned.1.recv() => orphaned.0,
        }
    }

    /// The next of either: a signal that cancels, or `None` when a child ended.
    pub async fn next(&mut self) -> Option<i32> {
        let [term, int, hup, quit, orphaned] = &mut self.cancel;
        tokio::select! {
            biased;
            _ = term.1.recv() => Some(term.0),
            _ = int.1.recv() => Some(int.0),
            _ = hup.1.recv() => Some(hup.0),
            _ = quit.1.recv() => Some(quit.0),
            _ = orphaned.1.recv() => Some(orphaned.0),
            _ = self.child.recv() => None,
        }
    }
}

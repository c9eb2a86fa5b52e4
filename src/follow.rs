//! Following files that tools write: the bytes that are new, soon after they were written, without spinning.
//!
//! inotify where the kernel grants an instance (each user has 128 by default, and a host may run 200 jobs), a short
//! poll otherwise. A file that does not exist yet, or never will, is no error. What the bytes mean is not its matter.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::Instant;

/// Reading more often than this gains nothing: the state is written five times a second at most.
const PACE: Duration = Duration::from_millis(40);
/// How often files are looked at where inotify is not to be had.
const POLL: Duration = Duration::from_millis(100);
/// Bytes read before other things get their turn, so that a flood of debug lines cannot delay a cancel.
const MOST_AT_ONCE: usize = 8 << 20;

/// Wakes when one of the watched files changes.
pub struct Watch {
    inotify: Option<EventStream<[u8; 4096]>>,
    next: Instant,
}

impl Watch {
    /// Watches these files; each must exist.
    pub fn new(files: &[&Path]) -> Self {
        let inotify = match Self::inotify(files) {
            Ok(inotify) => Some(inotify),
            Err(error) => {
                tracing::debug!("no inotify ({error}): the logs are polled");
                None
            }
        };
        Self { inotify, next: Instant::now() }
    }

    fn inotify(files: &[&Path]) -> std::io::Result<EventStream<[u8; 4096]>> {
        let inotify = Inotify::init()?;
        for file in files {
            inotify.watches().add(file, WatchMask::MODIFY)?;
        }
        inotify.into_event_stream([0; 4096])
    }

    /// Returns when there may be something new, at a sane pace. Safe to drop and call again.
    pub async fn changed(&mut self) {
        tokio::time::sleep_until(self.next).await;
        match &mut self.inotify {
            // The event itself says nothing that reading the files does not.
            Some(inotify) => {
                match std::future::poll_fn(|context| Pin::new(&mut *inotify).poll_next(context)).await {
                    Some(Ok(_)) => self.next = Instant::now() + PACE,
                    broken => {
                        let error = broken.and_then(Result::err);
                        tracing::warn!("inotify broke ({error:?}): the logs are polled");
                        self.inotify = None;
                    }
                }
            }
            None => self.next = Instant::now() + POLL,
        }
    }
}

/// One file being followed.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    buffer: Vec<u8>,
}

impl Tail {
    /// Follows `path` from its beginning, as soon as it exists.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, buffer: vec![0; 64 << 10] }
    }

    /// Hands the new bytes to `take`; says how many there were and whether there may be more at once.
    pub fn read(&mut self, mut take: impl FnMut(&[u8])) -> std::io::Result<Progress> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Progress::default()),
                Err(error) => return Err(error),
            }
        }
        let mut bytes = 0;
        if let Some(file) = &mut self.file {
            while bytes < MOST_AT_ONCE {
                match file.read(&mut self.buffer) {
                    Ok(0) => return Ok(Progress { bytes, more: false }),
                    Ok(count) => {
                        take(self.buffer.get(..count).unwrap_or_default());
                        bytes += count;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Progress { bytes, more: true })
    }
}

/// What a [`Tail::read`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// New bytes.
    pub bytes: usize,
    /// Whether the read stopped although more may be there.
    pub more: bool,
}

//! Following files that tools write: the bytes that are new, soon after they were written, without spinning.
//!
//! inotify where the kernel grants an instance (each user has 128 by default, and a host may run 200 jobs), a short
//! poll otherwise. A file that does not exist yet, or never will, is no error. What the bytes mean is not its matter,
//! except that no secret may stay in the file.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::Instant;

use crate::secret::Scrubber;

/// Reading more often than this gains nothing: the state is written five times a second at most.
const PACE: Duration = Duration::from_millis(40);
/// How often files are looked at where inotify is not to be had.
const POLL: Duration = Duration::from_millis(100);
/// Bytes read before other things get their turn, so that a flood of debug lines cannot delay a cancel.
const MOST_AT_ONCE: usize = 1 << 20;

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

/// One file being followed. Secrets that its writer lets slip are overwritten in it as soon as they are seen: the
/// log's path is given to clients, who may read it (contract.md 9.5).
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    buffer: Vec<u8>,
    scrubber: Scrubber,
    /// The last bytes that were read, in which a secret may have begun, and where in the file they end.
    carried: Vec<u8>,
    position: u64,
}

impl Tail {
    /// Follows `path` from its beginning, as soon as it exists.
    pub fn new(path: PathBuf, scrubber: Scrubber) -> Self {
        Self { path, file: None, buffer: vec![0; 64 << 10], scrubber, carried: Vec::new(), position: 0 }
    }

    /// Hands the new bytes to `take`; says how many there were and whether there may be more at once.
    pub fn read(&mut self, mut take: impl FnMut(&[u8])) -> std::io::Result<Progress> {
        if self.file.is_none() {
            match OpenOptions::new().read(true).write(true).open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Progress::default()),
                Err(error) => return Err(error),
            }
        }
        let mut bytes = 0;
        let Some(file) = &mut self.file else { return Ok(Progress::default()) };
        while bytes < MOST_AT_ONCE {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok(Progress { bytes, more: false }),
                Ok(count) => {
                    let chunk = self.buffer.get(..count).unwrap_or_default();
                    take(chunk);
                    redact(file, chunk, &self.scrubber, &mut self.carried, &mut self.position)?;
                    bytes += count;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress { bytes, more: true })
    }
}

/// Overwrites the secrets that end in `chunk`, the bytes of `file` at `position`. The length stays, so that neither
/// the reader's nor the writer's place in the file changes.
fn redact(
    file: &File,
    chunk: &[u8],
    scrubber: &Scrubber,
    carried: &mut Vec<u8>,
    position: &mut u64,
) -> std::io::Result<()> {
    let begin = *position - carried.len() as u64;
    *position += chunk.len() as u64;
    if scrubber.longest() == 0 {
        return Ok(());
    }
    carried.extend_from_slice(chunk);
    for found in scrubber.occurrences(carried) {
        file.write_all_at(&vec![b'*'; found.len()], begin + found.start as u64)?;
    }
    let keep = carried.len().min(scrubber.longest() - 1);
    carried.drain(..carried.len() - keep);
    Ok(())
}

/// What a [`Tail::read`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// New bytes.
    pub bytes: usize,
    /// Whether the read stopped although more may be there.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_secret_is_overwritten_however_it_is_cut_and_the_reader_sees_all_bytes() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        let mut tail = Tail::new(path.to_path_buf(), Scrubber::new(["hunter2".into()]));
        let mut seen = Vec::new();
        for piece in ["a hunt", "er", "2 b hunter2", "\nc"] {
            log.write_all(piece.as_bytes()).unwrap();
            assert!(!tail.read(|bytes| seen.extend_from_slice(bytes)).unwrap().more);
        }
        assert_eq!(seen, b"a hunter2 b hunter2\nc");
        assert_eq!(std::fs::read(&path).unwrap(), b"a ******* b *******\nc");
    }

    #[test]
    fn a_file_that_does_not_exist_yet_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut tail = Tail::new(path.clone(), Scrubber::default());
        assert_eq!(tail.read(|_| {}).unwrap(), Progress::default());
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(tail.read(|_| {}).unwrap().bytes, 3);
    }
}

//! How a disk is served and how long its reader is patient, and why it gives up. Values only.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::export::{Export, Filters};

/// How patient a reader is.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Pauses before a failed read is tried again; when they are used up, the disk fails.
    pub retries: Vec<Duration>,
    /// When no read at all was answered for so long, the server is started anew (peers.md 6.3, row 22).
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = [0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0];
        Self {
            retries: seconds.into_iter().map(Duration::from_secs_f64).collect(),
            stall: Duration::from_secs(120),
        }
    }
}

impl Patience {
    /// Another length for each time.
    pub fn times(self, length: impl Fn(Duration) -> Duration) -> Self {
        Self { retries: self.retries.into_iter().map(&length).collect(), stall: length(self.stall) }
    }
}

/// How a disk is served.
#[derive(Debug, Clone)]
pub struct Serving {
    /// nbdkit or qemu-nbd.
    pub program: PathBuf,
    /// The job's tag.
    pub tag: String,
    /// What is served.
    pub export: Export,
    /// Filters that this nbdkit has.
    pub filters: Filters,
    /// The caller's `LD_LIBRARY_PATH`.
    pub library_path: Option<OsString>,
    /// The job's private directory.
    pub private: PathBuf,
    /// Number of the disk, from 0.
    pub number: u32,
    /// Connections to it.
    pub connections: NonZeroUsize,
}

/// A disk cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Its server does not start, or does not let us in.
    #[error("{0}")]
    Serve(String),
    /// Reads fail again and again.
    #[error("reading {length} bytes at {offset} of {disk} failed {tries} times: {said}")]
    Read {
        /// The disk.
        disk: String,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
        /// How often it was tried.
        tries: usize,
        /// What was said the last time.
        said: String,
    },
    /// Its size is not what it was.
    #[error("{disk} had {before} bytes and has {now}: it changed while it was copied; start the job again")]
    Resized {
        /// The disk.
        disk: String,
        /// Bytes at first.
        before: u64,
        /// Bytes now.
        now: u64,
    },
}

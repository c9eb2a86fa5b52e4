//! What the copies of a job share: memory, how much may be on the way, the bandwidth limit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::nbd::budget::Budget;
use crate::throttle::bucket::Bucket;

/// How much is done at a time. The defaults are measured (`benches/copy.rs`).
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Spans of one disk that are read or written at a time.
    pub spans: usize,
    /// Bytes that may be written and not yet proven, over all disks; more waits for the proof.
    pub unproven: usize,
    /// Written bytes are proven when so much time has passed ..
    pub prove_every: Duration,
    /// .. or so many are there.
    pub prove_bytes: u64,
    /// Spans that are read back at a time.
    pub comparing: usize,
    /// How often a full target is tried again.
    pub full_retry: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            spans: 16,
            unproven: 512 << 20,
            prove_every: Duration::from_millis(500),
            prove_bytes: 128 << 20,
            comparing: 3,
            full_retry: Duration::from_secs(1),
        }
    }
}

/// What the disks of a job share.
#[derive(Clone)]
pub struct Shared {
    /// Memory for data.
    pub budget: Budget,
    /// Counted in KiB.
    unproven: Arc<Semaphore>,
    /// How much is done at a time.
    pub tuning: Tuning,
    /// The bandwidth limit: waited for before each read.
    pub limit: Bucket,
}

impl Shared {
    /// With `memory` bytes for data.
    pub fn new(memory: usize, tuning: Tuning, limit: Bucket) -> Self {
        let unproven = Arc::new(Semaphore::new(kib(tuning.unproven as u64) as usize));
        Self { budget: Budget::new(memory), unproven, tuning, limit }
    }

    /// Room for bytes that are written and not yet proven, as soon as there is; free again when it is dropped. `None`
    /// does not come: the semaphore is never closed.
    pub(super) async fn unproven(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        // More than there can be has all of it.
        let bytes = kib(bytes).clamp(1, kib(self.tuning.unproven as u64));
        Arc::clone(&self.unproven).acquire_many_owned(bytes).await.ok()
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

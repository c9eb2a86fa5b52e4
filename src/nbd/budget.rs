//! Memory for data in flight: buffers that are counted from the moment they exist until they are dropped.
//!
//! The permit is in the buffer itself, so a buffer counts wherever it is: in a read on the wire, in one whose future
//! was dropped, with the copy engine, in a write. Given-back memory is kept and used again within the same limit.
//! Buffers may go to other threads: that is where they are hashed and written to files.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in units of this many bytes, so that budgets above 4 GiB fit their numbers.
const UNIT: usize = 4096;

/// A number of bytes that buffers may take at a time. Clones share it.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

struct Shared {
    permits: Arc<Semaphore>,
    total: u32,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// What was given back.
    idle: Vec<Vec<u8>>,
    /// Capacity of the idle memory and of all buffers.
    held: usize,
}

impl Budget {
    /// Of `bytes`, rounded up to whole pages.
    pub fn new(bytes: usize) -> Self {
        let total = units(bytes).min(u32::MAX >> 3);
        let permits = Arc::new(Semaphore::new(total as usize));
        Self { shared: Arc::new(Shared { permits, total, memory: Mutex::default() }) }
    }

    /// A buffer of `length` bytes, as soon as there is room for it. What it holds is not defined. One that is larger
    /// than the whole budget comes when nothing else is in use.
    pub async fn buffer(&self, length: usize) -> Buffer {
        self.reserve(length).await.buffer(length)
    }

    /// Room for buffers of `length` bytes together, as soon as there is.
    pub async fn reserve(&self, length: usize) -> Reservation {
        let wanted = units(length).clamp(1, self.shared.total);
        // The semaphore is fair (no starving of large requests) and is never closed.
        let permit = Arc::clone(&self.shared.permits).acquire_many_owned(wanted).await.ok();
        Reservation { shared: Arc::clone(&self.shared), permit: permit.map(Arc::new) }
    }

    /// Bytes that could be had without waiting.
    pub fn available(&self) -> usize {
        self.shared.permits.available_permits() * UNIT
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self) -> usize {
        self.total as usize * UNIT
    }

    fn take(&self, length: usize) -> Vec<u8> {
        // Whole pages, as the permit counts them; only memory of the same size is used again.
        let capacity = length.max(1).next_multiple_of(UNIT);
        let mut guard = self.memory();
        let Memory { idle, held } = &mut *guard;
        let mut memory = match idle.iter().rposition(|memory| memory.capacity() == capacity) {
            Some(place) => idle.swap_remove(place),
            None => {
                while *held + capacity > self.limit()
                    && let Some(memory) = idle.pop()
                {
                    *held -= memory.capacity();
                }
                *held += capacity;
                // Not under the lock: clearing pages takes its time.
                drop(guard);
                vec![0; capacity]
            }
        };
        memory.resize(length, 0);
        memory
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut guard = self.memory();
        if guard.held <= self.limit() {
            guard.idle.push(memory);
        } else {
            guard.held -= memory.capacity();
        }
    }
}

/// Counted memory. Gives it back when dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    shared: Arc<Shared>,
    permit: Option<Arc<OwnedSemaphorePermit>>,
}

/// Room for several buffers, had at once: who waited for one buffer while holding another would wait for ever when all
/// do. The room is free when the reservation and its buffers are dropped.
pub struct Reservation {
    shared: Arc<Shared>,
    permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Reservation {
    /// A buffer in this room, at once. The caller does not ask for more than it reserved, but for what it lost: a buffer
    /// of a failed read may be had again.
    pub fn buffer(&self, length: usize) -> Buffer {
        Buffer {
            bytes: self.shared.take(length),
            shared: Arc::clone(&self.shared),
            permit: self.permit.clone(),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.shared.give_back(std::mem::take(&mut self.bytes));
        // Only now may another be made of it.
        self.permit = None;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A disk's content is nobody's business.
        write!(formatter, "Buffer({} bytes)", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_buffer_waits_until_another_is_dropped() {
        run(async {
            let budget = Budget::new(64 << 10);
            let first = budget.buffer(40 << 10).await;
            let second = tokio::time::timeout(Duration::from_millis(20), budget.buffer(40 << 10)).await;
            assert!(second.is_err() && budget.available() == 24 << 10);
            drop(first);
            assert_eq!(budget.buffer(40 << 10).await.len(), 40 << 10);
        });
    }

    #[test]
    fn a_buffer_larger_than_the_budget_has_it_for_itself() {
        run(async {
            let budget = Budget::new(8192);
            let large = budget.buffer(1 << 20).await;
            assert_eq!((large.len(), budget.available()), (1 << 20, 0));
            drop(large);
            assert_eq!((budget.available(), budget.shared.memory().held), (8192, 0));
        });
    }

    #[test]
    fn idle_memory_and_buffers_together_stay_within_the_budget() {
        run(async {
            let budget = Budget::new(1 << 20);
            for length in [4096, 65_536, 300_000, 5000, 400_000, 1, 400_001, 4096] {
                let pair = [budget.buffer(length).await, budget.buffer(600_000 - length).await];
                let used: usize = pair.iter().map(|buffer| buffer.bytes.capacity()).sum();
                let memory = budget.shared.memory();
                let idle: usize = memory.idle.iter().map(Vec::capacity).sum();
                assert_eq!(idle + used, memory.held);
                assert!(idle + used <= 1 << 20, "{idle} and {used}");
            }
            assert!(budget.shared.memory().idle.len() > 2, "nothing is used again");
        });
    }
}

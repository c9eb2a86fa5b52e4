//! The copy engine: extents of a source in, proven extents of a target out.
//!
//! Why it cannot report a wrong disk as right: the only proof of a finished disk is its checksum, in [`Copied`]. The only
//! way to one is [`Ledger::checksum`], which needs a record of every chunk. The only place that records is
//! `Job::prove`, and there each chunk went this way, in this order:
//!
//! 1. all its bytes were answered by the source ([`Reader::read`]), or the source says that they are zeros;
//! 2. they were hashed from the same memory from which they were written, and every write was acknowledged
//!    ([`Target::put`]);
//! 3. then the target was flushed ([`Target::flush`]); a failed flush ends the job, nothing of it counts;
//! 4. then the bytes were read back from the target and hashed, and the hashes are equal (`Job::compare`; only this
//!    step is left out with `"verify": "off"`);
//! 5. then the record was synced ([`Ledger::record`]).
//!
//! Chunks of which only parts changed go the same way, part by part, and lose their record before; they get a new one at
//! the end ([`Job::seal`]), from the target's own bytes.
//!
//! A job that is killed at any moment leaves a ledger in which each record is true, so going on means to copy the
//! chunks without one. [`chunk`] is pure; [`reader`], [`target`] and [`ledger`] are the edges; second looks (at what an
//! earlier job finished, at what differs) are in `again`. Called by [`crate::two_phase`], one [`Job`] a disk.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::try_join_all;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::extent::{Extent, Extents, Kind};
use crate::nbd::budget::Budget;

mod again;
pub mod chunk;
mod error;
pub mod ledger;
pub mod reader;
mod shared;
pub mod target;

use chunk::{CHUNK, Digest, Span, Spans, ZeroDigests};
use ledger::{Ledger, Record, Standing};
use reader::{ReadError, Reader};
use target::{Piece, Target};

pub use error::CopyError;
pub use shared::{Shared, Tuning};

/// What a copy says while it runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// So many bytes of data must be read, those that were finished before included.
    ToCopy(u64),
    /// So many bytes of data are finished.
    Finished(u64),
    /// The target is full, and tried again until there is room; `None` when there is.
    Waiting(Option<String>),
    /// Worth knowing.
    Warning(String),
}

/// A disk is on the target, every byte of it. Only [`Job::seal`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    checksum: String,
}

impl Copied {
    /// [`chunk::DiskHasher::checksum`] of the disk.
    pub fn checksum(&self) -> &str {
        &self.checksum
    }
}

/// The copy of one disk.
pub struct Job {
    /// Where it comes from.
    pub reader: Reader,
    /// Where it goes.
    pub target: Target,
    /// What is finished.
    pub ledger: Ledger,
    /// Whether what was written is read back.
    pub verify: bool,
    /// Whether what the ledger has was finished by an earlier process: then it is read back, too.
    pub resumed: bool,
    /// Shared with the other disks.
    pub shared: Shared,
    /// Called with news.
    pub tell: Box<dyn Fn(Told)>,
}

/// A span that was written and not yet proven.
struct Written {
    span: Span,
    digests: Vec<(u64, Digest)>,
    /// Room that is free again when the span is proven.
    _unproven: Option<OwnedSemaphorePermit>,
}

/// Counts finished bytes of data.
#[derive(Default)]
struct Progress {
    finished: Cell<u64>,
}

impl Job {
    /// Copies what `extents` lists, and proves the disk: [`Self::round`] and [`Self::seal`].
    pub async fn copy(self: &Rc<Self>, extents: Extents) -> Result<Copied, CopyError> {
        self.round(extents).await?;
        self.seal().await
    }

    /// Copies what `extents` lists and the ledger does not have. Where they are less than the disk, this is
    /// [`Self::delta`].
    pub async fn round(self: &Rc<Self>, extents: Extents) -> Result<(), CopyError> {
        let size = self.ledger.identity().size;
        let extents = extents.clamp(size);
        match extents.covered() == size {
            true => self.copy_listed(extents, Vec::new()).await,
            false => self.delta(extents).await,
        }
    }

    /// Copies what changed since a round, whether the ledger has it or not, also when that is all of the disk. Chunks of
    /// which only a part changed must have been copied whole before. An interrupted delta is repeated from its beginning.
    pub async fn delta(self: &Rc<Self>, changed: Extents) -> Result<(), CopyError> {
        let changed = changed.clamp(self.ledger.identity().size);
        let partial = self.announce(&changed).await?;
        self.copy_listed(changed, partial).await
    }

    /// Copies the chunks that are not finished, and those in `partial`, as far as they are listed.
    async fn copy_listed(self: &Rc<Self>, extents: Extents, partial: Vec<u64>) -> Result<(), CopyError> {
        let size = self.ledger.identity().size;
        let extents = Rc::new(extents);
        let wanted = |index: u64| {
            self.ledger.standing(index) < Standing::Flushed || partial.binary_search(&index).is_ok()
        };
        let progress = Rc::new(Progress::default());
        let earlier = Spans::new(Rc::clone(&extents), size, CHUNK, |index| !wanted(index));
        progress.finished.set(earlier.map(|span| span.data()).sum());
        (self.tell)(Told::ToCopy(extents.covered_by(Kind::Data)));
        (self.tell)(Told::Finished(progress.finished.get()));

        // Copies of an earlier job are proven again while the rest is copied; what fails is copied after it.
        let most = u64::from(self.reader.read_size());
        let job = Rc::clone(self);
        let missing = Spans::new(Rc::clone(&extents), size, most, {
            let todo: Vec<bool> = (0..chunk::count(size)).map(wanted).collect();
            move |index| todo[index as usize]
        });
        let (copied, bad) = tokio::join!(job.run(missing, &progress), self.prove_again());
        copied?;
        let bad = bad?;
        if !bad.is_empty() {
            // In ascending order, and there may be as many as the disk has chunks.
            let is_bad = |index: u64| bad.binary_search(&index).is_ok();
            // They were counted as finished, and are not.
            let counted = Spans::new(Rc::clone(&extents), size, CHUNK, is_bad).map(|span| span.data());
            progress.finished.set(progress.finished.get() - counted.sum::<u64>());
            let again = Spans::new(Rc::clone(&extents), size, most, is_bad);
            self.run(again, &progress).await?;
        }
        self.target.was_written();
        Ok(())
    }

    /// The proof of the whole disk, after the last round.
    pub async fn seal(&self) -> Result<Copied, CopyError> {
        self.digest_stale().await?;
        Ok(Copied { checksum: self.ledger.checksum()? })
    }

    /// Writes and proves side by side.
    async fn run(
        self: &Rc<Self>,
        spans: impl Iterator<Item = Span>,
        progress: &Rc<Progress>,
    ) -> Result<(), CopyError> {
        let (written, to_prove) = mpsc::unbounded_channel();
        let stop = Rc::new(Cell::new(false));
        let (wrote, proved) =
            tokio::join!(self.write_all(spans, written, &stop), self.prove_all(to_prove, progress, &stop));
        // The proof knows better why the writer was stopped.
        proved.and(wrote)
    }

    /// Reads and writes every span. What was written before an error is still proven.
    async fn write_all(
        self: &Rc<Self>,
        spans: impl Iterator<Item = Span>,
        written: mpsc::UnboundedSender<Written>,
        stop: &Rc<Cell<bool>>,
    ) -> Result<(), CopyError> {
        let mut running = JoinSet::new();
        let mut result = Ok(());
        for span in spans {
            while running.len() >= self.shared.tuning.spans && result.is_ok() {
                result = self.joined(running.join_next().await);
            }
            if result.is_err() || stop.get() {
                break;
            }
            let unproven = self.shared.unproven(span.data()).await;
            let (job, written, stop) = (Rc::clone(self), written.clone(), Rc::clone(stop));
            running.spawn_local(async move {
                let digests = job.write(&span, &stop).await?;
                // Nobody listens only when the proof has failed, and that ends the copy.
                drop(written.send(Written { span, digests, _unproven: unproven }));
                Ok(())
            });
        }
        // Those that wait for room on a full target need not wait any more.
        stop.set(stop.get() || result.is_err());
        while let Some(ended) = running.join_next().await {
            stop.set(stop.get() || matches!(ended, Ok(Err(_))));
            result = result.and(self.joined(Some(ended)));
        }
        result
    }

    fn joined(
        &self,
        ended: Option<Result<Result<(), CopyError>, tokio::task::JoinError>>,
    ) -> Result<(), CopyError> {
        match ended {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(CopyError::Stopped { disk: self.reader.disk() }),
        }
    }

    /// Reads one span and writes it.
    async fn write(&self, span: &Span, stop: &Cell<bool>) -> Result<Vec<(u64, Digest)>, CopyError> {
        let pieces = Arc::new(self.read(span, &self.shared.budget).await?);
        let mut waiting = false;
        loop {
            match self.target.put(&pieces, span.data() > 0).await {
                Ok(digests) => {
                    if waiting {
                        (self.tell)(Told::Waiting(None));
                    }
                    return Ok(self.with_zeros(span, digests));
                }
                Err(error) if error.is_full() && !stop.get() => {
                    if !waiting {
                        tracing::warn!("{error}: waiting for room");
                    }
                    waiting = true;
                    let path = self.target.path().display();
                    (self.tell)(Told::Waiting(Some(format!("room for {path}: its file system is full"))));
                    tokio::time::sleep(self.shared.tuning.full_retry).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The span's content, in pieces of the size that the source likes, in memory of this budget.
    async fn read(&self, span: &Span, budget: &Budget) -> Result<Vec<Piece>, ReadError> {
        let size = u64::from(self.reader.read_size()).max(1);
        let mut wanted = Vec::new();
        for extent in &span.extents {
            if extent.kind.is_zero() {
                wanted.push(extent);
                continue;
            }
            let mut at = extent.offset;
            while at < extent.end() {
                let length = (extent.end() - at).min(size);
                wanted.push(Extent::new(at, length, Kind::Data));
                at += length;
            }
        }
        let data = span.data();
        if data == 0 {
            // Zeros need no memory. A run may be as long as the disk: see `with_zeros`.
            return Ok(wanted.into_iter().map(|extent| Piece { extent, data: None }).collect());
        }
        self.shared.limit.take(data).await;
        let room = &budget.reserve(data as usize).await;
        let reads = wanted.into_iter().map(|extent| async move {
            let data = match extent.kind {
                Kind::Data => {
                    let buffer = self.reader.read(extent.offset, extent.length as usize, room).await?;
                    Some(Arc::new(buffer))
                }
                Kind::Hole | Kind::Zero => None,
            };
            Ok(Piece { extent, data })
        });
        try_join_all(reads).await
    }

    /// The digests of a span of whole chunks that are zeros are known.
    fn with_zeros(&self, span: &Span, digests: Vec<(u64, Digest)>) -> Vec<(u64, Digest)> {
        let size = self.ledger.identity().size;
        if span.data() > 0 || !span.is_whole(size) {
            return digests;
        }
        let zeros = ZeroDigests::new(size);
        span.chunks.clone().map(|index| (index, zeros.of(index))).collect()
    }

    /// Takes what was written, and makes it count.
    async fn prove_all(
        &self,
        mut written: mpsc::UnboundedReceiver<Written>,
        progress: &Progress,
        stop: &Cell<bool>,
    ) -> Result<(), CopyError> {
        while let Some(first) = written.recv().await {
            let batch = self.gather(first, &mut written).await;
            if let Err(error) = self.prove(batch, progress).await {
                stop.set(true);
                return Err(error);
            }
        }
        Ok(())
    }

    /// What is written within the time, or until it is enough.
    async fn gather(&self, first: Written, written: &mut mpsc::UnboundedReceiver<Written>) -> Vec<Written> {
        let until = Instant::now() + self.shared.tuning.prove_every;
        let mut bytes = first.span.data();
        let mut batch = vec![first];
        while bytes < self.shared.tuning.prove_bytes {
            match tokio::time::timeout_at(until, written.recv()).await {
                Ok(Some(next)) => {
                    bytes += next.span.data();
                    batch.push(next);
                }
                Ok(None) | Err(_) => break,
            }
        }
        batch
    }

    /// The one place where chunks become finished: flush, compare, record. See the head of this file.
    async fn prove(&self, batch: Vec<Written>, progress: &Progress) -> Result<(), CopyError> {
        self.target.flush().await?;
        if self.verify {
            for part in batch.chunks(self.shared.tuning.comparing.max(1)) {
                try_join_all(part.iter().map(|written| self.compare(&written.span, &written.digests)))
                    .await?;
            }
        }
        let standing = if self.verify { Standing::Compared } else { Standing::Flushed };
        let size = self.ledger.identity().size;
        let whole = batch.iter().filter(|written| written.span.is_whole(size));
        let records = whole.flat_map(|written| &written.digests).map(|(index, digest)| Record {
            index: *index,
            standing,
            digest: *digest,
        });
        self.ledger.record(records.collect()).await?;
        let bytes: u64 = batch.iter().map(|written| written.span.data()).sum();
        progress.finished.set(progress.finished.get() + bytes);
        (self.tell)(Told::Finished(progress.finished.get()));
        Ok(())
    }

    /// Is on the target what was written to it?
    async fn compare(&self, span: &Span, digests: &[(u64, Digest)]) -> Result<(), CopyError> {
        if span.data() == 0 {
            for extent in &span.extents {
                let range = extent.offset..extent.end();
                if let Some(offset) = self.target.first_non_zero(range, &self.shared.budget).await? {
                    let (disk, path) = (self.reader.disk(), self.target.path().to_owned());
                    return Err(CopyError::Mismatch { disk, path, offset });
                }
            }
            return Ok(());
        }
        let found = self.target.read_back(span, &self.shared.budget).await?;
        if found == digests {
            return Ok(());
        }
        let differs = digests.iter().zip(&found).find(|(written, found)| written != found);
        let (index, digest) =
            differs.map_or((span.chunks.start, Digest::from_bytes([0; 32])), |(written, _)| *written);
        Err(self.blame(span, index, digest).await)
    }

    /// Ends server and target; the disk's file is durable under its name.
    pub async fn close(self) -> Result<(), CopyError> {
        self.reader.close().await;
        Ok(self.target.close().await?)
    }
}

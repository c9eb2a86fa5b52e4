//! Second looks at a disk: at what an earlier job finished, at chunks that are written in parts, at one that differs.
//!
//! None of this makes a chunk finished that was not: see the head of [`crate::copy`].

use std::collections::HashMap;
use std::rc::Rc;

use futures_util::StreamExt;
use futures_util::future::try_join_all;

use super::chunk::{self, CHUNK, Digest, Span, Spans, ZeroDigests};
use super::ledger::{Record, Standing};
use super::target::{self, Piece};
use super::{CopyError, Job, Told};
use crate::extent::{Extent, Extents, Kind};
use crate::nbd::budget::Budget;

impl Job {
    /// What is wrong with this chunk: source and target are read once more, for the sentence.
    pub(super) async fn blame(&self, span: &Span, index: u64, written: Digest) -> CopyError {
        let (disk, offset) = (self.reader.disk(), index * CHUNK);
        let mismatch = |offset| CopyError::Mismatch {
            disk: self.reader.disk(),
            path: self.target.path().to_owned(),
            offset,
        };
        let chunk = Extents::normalize([Extent::new(offset, CHUNK, Kind::Data)]);
        let part = Span { chunks: index..index + 1, extents: span.extents.intersect(&chunk) };
        // Memory of its own, for both sides of a chunk: the job's may be held by those that wait for this one's end.
        let memory = Budget::new(2 * CHUNK as usize);
        let Ok(pieces) = self.read(&part, &memory).await else { return mismatch(offset) };
        if target::digests(&pieces).iter().any(|(_, digest)| *digest != written) {
            return CopyError::SourceChanges { disk, offset };
        }
        for Piece { extent, data } in &pieces {
            let buffer = memory.buffer(extent.length as usize).await;
            let Ok(found) = self.target.read(extent.offset, buffer).await else { return mismatch(offset) };
            let differs = match data {
                Some(data) => found.iter().zip(data.iter()).position(|(found, read)| found != read),
                None => found.iter().position(|found| *found != 0),
            };
            if let Some(at) = differs {
                return mismatch(extent.offset + at as u64);
            }
        }
        // It reads back differently each time.
        mismatch(offset)
    }

    /// Reads back what an earlier job finished. Gives the chunks that are not what they were; they are open again.
    pub(super) async fn prove_again(&self) -> Result<Vec<u64>, CopyError> {
        let size = self.ledger.identity().size;
        let mut finished = Vec::new();
        if self.verify && self.resumed {
            self.ledger.each(|record| {
                if record.standing >= Standing::Flushed {
                    finished.push((record.index, record.digest));
                }
            })?;
        }
        let zeros = ZeroDigests::new(size);
        let mut bad = Vec::new();
        let runs = finished.chunk_by(|a, b| {
            let zero = |chunk: &(u64, Digest)| chunk.1 == zeros.of(chunk.0);
            a.0 + 1 == b.0 && zero(a) && zero(b)
        });
        for run in runs {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let chunks = first.0..last.0 + 1;
            let start = first.0 * CHUNK;
            let bytes = (chunks.end * CHUNK).min(size) - start;
            let kind = if first.1 == zeros.of(first.0) { Kind::Zero } else { Kind::Data };
            let span = Span { chunks, extents: Extents::normalize([Extent::new(start, bytes, kind)]) };
            let same = match kind {
                Kind::Data => self.target.read_back(&span, &self.shared.budget).await? == run,
                _ => {
                    let range = start..start + bytes;
                    self.target.first_non_zero(range, &self.shared.budget).await?.is_none()
                }
            };
            if !same {
                bad.extend(span.chunks.clone());
            }
        }
        if !bad.is_empty() {
            (self.tell)(Told::Warning(format!(
                "{}: {} of {} finished chunks were changed since by somebody else; they are copied again",
                self.target.path().display(),
                bad.len(),
                finished.len()
            )));
            self.open_again(&bad).await?;
        }
        Ok(bad)
    }

    /// Before finished chunks are written anew (a delta), the ledger must not say any more what they hash to. Gives
    /// those of which only a part is listed.
    pub(super) async fn announce(&self, extents: &Extents) -> Result<Vec<u64>, CopyError> {
        let size = self.ledger.identity().size;
        self.target.was_written();
        let digest = Digest::from_bytes([0; 32]);
        let (mut partial, mut records) = (Vec::new(), Vec::new());
        for span in Spans::new(Rc::new(extents.clone()), size, CHUNK, |_| true) {
            let whole = span.is_whole(size);
            for index in span.chunks {
                let standing = if whole { Standing::Open } else { Standing::Stale };
                if self.ledger.standing(index) < standing {
                    return Err(CopyError::PartOfNothing { disk: self.reader.disk(), offset: index * CHUNK });
                }
                records.push(Record { index, standing, digest });
                if !whole {
                    partial.push(index);
                }
            }
        }
        self.ledger.record(records).await?;
        Ok(partial)
    }

    /// Chunks of which parts were written are hashed as they are on the target: each part was proven. To be called only
    /// when all parts that were announced are written.
    pub async fn digest_stale(&self) -> Result<(), CopyError> {
        let size = self.ledger.identity().size;
        let stale = (0..chunk::count(size)).filter(|index| self.ledger.standing(*index) == Standing::Stale);
        let stale: Vec<u64> = stale.collect();
        let standing = if self.verify { Standing::Compared } else { Standing::Flushed };
        for part in stale.chunks(self.shared.tuning.comparing.max(1)) {
            let read = part.iter().map(|index| async move {
                let extent = Extent::new(index * CHUNK, chunk::length(*index, size), Kind::Data);
                let span = Span { chunks: *index..index + 1, extents: Extents::normalize([extent]) };
                self.target.read_back(&span, &self.shared.budget).await
            });
            let digests = try_join_all(read).await?.into_iter().flatten();
            let records = digests.map(|(index, digest)| Record { index, standing, digest });
            self.ledger.record(records.collect()).await?;
        }
        Ok(())
    }

    /// What changed, and all of each chunk that a delta before this one began to write and did not finish. What was to be
    /// copied then changed since, too, so it is listed again; but maybe not in the same pieces, and a chunk that was listed
    /// as a whole then must not be completed by a part.
    pub fn and_unfinished(&self, changed: &Extents) -> Extents {
        let size = self.ledger.identity().size;
        let chunks = 0..chunk::count(size);
        let unfinished = chunks.filter(|index| self.ledger.standing(*index) < Standing::Flushed);
        let unfinished =
            unfinished.map(|index| Extent::new(index * CHUNK, chunk::length(index, size), Kind::Data));
        Extents::normalize(changed.iter().chain(unfinished))
    }

    /// Before a copy that was interrupted goes on with a newer state of the source: what changed in between is to be
    /// copied anew, whole chunks of it.
    pub async fn forget(&self, changed: &Extents) -> Result<(), CopyError> {
        let size = self.ledger.identity().size;
        let spans = Spans::new(Rc::new(changed.clamp(size)), size, CHUNK, |_| true);
        let finished = |index: &u64| self.ledger.standing(*index) > Standing::Open;
        let chunks: Vec<u64> = spans.flat_map(|span| span.chunks).filter(finished).collect();
        self.open_again(&chunks).await
    }

    /// For when nobody can tell what changed: copies what the ledger does not have, and of what it has, those chunks that
    /// the source holds otherwise by now. `extents` are those of the whole disk. Gives how many bytes differed.
    pub async fn refresh(self: &Rc<Self>, extents: Extents) -> Result<u64, CopyError> {
        let size = self.ledger.identity().size;
        let extents = extents.clamp(size);
        let differing = self.differing(&extents).await?;
        self.open_again(&differing).await?;
        self.copy_listed(extents, Vec::new()).await?;
        Ok(differing.iter().map(|index| chunk::length(*index, size)).sum())
    }

    async fn open_again(&self, chunks: &[u64]) -> Result<(), CopyError> {
        let digest = Digest::from_bytes([0; 32]);
        let open = chunks.iter().map(|index| Record { index: *index, standing: Standing::Open, digest });
        Ok(self.ledger.record(open.collect()).await?)
    }

    /// Finished chunks that do not hash to what the source holds now, in ascending order. Only the source is read.
    async fn differing(&self, extents: &Extents) -> Result<Vec<u64>, CopyError> {
        let size = self.ledger.identity().size;
        let mut known = HashMap::new();
        self.ledger.each(|record| {
            if record.standing >= Standing::Flushed {
                known.insert(record.index, record.digest);
            }
        })?;
        (self.tell)(Told::ToCopy(extents.covered_by(Kind::Data)));
        let most = u64::from(self.reader.read_size());
        let spans = Spans::new(Rc::new(extents.clone()), size, most, |index| known.contains_key(&index));
        let digests = spans.map(|span| async move {
            let pieces = self.read(&span, &self.shared.budget).await?;
            let digests = match span.data() {
                0 => Vec::new(),
                _ => {
                    let hashed = tokio::task::spawn_blocking(move || target::digests(&pieces)).await;
                    hashed.map_err(|_| CopyError::Stopped { disk: self.reader.disk() })?
                }
            };
            Ok::<_, CopyError>((span.data(), self.with_zeros(&span, digests)))
        });
        let mut digests = futures_util::stream::iter(digests).buffer_unordered(self.shared.tuning.spans);
        let (mut differing, mut compared) = (Vec::new(), 0);
        while let Some(of_span) = digests.next().await {
            let (data, found) = of_span?;
            differing.extend(
                found
                    .into_iter()
                    .filter(|(index, digest)| known.get(index) != Some(digest))
                    .map(|(index, _)| index),
            );
            compared += data;
            (self.tell)(Told::Finished(compared));
        }
        differing.sort_unstable();
        Ok(differing)
    }
}

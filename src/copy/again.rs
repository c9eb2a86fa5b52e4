//! Second looks at a disk: at what an earlier job finished, at chunks that are written in parts, at one that differs.
//!
//! None of this makes a chunk finished that was not: see the head of [`crate::copy`].

use std::rc::Rc;

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
        if self.verify {
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
            let digest = Digest::from_bytes([0; 32]);
            let open = bad.iter().map(|index| Record { index: *index, standing: Standing::Open, digest });
            self.ledger.record(open.collect()).await?;
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

    /// Chunks of which parts were written are hashed as they are on the target: each part was proven.
    pub(super) async fn digest_stale(&self) -> Result<(), CopyError> {
        let size = self.ledger.identity().size;
        let mut records = Vec::new();
        let stale = (0..chunk::count(size)).filter(|index| self.ledger.standing(*index) == Standing::Stale);
        for index in stale {
            let extent = Extent::new(index * CHUNK, chunk::length(index, size), Kind::Data);
            let span = Span { chunks: index..index + 1, extents: Extents::normalize([extent]) };
            let digests = self.target.read_back(&span, &self.shared.budget).await?;
            let standing = if self.verify { Standing::Compared } else { Standing::Flushed };
            records.extend(digests.into_iter().map(|(index, digest)| Record { index, standing, digest }));
        }
        Ok(self.ledger.record(records).await?)
    }
}

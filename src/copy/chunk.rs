//! Fixed chunks of a disk: what of them is copied together, and what they hash to. Pure.
//!
//! A disk is a row of chunks of [`CHUNK`] bytes, the last one shorter. A chunk is the unit of proof: it is finished or it
//! is not, and what it hashed to when it was read from the source is what it must hash to when it is read back. A
//! [`Span`] is the unit of work: one or more whole chunks that are read, written and then recorded together.

use std::ops::Range;
use std::rc::Rc;

use crate::extent::{Extent, Extents, Kind};

/// Bytes of a chunk. Part of what a checksum means and of the ledger's format: never change it.
pub const CHUNK: u64 = 4 << 20;

/// BLAKE3 of a chunk's content.
pub type Digest = blake3::Hash;

/// How many chunks a disk of `size` bytes has.
pub fn count(size: u64) -> u64 {
    size.div_ceil(CHUNK)
}

/// Bytes of the chunk with this index in a disk of `size` bytes.
pub fn length(index: u64, size: u64) -> u64 {
    size.saturating_sub(index.saturating_mul(CHUNK)).min(CHUNK)
}

/// The checksum of a whole disk: BLAKE3 over the digests of its chunks in order. Unlike a hash of all bytes it needs
/// no second look at those that are known to be zeros, and chunks may be hashed in any order.
#[derive(Debug, Default)]
pub struct DiskHasher(blake3::Hasher);

impl DiskHasher {
    /// Adds the next chunk.
    pub fn add(&mut self, digest: &Digest) {
        self.0.update(digest.as_bytes());
    }

    /// The checksum as the state file shows it.
    pub fn checksum(&self) -> String {
        format!("blake3-4MiB:{}", self.0.finalize().to_hex())
    }
}

/// What chunks that are all zeros hash to.
#[derive(Debug, Clone)]
pub struct ZeroDigests {
    size: u64,
    whole: Digest,
    last: Digest,
}

impl ZeroDigests {
    /// For a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        let of = |length: u64| {
            let mut hasher = blake3::Hasher::new();
            zeros(&mut hasher, length);
            hasher.finalize()
        };
        let whole = of(CHUNK);
        let last = if size.is_multiple_of(CHUNK) { whole } else { of(size % CHUNK) };
        Self { size, whole, last }
    }

    /// Of the chunk with this index.
    pub fn of(&self, index: u64) -> Digest {
        if length(index, self.size) == CHUNK { self.whole } else { self.last }
    }
}

fn zeros(hasher: &mut blake3::Hasher, mut length: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while length > 0 {
        let piece = length.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..piece as usize]);
        length -= piece;
    }
}

/// Hashes what is fed in the order of the disk, and gives a digest for each chunk. Where a span has gaps (only some
/// ranges of a chunk are copied), the digest is over what was fed of that chunk.
pub struct SpanHasher {
    current: Option<(u64, blake3::Hasher)>,
    digests: Vec<(u64, Digest)>,
}

impl SpanHasher {
    /// Nothing fed yet.
    pub fn new() -> Self {
        Self { current: None, digests: Vec::new() }
    }

    fn each_chunk(
        &mut self,
        offset: u64,
        length: u64,
        mut feed: impl FnMut(&mut blake3::Hasher, Range<usize>),
    ) {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let index = at / CHUNK;
            let next = ((index + 1) * CHUNK).min(end);
            if self.current.as_ref().is_none_or(|(current, _)| *current != index) {
                self.close();
                self.current = Some((index, blake3::Hasher::new()));
            }
            if let Some((_, hasher)) = &mut self.current {
                feed(hasher, (at - offset) as usize..(next - offset) as usize);
            }
            at = next;
        }
    }

    /// Feeds the bytes at `offset`.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) {
        self.each_chunk(offset, bytes.len() as u64, |hasher, range| {
            hasher.update(&bytes[range]);
        });
    }

    /// Feeds zeros at `offset`.
    pub fn zeros(&mut self, offset: u64, length: u64) {
        self.each_chunk(offset, length, |hasher, range| zeros(hasher, range.len() as u64));
    }

    fn close(&mut self) {
        if let Some((index, hasher)) = self.current.take() {
            self.digests.push((index, hasher.finalize()));
        }
    }

    /// Chunk indices and digests, in order.
    pub fn finish(mut self) -> Vec<(u64, Digest)> {
        self.close();
        self.digests
    }
}

impl Default for SpanHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// Ranges of whole chunks that are copied together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Index of the first chunk, and of the first behind the last.
    pub chunks: Range<u64>,
    /// What is copied of them, in order; never empty.
    pub extents: Extents,
}

impl Span {
    /// Bytes that must be read.
    pub fn data(&self) -> u64 {
        self.extents.covered_by(Kind::Data)
    }

    /// Whether every byte of its chunks is in it.
    pub fn is_whole(&self, size: u64) -> bool {
        let bytes: u64 = self.chunks.clone().map(|index| length(index, size)).sum();
        self.extents.covered() == bytes
    }
}

/// The spans of what is to be copied, in ascending order; see [`Spans::new`].
pub struct Spans<W> {
    extents: Rc<Extents>,
    size: u64,
    most: u64,
    wanted: W,
    /// First byte not looked at yet.
    at: u64,
    /// First extent that ends behind it.
    next: usize,
}

impl<W: Fn(u64) -> bool> Spans<W> {
    /// Of those chunks of a disk of `size` bytes that `wanted` says yes to. A span with data has at most `most` bytes, but
    /// at least one chunk; one without may be as long as the disk: zeroing it is one request.
    pub fn new(extents: Rc<Extents>, size: u64, most: u64, wanted: W) -> Self {
        Self { extents, size, most, wanted, at: 0, next: 0 }
    }

    fn is_wanted(&self, index: u64) -> bool {
        index < count(self.size) && (self.wanted)(index)
    }

    /// The extents in these chunks, cut at their bounds.
    fn clip(&self, chunks: &Range<u64>) -> Extents {
        let (start, end) = (chunks.start * CHUNK, (chunks.end * CHUNK).min(self.size));
        let inside = self.extents.as_slice()[self.next..].iter().take_while(|extent| extent.offset < end);
        Extents::normalize(inside.map(|extent| {
            let from = extent.offset.max(start);
            Extent::new(from, extent.end().min(end) - from, extent.kind)
        }))
    }
}

impl<W: Fn(u64) -> bool> Iterator for Spans<W> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        loop {
            let extent = *self.extents.as_slice().get(self.next)?;
            if extent.end() <= self.at {
                self.next += 1;
                continue;
            }
            let first = extent.offset.max(self.at) / CHUNK;
            if extent.offset.max(self.at) >= self.size {
                return None;
            }
            if !self.is_wanted(first) {
                self.at = (first + 1) * CHUNK;
                continue;
            }
            let most = if extent.kind.is_zero() { u64::MAX } else { self.most / CHUNK };
            let whole_zeros = |index: u64| {
                extent.kind.is_zero()
                    && extent.offset <= index * CHUNK
                    && extent.end() >= index * CHUNK + length(index, self.size)
            };
            let goes_on = |index: u64| match extent.kind {
                Kind::Data => extent.end() > index * CHUNK,
                _ => whole_zeros(first) && whole_zeros(index),
            };
            let mut chunks = first..first + 1;
            while chunks.end - first < most && self.is_wanted(chunks.end) && goes_on(chunks.end) {
                chunks.end += 1;
            }
            let extents = self.clip(&chunks);
            self.at = chunks.end * CHUNK;
            return Some(Span { chunks, extents });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn data(offset: u64, length: u64) -> Extent {
        Extent::new(offset, length, Kind::Data)
    }

    fn all(extents: &[Extent], size: u64, most: u64, wanted: impl Fn(u64) -> bool) -> Vec<Span> {
        Spans::new(Rc::new(Extents::normalize(extents.iter().copied())), size, most, wanted).collect()
    }

    #[test]
    fn long_data_is_read_in_few_spans_and_zeros_in_one() {
        let size = 1 << 40;
        let hole = Extent::new(42 * MIB, size - 42 * MIB, Kind::Hole);
        let spans = all(&[data(0, 42 * MIB), hole], size, 20 * MIB, |_| true);
        let chunks: Vec<_> = spans.iter().map(|span| span.chunks.clone()).collect();
        // 40..44 MiB holds both.
        assert_eq!(chunks, [0..5, 5..10, 10..11, 11..count(size)]);
        assert!(spans.iter().all(|span| span.is_whole(size)));
        assert_eq!(spans[2].data(), 2 * MIB);
    }

    #[test]
    fn a_span_has_only_wanted_chunks() {
        let spans = all(&[data(0, 64 * MIB)], 64 * MIB, 32 * MIB, |index| index != 1 && index != 3);
        let chunks: Vec<_> = spans.iter().map(|span| span.chunks.clone()).collect();
        assert_eq!(chunks, [0..1, 2..3, 4..12, 12..16]);
    }

    #[test]
    fn the_digest_of_a_chunk_does_not_depend_on_how_it_was_fed() {
        let bytes: Vec<u8> = (0..CHUNK + 1000).map(|at| if at < 300_000 { 0 } else { at as u8 }).collect();
        let expected =
            vec![(0, blake3::hash(&bytes[..CHUNK as usize])), (1, blake3::hash(&bytes[CHUNK as usize..]))];
        let mut whole = SpanHasher::new();
        whole.data(0, &bytes);
        assert_eq!(whole.finish(), expected);
        let mut parts = SpanHasher::new();
        parts.zeros(0, 300_000);
        parts.data(300_000, &bytes[300_000..1_000_000]);
        parts.data(1_000_000, &bytes[1_000_000..]);
        assert_eq!(parts.finish(), expected);
        let zeros = ZeroDigests::new(CHUNK + 7);
        assert_eq!((zeros.of(0), zeros.of(1)), (blake3::hash(&[0; CHUNK as usize]), blake3::hash(&[0; 7])));
    }

    proptest! {
        /// Whatever the extents: every byte that is to be copied is in exactly one span, with its kind, and nothing else.
        #[test]
        fn spans_are_the_extents(
            list in proptest::collection::vec((0_u64..40 * MIB, 1_u64..9 * MIB, 0_u8..3), 0..12),
            size in 1_u64..48 * MIB,
            most in 0_u64..24 * MIB,
            unwanted in 0_u64..16,
        ) {
            let kinds = [Kind::Hole, Kind::Zero, Kind::Data];
            let list = list.into_iter().map(|(at, length, kind)| Extent::new(at, length, kinds[kind as usize]));
            let extents = Extents::normalize(list).clamp(size);
            let spans: Vec<Span> =
                Spans::new(Rc::new(extents.clone()), size, most, |index| index != unwanted).collect();
            let skipped = Extents::normalize([data(unwanted * CHUNK, CHUNK)]);
            let expected = extents.subtract(&skipped);
            prop_assert_eq!(spans.iter().map(|span| span.extents.covered()).sum::<u64>(), expected.covered());
            let found = Extents::normalize(spans.iter().flat_map(|span| span.extents.iter()));
            prop_assert_eq!(found, expected);
            for span in &spans {
                prop_assert!(!span.extents.is_empty());
                prop_assert!(span.extents.as_slice()[0].offset / CHUNK >= span.chunks.start);
                prop_assert!(span.extents.end() <= span.chunks.end * CHUNK);
            }
        }
    }
}

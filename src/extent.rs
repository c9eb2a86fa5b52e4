//! Extents (pure): which bytes of a disk hold data, which read as zeros, and the algebra of such lists.
//!
//! No clock, no I/O: values in, values out. The NBD client makes lists of block-status descriptors, sources make them
//! of changed areas, the copy engine intersects, subtracts and splits them, and the journal says what is left of them.
//! Nothing here overflows: what would lie beyond 2^64 - 1 is cut off there.

use std::num::NonZeroU64;

/// What a range of a disk reads as, in the order of what it costs to be wrong about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Not allocated, and reads as zeros.
    Hole,
    /// Reads as zeros.
    Zero,
    /// May hold anything: it must be read.
    Data,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Data, Self::Zero, Self::Hole];

    /// The kind of a `base:allocation` descriptor (NBD protocol, "Metadata contexts": bit 0 is HOLE, bit 1 is ZERO).
    /// A hole that is not said to read as zeros may read as anything, so it is data.
    pub fn of_allocation(flags: u32) -> Self {
        match flags & 3 {
            3 => Self::Hole,
            2 => Self::Zero,
            _ => Self::Data,
        }
    }

    /// Whether it is known to read as zeros.
    pub fn is_zero(self) -> bool {
        self != Self::Data
    }
}

/// A range of bytes and what it reads as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it reads as.
    pub kind: Kind,
}

impl Extent {
    /// `length` bytes from `offset` on.
    pub fn new(offset: u64, length: u64, kind: Kind) -> Self {
        Self { offset, length, kind }
    }

    /// The first byte behind it, at most 2^64 - 1.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    fn between(start: u64, end: u64, kind: Kind) -> Option<Self> {
        (start < end).then(|| Self::new(start, end - start, kind))
    }
}

/// Extents in ascending order that neither overlap nor are empty; neighbours of the same kind are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// Brings any extents into order. Where they overlap, data wins over zeros and zeros over holes: the answer
    /// that is never wrong about what must be read.
    pub fn normalize(extents: impl IntoIterator<Item = Extent>) -> Self {
        // Each extent opens at its start and closes at its end; between two edges the kind is the greatest open one.
        let mut edges = Vec::new();
        for extent in extents {
            if extent.offset < extent.end() {
                edges.push((extent.offset, extent.kind, true));
                edges.push((extent.end(), extent.kind, false));
            }
        }
        edges.sort_unstable_by_key(|(at, ..)| *at);
        let mut open = [0_usize; 3];
        let mut list = Self::default();
        let mut from = 0;
        for (at, kind, opens) in edges {
            let greatest = Kind::ALL.into_iter().find(|kind| open[*kind as usize] > 0);
            list.append(greatest.and_then(|kind| Extent::between(from, at, kind)));
            from = at;
            if opens {
                open[kind as usize] += 1;
            } else {
                open[kind as usize] -= 1;
            }
        }
        list
    }

    /// One extent from 0 to `size`.
    pub fn whole(size: u64, kind: Kind) -> Self {
        Self::normalize([Extent::new(0, size, kind)])
    }

    /// What the `base:allocation` descriptors (length, flags) of a block status reply for the `length` bytes at
    /// `offset` say. The last one may run over the end of the request (NBD protocol, `NBD_REPLY_TYPE_BLOCK_STATUS`):
    /// it is cut there. Descriptors that end early give a shorter list.
    pub fn from_block_status(offset: u64, length: u64, descriptors: &[(u32, u32)]) -> Self {
        let end = offset.saturating_add(length);
        let mut at = offset;
        let mut list = Self::default();
        for (length, flags) in descriptors {
            let next = at.saturating_add(u64::from(*length)).min(end);
            list.append(Extent::between(at, next, Kind::of_allocation(*flags)));
            at = next;
        }
        list
    }

    /// Areas (offset, length) that changed, in any order, overlapping, empty or beyond the end of a disk of `size`
    /// bytes. What they hold now is not known, so they are data until block status says more.
    pub fn from_changed_areas(areas: impl IntoIterator<Item = (u64, u64)>, size: u64) -> Self {
        let areas = areas.into_iter().map(|(offset, length)| Extent::new(offset, length, Kind::Data));
        Self::normalize(areas).clamp(size)
    }

    /// Adds behind the last one; the caller keeps the order.
    fn append(&mut self, extent: Option<Extent>) {
        let Some(extent) = extent else { return };
        match self.0.last_mut() {
            Some(last) if last.end() == extent.offset && last.kind == extent.kind => {
                last.length += extent.length
            }
            _ => self.0.push(extent),
        }
    }

    /// The extents in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Extent> + ExactSizeIterator + '_ {
        self.0.iter().copied()
    }

    /// The extents in ascending order.
    pub fn as_slice(&self) -> &[Extent] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The first byte behind the last extent; 0 without one.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, Extent::end)
    }

    /// Bytes in all extents.
    pub fn covered(&self) -> u64 {
        self.0.iter().map(|extent| extent.length).sum()
    }

    /// Bytes in extents of this kind.
    pub fn covered_by(&self, kind: Kind) -> u64 {
        self.0.iter().filter(|extent| extent.kind == kind).map(|extent| extent.length).sum()
    }

    /// What lies in both, with the kinds of `self`: block status intersected with changed areas tells which of the
    /// changes must be read and which are zeros now.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let mut list = Self::default();
        let mut theirs = other.0.iter().peekable();
        for ours in &self.0 {
            while let Some(their) = theirs.peek() {
                let (start, end) = (ours.offset.max(their.offset), ours.end().min(their.end()));
                list.append(Extent::between(start, end, ours.kind));
                if their.end() > ours.end() {
                    break;
                }
                theirs.next();
            }
        }
        list
    }

    /// What lies in `self` and not in `other`, whatever the kinds of `other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        let mut list = Self::default();
        let mut theirs = other.0.iter().peekable();
        for ours in &self.0 {
            let mut from = ours.offset;
            while let Some(their) = theirs.peek() {
                list.append(Extent::between(from, ours.end().min(their.offset), ours.kind));
                from = from.max(their.end());
                if their.end() > ours.end() {
                    break;
                }
                theirs.next();
            }
            list.append(Extent::between(from, ours.end(), ours.kind));
        }
        list
    }

    /// What lies in either. Where both have something, data wins over zeros and zeros over holes.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::normalize(self.iter().chain(other.iter()))
    }

    /// Without what lies at `size` or beyond.
    #[must_use]
    pub fn clamp(&self, size: u64) -> Self {
        let inside = self
            .0
            .iter()
            .map_while(|extent| Extent::between(extent.offset, extent.end().min(size), extent.kind));
        Self(inside.collect())
    }

    /// In pieces that cross no multiple of `chunk`, in ascending order: a chunk of the disk is met whole or, where
    /// kinds change in it, in parts that lie in it alone.
    pub fn split(&self, chunk: NonZeroU64) -> impl Iterator<Item = Extent> + '_ {
        self.0.iter().flat_map(move |extent| {
            let mut at = extent.offset;
            std::iter::from_fn(move || {
                let next = (at / chunk).saturating_add(1).saturating_mul(chunk.get()).min(extent.end());
                let piece = Extent::between(at, next, extent.kind);
                at = next;
                piece
            })
        })
    }

    /// Widened to multiples of `unit`, cut at `size`, for a server or a disk that does no less. A unit that is only
    /// partly zero, or whose zeros are only partly in this list, is data: zeroing it whole would destroy the rest.
    #[must_use]
    pub fn widen(&self, unit: NonZeroU64, size: u64) -> Self {
        let down = |at: u64| at - at % unit;
        let up =
            |at: u64| if at.is_multiple_of(unit.get()) { at } else { down(at).saturating_add(unit.get()) };
        let pieces = self.clamp(size).0.into_iter().flat_map(|extent| {
            let (start, end) = (extent.offset, extent.end());
            // The end of the disk closes its last unit.
            let inner_end = if end == size { end } else { down(end) };
            let inner = Extent::between(up(start), inner_end, extent.kind).filter(|_| extent.kind.is_zero());
            match inner {
                Some(inner) => [
                    Extent::between(down(start), inner.offset, Kind::Data),
                    Some(inner),
                    Extent::between(inner.end(), up(end), Kind::Data),
                ],
                None => [Extent::between(down(start), up(end), Kind::Data), None, None],
            }
        });
        Self::normalize(pieces.flatten()).clamp(size)
    }
}

impl<'a> IntoIterator for &'a Extents {
    type Item = Extent;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, Extent>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests;

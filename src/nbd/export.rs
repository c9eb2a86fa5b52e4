//! What a server offers for one export (pure), as small questions.

use super::wire::{Fault, Info};

/// Payload of one request when the server names no limit ("Block size constraints" has 32 MiB as the default), and
/// never more: it must fit into one chunk that is accepted.
const MAX_PAYLOAD: u32 = 32 << 20;

/// `NBD_FLAG_*` ("Transmission flags").
mod flag {
    pub(super) const HAS_FLAGS: u16 = 1;
    pub(super) const READ_ONLY: u16 = 1 << 1;
    pub(super) const FLUSH: u16 = 1 << 2;
    pub(super) const FUA: u16 = 1 << 3;
    pub(super) const ROTATIONAL: u16 = 1 << 4;
    pub(super) const TRIM: u16 = 1 << 5;
    pub(super) const WRITE_ZEROES: u16 = 1 << 6;
    pub(super) const MULTI_CONN: u16 = 1 << 8;
    pub(super) const FAST_ZERO: u16 = 1 << 11;
}

/// The server's block sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Every offset and length is a multiple of it, except that a request may end at an odd end of the export.
    pub minimum: u32,
    /// What is efficient.
    pub preferred: u32,
    /// Largest payload of one request; a multiple of `minimum`.
    pub maximum: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD }
    }
}

impl BlockSizes {
    /// Checks what a server sent ("Block size constraints").
    pub fn checked(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, Fault> {
        let sane = minimum.is_power_of_two()
            && minimum <= 64 << 10
            && preferred >= minimum
            && maximum >= minimum
            && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
        if !sane {
            return Err(Fault::BlockSizes { minimum, preferred, maximum });
        }
        Ok(Self { minimum, preferred, maximum: maximum.min(MAX_PAYLOAD) })
    }
}

/// An open export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    size: u64,
    flags: u16,
    blocks: BlockSizes,
    structured: bool,
    allocation: Option<u32>,
}

impl Export {
    /// An export of `size` bytes with these transmission flags.
    pub fn new(size: u64, flags: u16, structured: bool, allocation: Option<u32>) -> Self {
        // Without HAS_FLAGS the others mean nothing.
        let flags = if flags & flag::HAS_FLAGS == 0 { 0 } else { flags };
        Self { size, flags, blocks: BlockSizes::default(), structured, allocation }
    }

    /// From the information of `NBD_OPT_GO`.
    pub fn of(infos: &[Info], structured: bool, allocation: Option<u32>) -> Result<Self, Fault> {
        let sizes = infos.iter().find_map(|info| match info {
            Info::Export { size, flags } => Some((*size, *flags)),
            _ => None,
        });
        let (size, flags) = sizes.ok_or(Fault::NoExport)?;
        let mut export = Self::new(size, flags, structured, allocation);
        for info in infos {
            if let Info::BlockSizes { minimum, preferred, maximum } = *info {
                export.blocks = BlockSizes::checked(minimum, preferred, maximum)?;
            }
        }
        Ok(export)
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The block sizes to keep to.
    pub fn blocks(&self) -> BlockSizes {
        self.blocks
    }

    /// Largest read or write in bytes that is sent as one request; larger ones are sent as several.
    pub fn max_request(&self) -> u32 {
        self.blocks.maximum
    }

    /// Whether the server takes a request of `length` bytes at `offset`.
    pub fn is_aligned(&self, offset: u64, length: u64) -> bool {
        let minimum = u64::from(self.blocks.minimum);
        let end = offset.saturating_add(length);
        offset.is_multiple_of(minimum) && (end.is_multiple_of(minimum) || end == self.size)
    }

    /// Whether nothing may be written.
    pub fn is_read_only(&self) -> bool {
        self.has(flag::READ_ONLY)
    }

    /// Whether it is said to be a spinning disk.
    pub fn is_rotational(&self) -> bool {
        self.has(flag::ROTATIONAL)
    }

    /// Whether zeros can be written without sending them.
    pub fn can_zero(&self) -> bool {
        self.has(flag::WRITE_ZEROES) && !self.is_read_only()
    }

    /// Whether the server can refuse to write zeros slowly.
    pub fn can_fast_zero(&self) -> bool {
        self.can_zero() && self.has(flag::FAST_ZERO)
    }

    /// Whether ranges can be given up.
    pub fn can_trim(&self) -> bool {
        self.has(flag::TRIM) && !self.is_read_only()
    }

    /// Whether writes can be made durable.
    pub fn can_flush(&self) -> bool {
        self.has(flag::FLUSH)
    }

    /// Whether single requests can be made durable.
    pub fn can_fua(&self) -> bool {
        self.has(flag::FUA)
    }

    /// Whether several connections see the same, and a flush on one covers what was acknowledged on all.
    pub fn can_multi_conn(&self) -> bool {
        self.has(flag::MULTI_CONN)
    }

    /// Whether block status tells holes and zeros.
    pub fn has_allocation(&self) -> bool {
        self.allocation.is_some()
    }

    /// Whether replies to reads are structured.
    pub fn is_structured(&self) -> bool {
        self.structured
    }

    pub(super) fn allocation(&self) -> Option<u32> {
        self.allocation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_block_sizes_are_refused_and_large_ones_cut() {
        for (minimum, preferred, maximum) in [
            (0, 0, 0),
            (3, 4096, 1 << 20),
            (1 << 17, 1 << 17, 1 << 20),
            (4096, 512, 1 << 20),
            (512, 4096, 700),
        ] {
            assert!(
                BlockSizes::checked(minimum, preferred, maximum).is_err(),
                "{minimum} {preferred} {maximum}"
            );
        }
        assert_eq!(BlockSizes::checked(512, 4096, u32::MAX).unwrap().maximum, MAX_PAYLOAD);
    }

    #[test]
    fn a_request_may_end_at_the_odd_end_of_the_export_and_nowhere_else() {
        let infos = [
            Info::Export { size: 10_000, flags: 1 },
            Info::BlockSizes { minimum: 4096, preferred: 4096, maximum: 8192 },
        ];
        let export = Export::of(&infos, true, None).unwrap();
        assert!(export.is_aligned(4096, 4096) && export.is_aligned(8192, 1808));
        assert!(
            !export.is_aligned(8192, 1000) && !export.is_aligned(100, 4096) && !export.is_aligned(9000, 1000)
        );
    }

    #[test]
    fn flags_mean_nothing_without_has_flags_and_nothing_is_written_read_only() {
        let nothing = Export::new(1, 0xfffe, true, None);
        assert!(!nothing.can_zero() && !nothing.can_flush() && !nothing.is_read_only());
        let read_only = Export::new(1, 0xffff, true, None);
        assert!(read_only.is_read_only() && !read_only.can_zero() && !read_only.can_trim());
        let writable = Export::new(1, 0xfffd, true, None);
        assert!(writable.can_zero() && writable.can_fast_zero() && writable.can_trim() && writable.can_fua());
    }
}

//! A raw file or a block device as target. Everything here blocks; [`super::Target`] calls it on other threads.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek64};

use super::{Piece, TargetError, runs};
use crate::extent::{Extent, Extents, Kind};

/// Bytes of zeros that are written at a time where nothing better works.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Whether a file keeps holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Zeros take no room.
    Sparse,
    /// All room is taken from the start.
    Preallocated,
}

impl Allocation {
    /// The word of the document's `allocation`.
    pub fn of(word: Option<&str>) -> Self {
        match word {
            Some("preallocated") => Self::Preallocated,
            _ => Self::Sparse,
        }
    }
}

/// An open raw target.
pub struct FileTarget {
    path: PathBuf,
    file: File,
    size: u64,
    allocation: Allocation,
    is_device: bool,
    /// What was never written reads as zeros: a file that this job made and that nobody has written to.
    is_fresh: AtomicBool,
}

impl FileTarget {
    /// Makes a file of `size` bytes; there must be none of this name.
    pub fn create(path: &Path, size: u64, allocation: Allocation) -> Result<Self, TargetError> {
        let error = |what| move |source| TargetError::file(what, path, source);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(error("creating"))?;
        file.set_len(size).map_err(error("sizing"))?;
        lock(&file, path)?;
        let mut is_fresh = true;
        if allocation == Allocation::Preallocated && size > 0 {
            match fallocate(&file, FallocateFlags::empty(), 0, size as i64) {
                Ok(()) => {}
                // Then zeros are written as data is.
                Err(Errno::EOPNOTSUPP) => is_fresh = false,
                Err(errno) => return Err(error("allocating room for")(errno.into())),
            }
        }
        let is_fresh = AtomicBool::new(is_fresh);
        Ok(Self { path: path.to_owned(), file, size, allocation, is_device: false, is_fresh })
    }

    /// A file of an interrupted copy, or a block device: what it holds is not known.
    pub fn open(path: &Path, size: u64, allocation: Allocation) -> Result<Self, TargetError> {
        let error = |what| move |source| TargetError::file(what, path, source);
        let kind = path.metadata().map_err(error("opening"))?.file_type();
        // Nothing else lies there, and who stands in for one (a file behind a link) has its size and its unknown content.
        let is_device = kind.is_block_device() || path.starts_with("/dev");
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if is_device {
            // The kernel then refuses a device that is mounted or otherwise in use.
            options.custom_flags(libc::O_EXCL);
        }
        let mut file = options.open(path).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => TargetError::Locked { path: path.to_owned() },
            _ => TargetError::file("opening", path, source),
        })?;
        lock(&file, path)?;
        let have = file.seek(SeekFrom::End(0)).map_err(error("sizing"))?;
        let fits = if is_device { have >= size } else { have == size };
        if !fits {
            return Err(TargetError::TooSmall { path: path.to_owned(), have, need: size });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            allocation,
            is_device,
            is_fresh: AtomicBool::new(false),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, what: &'static str, source: std::io::Error) -> TargetError {
        TargetError::file(what, &self.path, source)
    }

    pub(super) fn was_written(&self) {
        self.is_fresh.store(false, Ordering::Relaxed);
    }

    pub(super) fn put(&self, piece: &Piece) -> Result<(), TargetError> {
        let Piece { extent, data } = piece;
        let Some(data) = data else { return self.zero(*extent) };
        for run in &runs(extent.offset, data) {
            if run.kind == Kind::Data {
                let from = (run.offset - extent.offset) as usize;
                let bytes = &data[from..from + run.length as usize];
                self.file.write_all_at(bytes, run.offset).map_err(|source| self.error("writing", source))?;
            } else {
                self.zero(run)?;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros, with as little writing as the target allows.
    fn zero(&self, extent: Extent) -> Result<(), TargetError> {
        if self.is_fresh.load(Ordering::Relaxed) {
            return Ok(());
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let keep = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let ways = match (self.is_device, self.allocation) {
            (false, Allocation::Sparse) => [punch, keep],
            _ => [keep, punch],
        };
        for way in ways {
            match fallocate(&self.file, way, extent.offset as i64, extent.length as i64) {
                Ok(()) => return Ok(()),
                // Not this way; devices also refuse ranges that are not whole blocks.
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => {}
                Err(errno) => return Err(self.error("zeroing", errno.into())),
            }
        }
        let mut at = extent.offset;
        while at < extent.end() {
            let length = (extent.end() - at).min(ZEROS.len() as u64);
            let written = self.file.write_all_at(&ZEROS[..length as usize], at);
            written.map_err(|source| self.error("writing zeros to", source))?;
            at += length;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), TargetError> {
        self.file.sync_data().map_err(|source| self.error("flushing", source))
    }

    /// Reads from the medium where that can be had: what is clean in the page cache is given up first.
    pub(super) fn read_back(&self, offset: u64, buffer: &mut [u8]) -> Result<(), TargetError> {
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        if let Err(errno) = posix_fadvise(self.file.as_fd(), offset as i64, buffer.len() as i64, advice) {
            tracing::trace!("{} is read back from the page cache: {errno}", self.path.display());
        }
        self.file.read_exact_at(buffer, offset).map_err(|source| self.error("reading back", source))
    }

    /// Where the file has data in this range; all of it where it cannot tell.
    pub(super) fn allocated(&self, range: std::ops::Range<u64>) -> Extents {
        let whole = || Extents::normalize([Extent::new(range.start, range.end - range.start, Kind::Data)]);
        if self.is_device {
            return whole();
        }
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let start = match lseek64(self.file.as_fd(), at as i64, Whence::SeekData) {
                Ok(start) => (start as u64).min(range.end),
                Err(Errno::ENXIO) => break,
                Err(_) => return whole(),
            };
            let end = match lseek64(self.file.as_fd(), start as i64, Whence::SeekHole) {
                Ok(end) => (end as u64).min(range.end),
                Err(Errno::ENXIO) => break,
                Err(_) => return whole(),
            };
            found.push(Extent::new(start, end - start, Kind::Data));
            at = end;
        }
        Extents::normalize(found)
    }

    /// Makes the file's name durable too.
    pub(super) fn sync_directory(&self) -> Result<(), TargetError> {
        if self.is_device {
            return Ok(());
        }
        debug_assert!(self.file.metadata().is_ok_and(|data| data.len() == self.size));
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| self.error("syncing the directory of", source))
    }
}

/// Against a second job on the same target (peers.md 6.3, row 32); free when the descriptor closes.
fn lock(file: &File, path: &Path) -> Result<(), TargetError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(TargetError::Locked { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(TargetError::file("locking", path, source)),
    }
}

//! Targets: where the bytes of a disk go, and from where they are read back. A raw file or a block device directly
//! ([`mod@file`]), an image with a format through qemu-nbd ([`nbd_image`]).
//!
//! A target knows three things for sure: what it was given to write, whether a flush succeeded, and what it reads back.
//! What that says about the copy is the engine's to judge ([`crate::copy`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chunk::{Digest, Span, SpanHasher};
use crate::extent::{Extent, Extents, Kind};
use crate::nbd;
use crate::nbd::budget::{Budget, Buffer};

pub mod file;
pub mod nbd_image;

use file::FileTarget;
use nbd_image::NbdTarget;

/// Zeros are looked for in blocks of this size: smaller holes are not worth a request. The cluster size of qcow2.
const ZERO_BLOCK: usize = 64 << 10;
/// Bytes that are read back at a time.
const READ_BACK: usize = 1 << 20;

/// What can go wrong with a target.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TargetError {
    /// A file or device.
    #[error("{what} {path} failed: {source}")]
    File {
        /// What was done: a gerund.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// It is smaller than the disk.
    #[error("{path} has {have} bytes, less than the {need} of the disk")]
    TooSmall {
        /// The file or device.
        path: PathBuf,
        /// Its size.
        have: u64,
        /// The disk's.
        need: u64,
    },
    /// Another program, or another job, has it.
    #[error("{path} is in use by another job or program")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The server of an image.
    #[error("{what} {path} failed: {error}")]
    Image {
        /// What was done: a gerund.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// Why, as a whole sentence.
        error: String,
        /// Because its file system is full.
        full: bool,
    },
}

impl TargetError {
    /// What was done to which file, and what the system said.
    pub fn file(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::File { what, path: path.to_owned(), source: Arc::new(source) }
    }

    fn nbd(what: &'static str, path: &Path, error: &nbd::error::Error) -> Self {
        let text = crate::log::chain(error);
        Self::Image { what, path: path.to_owned(), error: text, full: error.is_no_space() }
    }

    /// Whether there is no room: then it is waited for.
    pub fn is_full(&self) -> bool {
        match self {
            Self::File { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
            }
            Self::Image { full, .. } => *full,
            Self::TooSmall { .. } | Self::Locked { .. } => false,
        }
    }
}

/// A range to be written: bytes, or zeros where there are none.
#[derive(Debug)]
pub struct Piece {
    /// Where it goes.
    pub extent: Extent,
    /// Its content, as long as the extent.
    pub data: Option<Arc<Buffer>>,
}

/// An open target.
pub enum Target {
    /// A raw file or a block device.
    File(Arc<FileTarget>),
    /// An image behind qemu-nbd.
    Image(Box<NbdTarget>),
}

impl Target {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(file) => file.path(),
            Self::Image(image) => image.path(),
        }
    }

    /// From now on zeros are written, too: what is there may be anything.
    pub fn was_written(&self) {
        match self {
            Self::File(file) => file.was_written(),
            Self::Image(image) => image.was_written(),
        }
    }

    /// Writes the pieces, which are in order, and gives, if asked to, the digest of each chunk that they touch. May be
    /// called again with the same pieces when it failed.
    pub async fn put(&self, pieces: &Arc<Vec<Piece>>, hash: bool) -> Result<Vec<(u64, Digest)>, TargetError> {
        match self {
            Self::File(file) => {
                let (file, pieces) = (Arc::clone(file), Arc::clone(pieces));
                blocking(move || {
                    for piece in pieces.iter() {
                        file.put(piece)?;
                    }
                    Ok(if hash { digests(&pieces) } else { Vec::new() })
                })
                .await
            }
            Self::Image(image) => {
                let hashed = Arc::clone(pieces);
                let hashing = blocking(move || Ok(if hash { digests(&hashed) } else { Vec::new() }));
                let (written, digests) = tokio::join!(image.put(pieces), hashing);
                written.and(digests)
            }
        }
    }

    /// Returns when everything that was put is durable.
    pub async fn flush(&self) -> Result<(), TargetError> {
        match self {
            Self::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.flush()).await
            }
            Self::Image(image) => image.flush().await,
        }
    }

    /// What the span's ranges hold on the target now, by chunk; to be asked after a flush.
    pub async fn read_back(&self, span: &Span, budget: &Budget) -> Result<Vec<(u64, Digest)>, TargetError> {
        let mut hasher = SpanHasher::new();
        for extent in &span.extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let length = (extent.end() - at).min(READ_BACK as u64);
                let buffer = budget.buffer(length as usize).await;
                hasher = self.hash(at, buffer, hasher).await?;
                at += length;
            }
        }
        Ok(hasher.finish())
    }

    async fn hash(
        &self,
        at: u64,
        mut buffer: Buffer,
        mut hasher: SpanHasher,
    ) -> Result<SpanHasher, TargetError> {
        match self {
            Self::File(file) => {
                let file = Arc::clone(file);
                blocking(move || {
                    file.read_back(at, &mut buffer)?;
                    hasher.data(at, &buffer);
                    Ok(hasher)
                })
                .await
            }
            Self::Image(image) => {
                let buffer = image.read(at, buffer).await?;
                blocking(move || {
                    hasher.data(at, &buffer);
                    Ok(hasher)
                })
                .await
            }
        }
    }

    /// The bytes of a range as they are now.
    pub async fn read(&self, at: u64, mut buffer: Buffer) -> Result<Buffer, TargetError> {
        match self {
            Self::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.read_back(at, &mut buffer).map(|()| buffer)).await
            }
            Self::Image(image) => image.read(at, buffer).await,
        }
    }

    /// The first byte of a range that is not zero, if one is. Holes that the target itself knows of are not read.
    pub async fn first_non_zero(
        &self,
        range: std::ops::Range<u64>,
        budget: &Budget,
    ) -> Result<Option<u64>, TargetError> {
        let allocated = match self {
            Self::File(file) => {
                let (file, range) = (Arc::clone(file), range.clone());
                blocking(move || Ok(file.allocated(range))).await?
            }
            Self::Image(image) => image.extents(range.start, range.end - range.start).await?,
        };
        for extent in allocated.iter().filter(|extent| extent.kind == Kind::Data) {
            let mut at = extent.offset;
            while at < extent.end() {
                let length = (extent.end() - at).min(READ_BACK as u64) as usize;
                let buffer = self.read(at, budget.buffer(length).await).await?;
                if let Some(found) = first_non_zero(&buffer) {
                    return Ok(Some(at + found as u64));
                }
                at += length as u64;
            }
        }
        Ok(None)
    }

    /// The end of a successful copy: everything durable and closed.
    pub async fn close(self) -> Result<(), TargetError> {
        self.flush().await?;
        match self {
            Self::File(file) => blocking(move || file.sync_directory()).await,
            Self::Image(image) => image.close().await,
        }
    }
}

/// Runs what blocks on a thread of its own.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TargetError> + Send + 'static,
) -> Result<T, TargetError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only when the work panicked or the runtime ends.
        Err(error) => Err(TargetError::File {
            what: "working on",
            path: PathBuf::from("the target"),
            source: Arc::new(std::io::Error::other(error)),
        }),
    }
}

/// The digest of each chunk that the pieces, which are in order, touch.
pub(super) fn digests(pieces: &[Piece]) -> Vec<(u64, Digest)> {
    let mut hasher = SpanHasher::new();
    for Piece { extent, data } in pieces {
        match data {
            Some(data) => hasher.data(extent.offset, data),
            None => hasher.zeros(extent.offset, extent.length),
        }
    }
    hasher.finish()
}

/// The first byte that is not zero.
fn first_non_zero(bytes: &[u8]) -> Option<usize> {
    // Whole words first: this runs over every byte of a disk.
    let block = bytes.chunks(1024).position(|block| !is_zero(block))? * 1024;
    bytes[block..].iter().position(|byte| *byte != 0).map(|at| block + at)
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| word == &[0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// The bytes at `offset` as runs that are all zeros or not, in blocks of [`ZERO_BLOCK`] on the disk's own grid.
fn runs(offset: u64, bytes: &[u8]) -> Extents {
    let mut at = 0;
    let mut list = Vec::new();
    while at < bytes.len() {
        let to_grid = ZERO_BLOCK - (offset as usize + at) % ZERO_BLOCK;
        let length = to_grid.min(bytes.len() - at);
        let kind = if is_zero(&bytes[at..at + length]) { Kind::Zero } else { Kind::Data };
        list.push(Extent::new(offset + at as u64, length as u64, kind));
        at += length;
    }
    Extents::normalize(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_found_on_the_grid_of_the_disk() {
        let mut bytes = vec![0; 300_000];
        bytes[70_000] = 1;
        bytes[299_999] = 1;
        let kinds: Vec<_> = runs(100, &bytes).iter().map(|run| (run.offset, run.end(), run.kind)).collect();
        let grid = ZERO_BLOCK as u64;
        assert_eq!(
            kinds,
            [
                (100, grid, Kind::Zero),
                (grid, 2 * grid, Kind::Data),
                (2 * grid, 4 * grid, Kind::Zero),
                (4 * grid, 300_100, Kind::Data)
            ]
        );
        assert_eq!(first_non_zero(&bytes), Some(70_000));
        bytes[70_000] = 0;
        assert_eq!(first_non_zero(&bytes), Some(299_999));
        assert_eq!(first_non_zero(&bytes[..299_999]), None);
    }
}

//! An image with a format as target, written through a qemu-nbd of the job's own.

use std::cell::Cell;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::Allocation;
use super::{Piece, TargetError, runs};
use crate::export::Files;
use crate::export::server::Server;
use crate::extent::{Extent, Extents, Kind};
use crate::nbd::budget::Buffer;
use crate::nbd::client::Zeroes;
use crate::nbd::pool::Pool;
use crate::nbd::{Address, Options};
use crate::plan::DiskFormat;
use crate::process::Exit;
use crate::qemu_img::{self, Ended, Health};
use crate::v2v::args::CommandLine;

const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// An image that is not served.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// The job's tag.
    pub tag: &'a str,
    /// Where it is.
    pub path: &'a Path,
    /// qcow2; raw files need no server.
    pub format: DiskFormat,
}

impl Image<'_> {
    fn error(&self, what: &'static str, error: String) -> TargetError {
        // The only one of qemu-img's errors that waiting helps.
        let full = error.contains("No space left on device");
        TargetError::Image { what, path: self.path.to_owned(), error, full }
    }

    /// Makes it; there must be nothing of this name.
    pub async fn create(
        &self,
        qemu_img: &Path,
        size: u64,
        allocation: Allocation,
    ) -> Result<(), TargetError> {
        let taken = std::fs::OpenOptions::new().write(true).create_new(true).open(self.path);
        drop(taken.map_err(|source| TargetError::file("creating", self.path, source))?);
        let ended = qemu_img::run(qemu_img, self.tag, self.create_args(size, allocation), |_| ()).await;
        match ended.map_err(|error| self.error("creating", error.to_string()))? {
            Ended { exit: Exit::Code(0), .. } => Ok(()),
            Ended { said, .. } => Err(self.error("creating", said)),
        }
    }

    /// Arguments of the qemu-img that makes it.
    pub fn create_args(&self, size: u64, allocation: Allocation) -> Vec<OsString> {
        let preallocation = match allocation {
            Allocation::Sparse => "preallocation=off",
            Allocation::Preallocated => "preallocation=falloc",
        };
        let mut args: Vec<OsString> = ["create", "-q", "-f", self.format.as_str(), "-o", preallocation]
            .iter()
            .map(Into::into)
            .collect();
        args.extend([self.path.into(), size.to_string().into()]);
        args
    }

    /// How the qemu-nbd that writes it is run.
    pub fn command_line(&self, files: &Files) -> CommandLine {
        let Image { path, format, .. } = *self;
        let mut line = CommandLine::default();
        let joined = |prefix: &str, path: &Path| {
            let mut joined = OsString::from(prefix);
            joined.push(path);
            joined
        };
        for arg in
            ["--persistent", "--shared=16", "--cache=writeback", "--discard=unmap", "--detect-zeroes=off"]
        {
            line.add(arg);
        }
        line.add(joined("--socket=", &files.socket));
        line.add(joined("--pid-file=", &files.pid));
        line.add("--image-opts");
        // A comma ends an option's value, two are one; `file.filename` is never read as anything but a path.
        let bytes = path.as_os_str().as_bytes().iter();
        let doubled = bytes.flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
        let mut options = OsString::from(format!("driver={},file.filename=", format.as_str()));
        options.push(OsString::from_vec(doubled.collect()));
        line.add(options);
        line.env("LC_ALL", "C.UTF-8");
        line
    }

    /// Whether an image of an interrupted copy can be gone on with; repairs what a killed server left.
    pub async fn check(&self, qemu_img: &Path) -> Result<(), TargetError> {
        let health = qemu_img::check(qemu_img, self.tag, self.path, self.format).await;
        match health.map_err(|error| self.error("checking", error.to_string()))? {
            Health::Sound => Ok(()),
            Health::Damaged(said) | Health::Unknown(Ended { said, .. }) => Err(self.error("checking", said)),
        }
    }
}

/// An image behind its server.
pub struct NbdTarget {
    path: PathBuf,
    server: Server,
    pool: Pool,
    /// What was never written reads as zeros.
    is_fresh: Cell<bool>,
}

impl NbdTarget {
    /// Serves the image, which exists, for writing. `is_fresh` says that nothing was written to it before.
    pub async fn open(
        qemu_nbd: &Path,
        image: Image<'_>,
        files: Files,
        size: u64,
        is_fresh: bool,
    ) -> Result<Self, TargetError> {
        let Image { tag, path, .. } = image;
        let failed = |error: &dyn std::error::Error| TargetError::Image {
            what: "serving",
            path: path.to_owned(),
            error: crate::log::chain(error),
            full: false,
        };
        let line = image.command_line(&files);
        let server = Server::start(qemu_nbd, tag, path.display().to_string(), line, files);
        let server = server.await.map_err(|error| failed(&error))?;
        let address = Address::Unix(server.socket().to_owned());
        let pool = Pool::connect(&address, "", &Options::default(), CONNECTIONS).await;
        let pool = pool.map_err(|error| failed(&error))?;
        let have = pool.export().size();
        if have < size {
            return Err(TargetError::TooSmall { path: path.to_owned(), have, need: size });
        }
        Ok(Self { path: path.to_owned(), server, pool, is_fresh: Cell::new(is_fresh) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn was_written(&self) {
        self.is_fresh.set(false);
    }

    pub(super) async fn put(&self, pieces: &Arc<Vec<Piece>>) -> Result<(), TargetError> {
        for Piece { extent, data } in pieces.iter() {
            let Some(data) = data else {
                self.zero(*extent).await?;
                continue;
            };
            for run in &runs(extent.offset, data) {
                if run.kind == Kind::Data {
                    let from = (run.offset - extent.offset) as usize;
                    let range = from..from + run.length as usize;
                    let written = self.pool.write(run.offset, data, range, false).await;
                    written.map_err(|error| TargetError::nbd("writing", &self.path, &error))?;
                } else {
                    self.zero(run).await?;
                }
            }
        }
        Ok(())
    }

    async fn zero(&self, extent: Extent) -> Result<(), TargetError> {
        if self.is_fresh.get() {
            return Ok(());
        }
        let zeroed = self.pool.write_zeroes(extent.offset, extent.length, Zeroes::default()).await;
        zeroed.map_err(|error| TargetError::nbd("zeroing", &self.path, &error))
    }

    pub(super) async fn flush(&self) -> Result<(), TargetError> {
        if let Some(error) = self.pool.lost() {
            return Err(TargetError::nbd("flushing", &self.path, &error));
        }
        self.pool.flush().await.map_err(|error| TargetError::nbd("flushing", &self.path, &error))
    }

    pub(super) async fn read(&self, at: u64, buffer: Buffer) -> Result<Buffer, TargetError> {
        let read = self.pool.read(at, buffer).await;
        read.map_err(|error| TargetError::nbd("reading back", &self.path, &error))
    }

    pub(super) async fn extents(&self, offset: u64, length: u64) -> Result<Extents, TargetError> {
        let extents = self.pool.extents(offset, length).await;
        extents.map_err(|error| TargetError::nbd("reading the map of", &self.path, &error))
    }

    /// qemu-nbd writes the image's last metadata when it ends by itself; it is not killed for that (peers.md 6.3, row 37).
    pub(super) async fn close(self) -> Result<(), TargetError> {
        let Self { path, server, pool, .. } = self;
        let ended = pool.disconnect().await;
        ended.map_err(|error| TargetError::nbd("closing", &path, &error))?;
        server.stop().await;
        let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(|source| TargetError::file("flushing", &path, source))
    }
}

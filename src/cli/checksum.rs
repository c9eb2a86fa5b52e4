//! `virt-v2v-wrapper checksum`: what the state file of a two-phase job says of a disk, computed from a file. It shares
//! nothing with the copy but the definition ([`chunk`]), so that whoever doubts a copy can ask again.
//!
//! Holes are not read: of a sparse file only the data take time. Memory is that of one chunk.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write, stderr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::copy::chunk::{self, CHUNK, DiskHasher, ZeroDigests};
use crate::source::local::{ImageFormat, SNIFF_BYTES, sniff};

/// A line for each file. One that cannot be read is told on stderr and makes the exit code 1; the others go on.
pub(super) fn run(files: &[PathBuf], out: &mut impl Write) -> std::io::Result<u8> {
    let mut code = 0;
    for path in files {
        match checksum(path) {
            Ok((checksum, format)) => {
                write!(out, "{checksum}  ")?;
                out.write_all(path.as_os_str().as_bytes())?;
                writeln!(out)?;
                if format != ImageFormat::Raw {
                    // Beside the list, not in it; a closed stderr loses only this.
                    let _ = writeln!(
                        stderr(),
                        "virt-v2v-wrapper: {} looks like a {} image: this is the checksum of the file, not of the disk in it",
                        path.display(),
                        format.as_str()
                    );
                }
            }
            Err(error) => code = super::complain(&format!("cannot read {}: {error}", path.display())),
        }
        // A disk may take an hour: who reads a pipe gets each line when it is known.
        out.flush()?;
    }
    Ok(code)
}

/// The checksum, and the format that the first bytes tell.
fn checksum(path: &Path) -> std::io::Result<(String, ImageFormat)> {
    // Not to wait for the other end of a named pipe; files and devices do not mind.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(std::io::Error::other("it is neither a file nor a block device"));
    }
    // Of a device the metadata have no size.
    let size = file.seek(SeekFrom::End(0))?;
    let mut first = Vec::with_capacity(SNIFF_BYTES);
    file.rewind()?;
    Read::by_ref(&mut file).take(SNIFF_BYTES as u64).read_to_end(&mut first)?;

    let zeros = ZeroDigests::new(size);
    let mut hasher = DiskHasher::default();
    let mut buffer = vec![0; CHUNK.min(size) as usize];
    // The first byte of data at or behind the chunk that is looked at.
    let mut data = next_data(&file, 0, size)?;
    for index in 0..chunk::count(size) {
        let offset = index * CHUNK;
        if data < offset {
            data = next_data(&file, offset, size)?;
        }
        let bytes = &mut buffer[..chunk::length(index, size) as usize];
        if data >= offset + bytes.len() as u64 {
            hasher.add(&zeros.of(index));
            continue;
        }
        file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                std::io::Error::other(format!("it had {size} bytes, and became shorter meanwhile"))
            }
            _ => std::io::Error::new(error.kind(), format!("{error}, in the 4 MiB at offset {offset}")),
        })?;
        hasher.add(&blake3::hash(bytes));
    }
    Ok((hasher.checksum(), sniff(&first)))
}

/// Where the next data begin, at `offset` or behind it; `size` if only a hole is left. Where nobody can tell, all is
/// data.
fn next_data(file: &File, offset: u64, size: u64) -> std::io::Result<u64> {
    match lseek(file, i64::try_from(offset).unwrap_or(i64::MAX), Whence::SeekData) {
        Ok(at) => Ok(u64::try_from(at).unwrap_or(offset)),
        Err(Errno::ENXIO) => Ok(size),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(offset),
        Err(errno) => Err(errno.into()),
    }
}

//! The ledger: which chunks of a disk are finished, and what they hashed to. On disk, so that a killed job goes on where
//! it was. An edge; called by the copy engine alone.
//!
//! A file of a head and one slot for each chunk. The rule is one sentence: **a slot is written only after the target was
//! flushed with the chunk's bytes in it** (and, unless verification is off, read back and compared), and it is synced
//! before anybody is told. So a slot that is there is true whatever was killed when, and nothing else is believed.
//! A slot proves itself: one that a crash tore reads as empty, and its chunk is copied again.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::chunk::{self, Digest, DiskHasher};

const HEAD: u64 = 4096;
const SLOT: usize = 40;
/// Bytes of slots that are read or written at a time.
const BATCH: usize = 16 << 10;
const FORMAT: u32 = 1;

/// Which disk the ledger is of. Another disk, another size or another target: the ledger says nothing about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The disk as its owner knows it.
    pub source: String,
    /// Bytes of its content.
    pub size: u64,
    /// What the source had to say about its content ([`crate::source::SourceDisk::mark`]).
    pub mark: Option<String>,
    /// The file or device that is written.
    pub target: PathBuf,
    /// Format of the target.
    pub format: crate::plan::DiskFormat,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    chunk: u64,
    identity: Identity,
}

/// What a slot says about its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing is known: it is to be copied.
    Open,
    /// Flushed on the target once, and parts of it were written again since: only the target knows its digest.
    Stale,
    /// Flushed on the target.
    Flushed,
    /// Flushed, read back, and the same.
    Compared,
}

impl Standing {
    const ALL: [Self; 4] = [Self::Open, Self::Stale, Self::Flushed, Self::Compared];
}

/// One finished chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Index of the chunk.
    pub index: u64,
    /// How it stands.
    pub standing: Standing,
    /// What it hashed to when it was read.
    pub digest: Digest,
}

/// What can go wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be written: what was copied since cannot be remembered.
    #[error("cannot write {path}, which remembers what is copied")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be read.
    #[error("cannot read {path}, which remembers what is copied")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no ledger of this version.
    #[error("{path} is no record of a copy that this version can read: start the job without resume")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The copy is not finished: the answer to whoever asks for a checksum too early.
    #[error("{missing} of {chunks} chunks of {disk} are not copied: this must not happen, please report it")]
    Incomplete {
        /// The disk.
        disk: String,
        /// Chunks without a digest.
        missing: u64,
        /// Chunks in all.
        chunks: u64,
    },
}

/// An open ledger.
pub struct Ledger {
    path: PathBuf,
    file: Arc<File>,
    identity: Identity,
    /// How each chunk stands, a byte each: 256 KiB for a disk of 1 TiB.
    standings: RefCell<Vec<Standing>>,
}

impl Ledger {
    /// A new ledger with every chunk open, and room for all its slots.
    pub fn create(path: &Path, identity: Identity) -> Result<Self, LedgerError> {
        let error = |source| LedgerError::Write { path: path.to_owned(), source };
        let head = Head { format: FORMAT, chunk: chunk::CHUNK, identity };
        let mut bytes = serde_json::to_vec(&head).map_err(|source| error(source.into()))?;
        if bytes.len() as u64 > HEAD - 32 {
            return Err(error(std::io::Error::new(ErrorKind::InvalidInput, "the disk's path is too long")));
        }
        bytes.resize((HEAD - 32) as usize, 0);
        let check = blake3::hash(&bytes);
        bytes.extend(check.as_bytes());
        let chunks = chunk::count(head.identity.size);
        // Under its name when it is whole: half a ledger would be in the way of every later job.
        let new = path.with_extension("new");
        let written = || -> std::io::Result<File> {
            let mut options = OpenOptions::new();
            let mut file =
                options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            let length = HEAD + chunks * SLOT as u64;
            match fallocate(&file, FallocateFlags::empty(), 0, length as i64) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(length)?,
                Err(errno) => return Err(errno.into()),
            }
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, path)?;
            if let Some(directory) = path.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok(file)
        };
        let file = written().map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            identity: head.identity,
            standings: RefCell::new(vec![Standing::Open; chunks as usize]),
        })
    }

    /// The ledger of an interrupted copy, with every slot that proves itself.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let error = |source| LedgerError::Read { path: path.to_owned(), source };
        let foreign = || LedgerError::Foreign { path: path.to_owned() };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(error)?;
        let mut head = vec![0; HEAD as usize];
        file.read_exact_at(&mut head, 0).map_err(error)?;
        let (text, check) = head.split_at((HEAD - 32) as usize);
        if blake3::hash(text).as_bytes() != check {
            return Err(foreign());
        }
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let head: Head = serde_json::from_slice(text).map_err(|_| foreign())?;
        if (head.format, head.chunk) != (FORMAT, chunk::CHUNK) {
            return Err(foreign());
        }
        let chunks = chunk::count(head.identity.size) as usize;
        let ledger = Self {
            path: path.to_owned(),
            file: Arc::new(file),
            identity: head.identity,
            standings: RefCell::new(vec![Standing::Open; chunks]),
        };
        let mut standings = vec![Standing::Open; chunks];
        ledger.each(|record| standings[record.index as usize] = record.standing)?;
        ledger.standings.replace(standings);
        Ok(ledger)
    }

    /// Which disk it is of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How a chunk stands.
    pub fn standing(&self, index: u64) -> Standing {
        self.standings.borrow().get(index as usize).copied().unwrap_or(Standing::Open)
    }

    /// Chunks that stand at least like this.
    pub fn count(&self, least: Standing) -> u64 {
        self.standings.borrow().iter().filter(|standing| **standing >= least).count() as u64
    }

    /// Remembers finished chunks: on disk when this returns. The caller has flushed the target before.
    pub async fn record(&self, records: Vec<Record>) -> Result<(), LedgerError> {
        let (file, list) = (Arc::clone(&self.file), records.clone());
        let written = tokio::task::spawn_blocking(move || write(&file, list)).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|source| LedgerError::Write { path: self.path.clone(), source })?;
        let mut standings = self.standings.borrow_mut();
        for record in &records {
            if let Some(standing) = standings.get_mut(record.index as usize) {
                *standing = record.standing;
            }
        }
        Ok(())
    }

    /// Calls `visit` for each chunk that is not open, in order.
    pub fn each(&self, mut visit: impl FnMut(Record)) -> Result<(), LedgerError> {
        let chunks = chunk::count(self.identity.size);
        let per_batch = (BATCH / SLOT) as u64;
        let mut bytes = vec![0; BATCH / SLOT * SLOT];
        let mut first = 0;
        while first < chunks {
            let slots = (chunks - first).min(per_batch) as usize;
            let bytes = &mut bytes[..slots * SLOT];
            let read = self.file.read_exact_at(bytes, HEAD + first * SLOT as u64);
            read.map_err(|source| LedgerError::Read { path: self.path.clone(), source })?;
            for (index, slot) in (first..).zip(bytes.chunks_exact(SLOT)) {
                if let Some(record) = decode(index, slot) {
                    visit(record);
                }
            }
            first += slots as u64;
        }
        Ok(())
    }

    /// The checksum of the whole disk. There is none unless every chunk is finished, so nobody who has one can be
    /// mistaken about the disk.
    pub fn checksum(&self) -> Result<String, LedgerError> {
        let mut hasher = DiskHasher::default();
        let mut next = 0;
        self.each(|record| {
            if record.index == next && record.standing >= Standing::Flushed {
                hasher.add(&record.digest);
                next += 1;
            }
        })?;
        let chunks = chunk::count(self.identity.size);
        if next != chunks {
            let missing = (chunks - self.count(Standing::Flushed)).max(1);
            return Err(LedgerError::Incomplete { disk: self.identity.source.clone(), missing, chunks });
        }
        Ok(hasher.checksum())
    }
}

fn check(index: u64, digest: &[u8], standing: u8) -> [u8; 7] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(digest).update(&[standing]).update(&index.to_le_bytes());
    let mut check = [0; 7];
    hasher.finalize_xof().fill(&mut check);
    check
}

fn encode(record: &Record) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..32].copy_from_slice(record.digest.as_bytes());
    slot[32] = record.standing as u8;
    let check = check(record.index, record.digest.as_bytes(), slot[32]);
    slot[33..].copy_from_slice(&check);
    slot
}

fn decode(index: u64, slot: &[u8]) -> Option<Record> {
    let standing = Standing::ALL.into_iter().find(|standing| *standing as u8 == slot[32])?;
    if standing == Standing::Open || slot[33..] != check(index, &slot[..32], slot[32]) {
        return None;
    }
    let digest = Digest::from_slice(&slot[..32]).ok()?;
    Some(Record { index, standing, digest })
}

/// Neighbours go in one write; then all are synced.
fn write(file: &File, mut records: Vec<Record>) -> std::io::Result<()> {
    records.sort_unstable_by_key(|record| record.index);
    for run in records.chunk_by(|a, b| a.index + 1 == b.index) {
        for part in run.chunks(BATCH / SLOT) {
            let bytes: Vec<u8> = part.iter().flat_map(encode).collect();
            file.write_all_at(&bytes, HEAD + part[0].index * SLOT as u64)?;
        }
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 10 * chunk::CHUNK + 512;

    fn identity() -> Identity {
        Identity {
            source: "[store] vm/vm.vmdk".into(),
            size: SIZE,
            mark: Some("m".into()),
            target: "/out/vm-sda".into(),
            format: crate::plan::DiskFormat::Raw,
        }
    }

    fn record(index: u64, standing: Standing) -> Record {
        Record { index, standing, digest: blake3::hash(&index.to_le_bytes()) }
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn what_was_recorded_is_there_again_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let ledger = Ledger::create(&path, identity()).unwrap();
        let some = [record(7, Standing::Compared), record(0, Standing::Flushed), record(8, Standing::Stale)];
        run(ledger.record(some.to_vec())).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.identity(), &identity());
        let standings: Vec<_> = (0..12).map(|index| ledger.standing(index)).collect();
        let mut expected = vec![Standing::Open; 12];
        expected[0] = Standing::Flushed;
        expected[7] = Standing::Compared;
        expected[8] = Standing::Stale;
        assert_eq!(standings, expected);
        assert_eq!((ledger.count(Standing::Flushed), ledger.count(Standing::Compared)), (2, 1));
    }

    #[test]
    fn there_is_no_checksum_before_every_chunk_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&directory.path().join("ledger"), identity()).unwrap();
        run(ledger.record((0..10).map(|index| record(index, Standing::Compared)).collect())).unwrap();
        let error = ledger.checksum().unwrap_err().to_string();
        assert!(error.starts_with("1 of 11 chunks of [store] vm/vm.vmdk"), "{error}");
        run(ledger.record(vec![record(10, Standing::Stale)])).unwrap();
        assert!(ledger.checksum().is_err(), "a stale chunk has no digest");
        run(ledger.record(vec![record(10, Standing::Flushed)])).unwrap();
        let mut hasher = DiskHasher::default();
        (0..11).for_each(|index| hasher.add(&record(index, Standing::Open).digest));
        assert_eq!(ledger.checksum().unwrap(), hasher.checksum());
    }

    #[test]
    fn a_torn_slot_is_an_open_chunk_and_a_torn_head_no_ledger() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let ledger = Ledger::create(&path, identity()).unwrap();
        run(ledger.record((0..11).map(|index| record(index, Standing::Compared)).collect())).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..SLOT {
            let mut torn = good.clone();
            torn[HEAD as usize + 3 * SLOT + at] ^= 0x40;
            std::fs::write(&path, &torn).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            assert_eq!(
                (ledger.standing(3), ledger.count(Standing::Flushed)),
                (Standing::Open, 10),
                "byte {at}"
            );
        }
        // A slot at another's place is not its own.
        let mut moved = good.clone();
        moved.copy_within(HEAD as usize..HEAD as usize + SLOT, HEAD as usize + SLOT);
        std::fs::write(&path, &moved).unwrap();
        assert_eq!(Ledger::open(&path).unwrap().standing(1), Standing::Open);
        let mut torn = good;
        torn[20] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Foreign { .. })));
    }
}

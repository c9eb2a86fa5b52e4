//! A directory with disks, served by the real nbdkit, and their copies by the engine.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Whence, lseek64};
use virt_v2v_wrapper::copy::ledger::{Identity, Ledger, Standing};
use virt_v2v_wrapper::copy::reader::{Patience, Reader, Serving};
use virt_v2v_wrapper::copy::target::Target;
use virt_v2v_wrapper::copy::target::file::{Allocation, FileTarget};
use virt_v2v_wrapper::copy::target::nbd_image::{Image, NbdTarget};
use virt_v2v_wrapper::copy::{Copied, CopyError, Job, Shared, Told, Tuning, chunk};
use virt_v2v_wrapper::export::{Export, Files, Filters, Program};
use virt_v2v_wrapper::plan::DiskFormat;
use virt_v2v_wrapper::throttle::bucket::Bucket;

use crate::exports::site::find;

pub const MIB: u64 = 1 << 20;
/// Nothing here takes so long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Bytes that look random and are the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A directory with disks. The first one is called `disk`, its copy `disk.copy`, its ledger `disk.ledger`.
pub struct Rig {
    directory: tempfile::TempDir,
    /// Directory of the copies.
    pub copies: PathBuf,
    pub nbdkit: PathBuf,
    pub tuning: Tuning,
    pub patience: Patience,
    pub read_size: Rc<Cell<u32>>,
    pub connections: usize,
    /// Bytes for data.
    pub memory: usize,
    pub verify: bool,
    pub allocation: Allocation,
    pub format: DiskFormat,
    pub told: Rc<RefCell<Vec<Told>>>,
}

impl Rig {
    /// `None`, with a printed reason, where a tool is missing.
    pub fn new() -> Option<Self> {
        if !crate::exports::site::have(&["nbdkit", "qemu-nbd", "qemu-img", "qemu-io"]) {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("private")).unwrap();
        let soon = [5, 20, 50, 100, 200, 400, 400, 400].map(Duration::from_millis).to_vec();
        Some(Self {
            copies: directory.path().to_owned(),
            directory,
            nbdkit: find("nbdkit").unwrap(),
            tuning: Tuning { prove_every: Duration::from_millis(50), ..Tuning::default() },
            patience: Patience { retries: soon, stall: Duration::from_secs(20) },
            read_size: Rc::new(Cell::new(1 << 20)),
            connections: 4,
            memory: 64 << 20,
            verify: true,
            allocation: Allocation::Sparse,
            format: DiskFormat::Raw,
            told: Rc::default(),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The copy of a disk.
    pub fn copy_of(&self, name: &str) -> PathBuf {
        self.copies.join(format!("{name}.copy"))
    }

    /// Makes the source `disk`: `size` bytes, holes but for these pieces (offset, bytes).
    pub fn disk(&self, size: u64, pieces: &[(u64, Vec<u8>)]) -> PathBuf {
        self.disk_named("disk", size, pieces)
    }

    pub fn disk_named(&self, name: &str, size: u64, pieces: &[(u64, Vec<u8>)]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        path
    }

    pub fn reader(&self, name: &str) -> Reader {
        // Two disks of a job have different numbers.
        let number = name.bytes().fold(0, |number, byte| (number * 31 + u32::from(byte)) % 997);
        let serving = Serving {
            program: self.nbdkit.clone(),
            tag: "test".into(),
            export: Export::File { path: self.path(name) },
            filters: Filters::default(),
            library_path: None,
            private: self.path("private"),
            number,
            connections: NonZeroUsize::new(self.connections).unwrap(),
        };
        Reader::new(serving, self.patience.clone(), Rc::clone(&self.read_size))
    }

    pub fn identity(&self, name: &str, size: u64) -> Identity {
        Identity {
            source: self.path(name).display().to_string(),
            size,
            mark: None,
            target: self.copy_of(name),
            format: self.format,
        }
    }

    /// Memory and limits for the disks of a job.
    pub fn shared(&self) -> Shared {
        Shared::new(self.memory, self.tuning.clone(), Bucket::default())
    }

    /// What the engine needs to copy `disk`; goes on with a ledger that is there.
    pub async fn job(&self) -> Result<Rc<Job>, CopyError> {
        self.job_of("disk", &self.shared()).await
    }

    pub async fn job_of(&self, name: &str, shared: &Shared) -> Result<Rc<Job>, CopyError> {
        let reader = self.reader(name);
        let size = reader.open().await?;
        let path = self.path(&format!("{name}.ledger"));
        let resumed = path.exists();
        let target = self.target(name, size, resumed).await?;
        let ledger =
            if resumed { Ledger::open(&path)? } else { Ledger::create(&path, self.identity(name, size))? };
        let told = Rc::clone(&self.told);
        Ok(Rc::new(Job {
            reader,
            target,
            ledger,
            verify: self.verify,
            resumed: true,
            shared: shared.clone(),
            tell: Box::new(move |news| told.borrow_mut().push(news)),
        }))
    }

    /// The copy, a new one or one that holds anything.
    pub async fn target(&self, name: &str, size: u64, is_there: bool) -> Result<Target, CopyError> {
        let path = self.copy_of(name);
        if self.format == DiskFormat::Raw {
            let file = match is_there {
                true => FileTarget::open(&path, size, self.allocation)?,
                false => FileTarget::create(&path, size, self.allocation)?,
            };
            return Ok(Target::File(Arc::new(file)));
        }
        let image = Image { tag: "test", path: &path, format: self.format };
        let qemu_img = find("qemu-img").unwrap();
        match is_there {
            true => image.check(&qemu_img).await?,
            false => image.create(&qemu_img, size, self.allocation).await?,
        }
        let files = Files::new(&self.path("private"), Program::QemuNbd, 500);
        let target = NbdTarget::open(&find("qemu-nbd").unwrap(), image, files, size, !is_there).await?;
        Ok(Target::Image(Box::new(target)))
    }

    /// The whole disk, to the end.
    pub async fn copy(&self) -> Result<Copied, CopyError> {
        finish(self.job().await?).await
    }

    /// Polls to the end; a test that hangs fails.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async { tokio::time::timeout(LIMIT, future).await.expect("it hangs") };
        tokio::task::LocalSet::new().block_on(&runtime, limited)
    }

    /// Bytes of data that were said to be finished last.
    pub fn finished(&self) -> u64 {
        let told = self.told.borrow();
        let last = told.iter().rev().find_map(|news| match news {
            Told::Finished(bytes) => Some(*bytes),
            _ => None,
        });
        last.unwrap_or(0)
    }

    /// Bytes of data that were to be copied.
    pub fn to_copy(&self) -> u64 {
        let told = self.told.borrow();
        let last = told.iter().rev().find_map(|news| match news {
            Told::ToCopy(bytes) => Some(*bytes),
            _ => None,
        });
        last.expect("nothing was said")
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::open(&self.path("disk.ledger")).unwrap()
    }

    /// Is every byte of `disk` in its copy, and nothing else?
    pub fn is_copied(&self) -> bool {
        self.is_copied_of("disk")
    }

    pub fn is_copied_of(&self, name: &str) -> bool {
        let (disk, copy) = (self.path(name), self.copy_of(name));
        if self.format == DiskFormat::Raw {
            return same(&disk, &copy);
        }
        let compared = std::process::Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", self.format.as_str()])
            .args([disk, copy])
            .output()
            .unwrap();
        assert!(compared.status.code().is_some_and(|code| code < 2), "{compared:?}");
        compared.status.success()
    }

    /// Servers that are said to run, by their pid files: nbdkit or qemu-nbd.
    pub fn servers(&self, program: &str) -> Vec<i32> {
        let files = fs::read_dir(self.path("private")).unwrap().flatten();
        let pids = files.filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.starts_with(program) && name.ends_with(".pid")
        });
        pids.filter_map(|file| fs::read_to_string(file.path()).ok()?.trim().parse().ok()).collect()
    }

    /// Sockets and pid files that no server removed.
    pub fn stale(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path("private")).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "sock" || end == "pid")).collect()
    }
}

/// What is missing of the disk, proven and closed.
pub async fn finish(job: Rc<Job>) -> Result<Copied, CopyError> {
    let extents = job.reader.extents(job.ledger.identity().size).await?;
    let copied = job.copy(extents).await?;
    Rc::into_inner(job).expect("nobody else has it").close().await?;
    Ok(copied)
}

/// Waits for it, in vain only when it hangs.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT / 2;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Where a file has data (offset, length); holes are not read, for disks may be large.
pub fn segments(file: &File) -> Vec<(u64, u64)> {
    let size = file.metadata().unwrap().len();
    let (mut at, mut found) = (0, Vec::new());
    while at < size {
        let Ok(start) = lseek64(file.as_fd(), at as i64, Whence::SeekData) else { break };
        let end = lseek64(file.as_fd(), start, Whence::SeekHole).unwrap();
        found.push((start as u64, (end - start) as u64));
        at = end as u64;
    }
    found
}

/// Are both files the same, and of the same length?
pub fn same(a: &Path, b: &Path) -> bool {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let read = |file: &File, offset, length| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    let of_both = segments(&a).into_iter().chain(segments(&b));
    a.metadata().unwrap().len() == b.metadata().unwrap().len()
        && of_both.into_iter().all(|(start, length)| {
            (start..start + length).step_by(MIB as usize).all(|at| {
                let length = (start + length - at).min(MIB) as usize;
                read(&a, at, length) == read(&b, at, length)
            })
        })
}

/// Bytes that a file takes on its disk.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Changes a byte of a file.
pub fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

/// The recorded chunks and their digests.
pub fn recorded(ledger: &Ledger) -> BTreeMap<u64, chunk::Digest> {
    let mut recorded = BTreeMap::new();
    let visit = |record: virt_v2v_wrapper::copy::ledger::Record| {
        if record.standing >= Standing::Flushed {
            recorded.insert(record.index, record.digest);
        }
    };
    ledger.each(visit).unwrap();
    recorded
}

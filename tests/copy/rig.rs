//! A disk served by the real nbdkit (with filters), and one copy of it by the engine.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use virt_v2v_wrapper::copy::ledger::{Identity, Ledger};
use virt_v2v_wrapper::copy::reader::{Patience, Reader, Serving};
use virt_v2v_wrapper::copy::target::Target;
use virt_v2v_wrapper::copy::target::file::{Allocation, FileTarget};
use virt_v2v_wrapper::copy::{Copied, CopyError, Job, Shared, Told, Tuning};
use virt_v2v_wrapper::export::{Export, Filters};
use virt_v2v_wrapper::extent::Extents;
use virt_v2v_wrapper::plan::DiskFormat;
use virt_v2v_wrapper::throttle::bucket::Bucket;

use crate::exports::site::find;

pub const MIB: u64 = 1 << 20;

/// Bytes that look random and are the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A directory with one source, `disk`.
pub struct Rig {
    directory: tempfile::TempDir,
    nbdkit: PathBuf,
    pub tuning: Tuning,
    pub patience: Patience,
    pub read_size: Rc<Cell<u32>>,
    pub verify: bool,
    pub allocation: Allocation,
    pub told: Rc<RefCell<Vec<Told>>>,
}

impl Rig {
    /// `None`, with a printed reason, where nbdkit is missing.
    pub fn new() -> Option<Self> {
        if !crate::exports::site::have(&["nbdkit", "qemu-nbd", "qemu-img"]) {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("private")).unwrap();
        let soon = [5, 20, 50, 100, 200, 400, 400, 400].map(Duration::from_millis).to_vec();
        Some(Self {
            directory,
            nbdkit: find("nbdkit").unwrap(),
            tuning: Tuning { prove_every: Duration::from_millis(50), ..Tuning::default() },
            patience: Patience { retries: soon, stall: Duration::from_secs(20) },
            read_size: Rc::new(Cell::new(1 << 20)),
            verify: true,
            allocation: Allocation::Sparse,
            told: Rc::default(),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes the source: `size` bytes, holes but for these pieces (offset, bytes).
    pub fn disk(&self, size: u64, pieces: &[(u64, Vec<u8>)]) -> PathBuf {
        let path = self.path("disk");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        path
    }

    /// From now on the disk is served through a script: `before` are arguments before those of the program (filters),
    /// `after` those behind (their parameters); `shell` is run first.
    #[allow(dead_code)]
    pub fn filtered(&mut self, shell: &str, before: &str, after: &str) {
        let nbdkit = find("nbdkit").unwrap();
        let script = self.path("nbdkit.sh");
        let text = format!("#!/bin/sh\n{shell}\nexec '{}' {before} \"$@\" {after}\n", nbdkit.display());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        self.nbdkit = script;
    }

    pub fn reader(&self, number: u32) -> Reader {
        let serving = Serving {
            program: self.nbdkit.clone(),
            tag: "test".into(),
            export: Export::File { path: self.path("disk") },
            filters: Filters::default(),
            library_path: None,
            private: self.path("private"),
            number,
            connections: NonZeroUsize::new(4).unwrap(),
        };
        Reader::new(serving, self.patience.clone(), Rc::clone(&self.read_size))
    }

    pub fn identity(&self, size: u64) -> Identity {
        Identity {
            source: self.path("disk").display().to_string(),
            size,
            mark: None,
            target: self.path("copy"),
            format: DiskFormat::Raw,
        }
    }

    /// What the engine needs for a copy to the raw file `copy`; goes on with a ledger that is there.
    pub async fn job(&self) -> Result<Rc<Job>, CopyError> {
        let reader = self.reader(0);
        let size = reader.open().await?;
        let (ledger, target) = if self.path("ledger").exists() {
            let file = FileTarget::open(&self.path("copy"), size, self.allocation)?;
            (Ledger::open(&self.path("ledger"))?, file)
        } else {
            let file = FileTarget::create(&self.path("copy"), size, self.allocation)?;
            (Ledger::create(&self.path("ledger"), self.identity(size))?, file)
        };
        Ok(self.job_of(reader, Target::File(file_of(target)), ledger))
    }

    pub fn job_of(&self, reader: Reader, target: Target, ledger: Ledger) -> Rc<Job> {
        let told = Rc::clone(&self.told);
        Rc::new(Job {
            reader,
            target,
            ledger,
            verify: self.verify,
            shared: Shared::new(64 << 20, self.tuning.clone(), Bucket::default()),
            tell: Box::new(move |news| told.borrow_mut().push(news)),
        })
    }

    /// The whole disk, to the end.
    pub async fn copy(&self) -> Result<Copied, CopyError> {
        let job = self.job().await?;
        let size = job.ledger.identity().size;
        let extents: Extents = job.reader.extents(size).await?;
        let copied = job.copy(extents).await?;
        Rc::into_inner(job).expect("nobody else has it").close().await?;
        Ok(copied)
    }

    pub fn run<F: Future>(&self, future: F) -> F::Output {
        run(future)
    }

    #[allow(dead_code)]
    pub fn finished(&self) -> u64 {
        let told = self.told.borrow();
        let last = told.iter().rev().find_map(|news| match news {
            Told::Finished(bytes) => Some(*bytes),
            _ => None,
        });
        last.unwrap_or(0)
    }
}

fn file_of(file: FileTarget) -> std::sync::Arc<FileTarget> {
    std::sync::Arc::new(file)
}

pub fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Are both files the same, and of the same length?
pub fn same(a: &Path, b: &Path) -> bool {
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    a.len() == b.len() && a == b
}

//! The copy engine on one disk, as a program of its own: for tests that kill it at any moment (`tests/copy`), and for
//! looking at its memory.
//!
//! The only argument is JSON:
//!
//! ```json
//! {"nbdkit": "/usr/sbin/nbdkit", "disk": "disk", "copy": "disk.copy", "ledger": "disk.ledger", "private": "/tmp/p",
//!  "qcow2": false, "spans": 16, "unproven": 536870912, "prove_ms": 500, "limit": null, "areas": null}
//! ```
//!
//! `limit` is in bytes per second; with `areas` (a list of `[offset, length]`) only these are copied into a copy that is
//! there. A ledger that is there is gone on with. On success stdout gets `{"checksum": "..", "peak_kib": 1}`, of which the
//! second is the `VmHWM` of the process; an error goes to stderr, with exit code 1.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::cell::Cell;
use std::error::Error;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use virt_v2v_wrapper::copy::ledger::{Identity, Ledger, Standing};
use virt_v2v_wrapper::copy::reader::{Patience, Reader, Serving};
use virt_v2v_wrapper::copy::target::Target;
use virt_v2v_wrapper::copy::target::file::{Allocation, FileTarget};
use virt_v2v_wrapper::copy::target::nbd_image::{Image, NbdTarget};
use virt_v2v_wrapper::copy::{Copied, Job, Shared, Tuning};
use virt_v2v_wrapper::export::{Export, Files, Filters, Program};
use virt_v2v_wrapper::extent::Extents;
use virt_v2v_wrapper::plan::DiskFormat;
use virt_v2v_wrapper::throttle::bucket::Bucket;

/// That of a job (`src/two_phase/copies.rs`).
const MEMORY: usize = 96 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    nbdkit: PathBuf,
    disk: PathBuf,
    copy: PathBuf,
    ledger: PathBuf,
    private: PathBuf,
    qcow2: bool,
    spans: usize,
    unproven: usize,
    prove_ms: u64,
    limit: Option<NonZeroU64>,
    areas: Option<Vec<(u64, u64)>>,
}

fn main() -> ExitCode {
    let done =
        std::env::args().nth(1).ok_or_else(|| "the task is missing".into()).and_then(|task| run(&task));
    match done {
        Ok(copied) => {
            println!("{}", serde_json::json!({"checksum": copied.checksum(), "peak_kib": peak_kib()}));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &str) -> Result<Copied, Box<dyn Error>> {
    let task: Task = serde_json::from_str(task)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    tokio::task::LocalSet::new().block_on(&runtime, copy(&task))
}

async fn copy(task: &Task) -> Result<Copied, Box<dyn Error>> {
    let serving = Serving {
        program: task.nbdkit.clone(),
        tag: "copy-disk".into(),
        export: Export::File { path: task.disk.clone() },
        filters: Filters::default(),
        library_path: None,
        private: task.private.clone(),
        number: 0,
        connections: NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN),
    };
    let reader = Reader::new(serving, Patience::default(), Rc::new(Cell::new(1 << 20)));
    let size = reader.open().await?;
    let format = if task.qcow2 { DiskFormat::Qcow2 } else { DiskFormat::Raw };
    // As a job does: where nothing is finished, it is begun anew.
    let kept = match task.ledger.exists() {
        true => Some(Ledger::open(&task.ledger)?).filter(|ledger| ledger.count(Standing::Stale) > 0),
        false => None,
    };
    let resumed = kept.is_some();
    let ledger = match kept {
        Some(ledger) => ledger,
        None => {
            std::fs::remove_file(&task.copy).ok();
            let source = task.disk.display().to_string();
            let identity = Identity { source, size, mark: None, target: task.copy.clone(), format };
            Ledger::create(&task.ledger, identity)?
        }
    };
    let target = target(task, size, resumed).await?;
    let tuning = Tuning {
        spans: task.spans,
        unproven: task.unproven,
        prove_every: Duration::from_millis(task.prove_ms),
        ..Tuning::default()
    };
    let shared = Shared::new(MEMORY, tuning, Bucket::new(task.limit));
    let job =
        Rc::new(Job { reader, target, ledger, verify: true, resumed: false, shared, tell: Box::new(|_| ()) });
    let extents = job.reader.extents(size).await?;
    let copied = match &task.areas {
        Some(areas) => {
            let changed = Extents::from_changed_areas(areas.iter().copied(), size);
            job.delta(extents.intersect(&changed)).await?;
            job.seal().await?
        }
        None => job.copy(extents).await?,
    };
    if let Some(job) = Rc::into_inner(job) {
        job.close().await?;
    }
    Ok(copied)
}

async fn target(task: &Task, size: u64, is_there: bool) -> Result<Target, Box<dyn Error>> {
    if !task.qcow2 {
        let file = match is_there {
            true => FileTarget::open(&task.copy, size, Allocation::Sparse)?,
            false => FileTarget::create(&task.copy, size, Allocation::Sparse)?,
        };
        return Ok(Target::File(Arc::new(file)));
    }
    let image = Image { tag: "copy-disk", path: &task.copy, format: DiskFormat::Qcow2 };
    match is_there {
        true => image.check(Path::new("qemu-img")).await?,
        false => image.create(Path::new("qemu-img"), size, Allocation::Sparse).await?,
    }
    let files = Files::new(&task.private, Program::QemuNbd, 0);
    let target = NbdTarget::open(Path::new("qemu-nbd"), image, files, size, !is_there).await?;
    Ok(Target::Image(Box::new(target)))
}

fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

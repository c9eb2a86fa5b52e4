//! Guests opened for the copy engine: what a source says of a guest, and that each disk, served by the real nbdkit or
//! qemu-nbd and read by the program's own NBD client, is byte for byte what qemu-img reads of the source.
//!
//! The suite drives the library, like `exports`, whose rigs it uses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use virt_v2v_wrapper::document;
use virt_v2v_wrapper::export::server::Server;
use virt_v2v_wrapper::export::{Files, Filters, Program};
use virt_v2v_wrapper::job::{Job, JobFiles};
use virt_v2v_wrapper::log::chain;
use virt_v2v_wrapper::nbd::budget::Budget;
use virt_v2v_wrapper::nbd::pool::Pool;
use virt_v2v_wrapper::nbd::{Address, Options};
use virt_v2v_wrapper::plan::{self, Surroundings};
use virt_v2v_wrapper::site::Site;
use virt_v2v_wrapper::source::{self, Opened, SourceDisk};
use virt_v2v_wrapper::v2v::capabilities::Capabilities;

use crate::exports::site::{self, find, have, private, qemu_img, raw_disk};

/// Local images, libvirt XML, vmx.
mod local;
/// OVAs, whole and unpacked.
mod ova;
/// A host that is reached by ssh.
mod remote;

/// Runs a test on one thread; nothing here may take long.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("it hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, limited)
}

/// The job that a document asks for.
fn job(document: &Value) -> Job {
    let mut document = document.clone();
    document["vm_name"] = json!("guest");
    document["output_directory"] = json!("/nowhere");
    let parsed = document::parse(&serde_json::to_vec(&document).unwrap()).unwrap();
    let site = Site::parse("", Path::new("/config.toml")).unwrap();
    let plan = plan::plan(parsed.document, &site, &Surroundings::default()).unwrap();
    let nowhere = || PathBuf::from("/nowhere");
    let files = JobFiles { tag: "test".to_owned(), directory: nowhere(), log_directory: nowhere() };
    Job { plan, files, capabilities: Capabilities::default(), earlier: None }
}

/// The job of a local guest.
fn local_job(source_path: &Path) -> Job {
    job(&json!({"transport_method": "local", "source_path": source_path}))
}

async fn open(job: &Job, private: &Path) -> Result<Opened, String> {
    let (tell, _) = tokio::sync::mpsc::unbounded_channel();
    source::open_disks(job, private, &tell).await.map_err(|error| chain(&error))
}

/// All that the copy engine would read of a disk.
async fn read(disk: &SourceDisk, private: &Path) -> Vec<u8> {
    let program = match disk.export.program() {
        Program::Nbdkit => "nbdkit",
        Program::QemuNbd => "qemu-nbd",
        Program::Ssh => "ssh",
    };
    let files = Files::new(private, disk.export.program(), 1);
    let line = disk.export.command_line(&files, Filters::default(), None);
    let server = Server::start(&find(program).unwrap(), "test", disk.export.disk(), line, files)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let address = Address::Unix(server.socket().to_owned());
    let connections = NonZeroUsize::new(disk.connections).unwrap();
    let pool = Pool::connect(&address, "", &Options::default(), connections).await.unwrap();
    let (size, step) = (pool.export().size(), u64::from(disk.read_size));
    let budget = Budget::new(2 * disk.read_size as usize);
    let mut content = Vec::new();
    for start in (0..size).step_by(disk.read_size as usize) {
        let buffer = budget.buffer(step.min(size - start) as usize).await;
        content.extend_from_slice(&pool.read(start, buffer).await.unwrap());
    }
    pool.disconnect().await.unwrap();
    server.stop().await;
    content
}

/// Each disk serves this content, and says its size.
async fn assert_reads(opened: &Opened, expected: &[Vec<u8>], private: &Path) {
    assert_eq!(opened.disks.len(), expected.len());
    assert_eq!(opened.guest.disks.len(), expected.len());
    for ((disk, known), expected) in opened.disks.iter().zip(&opened.guest.disks).zip(expected) {
        let content = read(disk, private).await;
        assert!(content == *expected, "{} does not serve its content", known.path);
        assert_eq!(known.size, Some(expected.len() as u64), "{}", known.path);
    }
}

/// What qemu-img reads of an image.
fn oracle(directory: &Path, format: &str, image: &str) -> Vec<u8> {
    let raw = directory.join("oracle.tmp");
    site::run(
        Command::new("qemu-img")
            .current_dir(directory)
            .args(["convert", "-f", format, "-O", "raw", image])
            .arg(&raw),
    );
    let content = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    content
}

/// A raw disk of its own content: `raw_disk` with `mark` written into it.
fn marked_disk(path: &Path, mark: u8) {
    raw_disk(path);
    let mut content = fs::read(path).unwrap();
    content[3 << 20..(3 << 20) + 70_000].fill(mark);
    fs::write(path, content).unwrap();
}

async fn marks(job: &Job, opened: &Opened) -> Vec<Option<String>> {
    source::marks(job, opened).await.unwrap()
}

fn marks_of(opened: &Opened) -> Vec<Option<String>> {
    opened.disks.iter().map(|disk| disk.mark.clone()).collect()
}

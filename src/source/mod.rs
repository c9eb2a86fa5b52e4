//! Sources: where a guest comes from. A folder (or file) each; [`open`] is the one place that knows them all.
//!
//! In a one-phase conversion virt-v2v reads the source itself, so a source only prepares what virt-v2v needs to get
//! at it: an agent with a key, a libvirt XML. What it prepared is dropped with its session, or killed with the job.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::export::Export;
use crate::guest::Guest;
use crate::job::Job;
use crate::plan;

pub mod local;
pub mod ssh;
pub mod vsphere;

/// What went wrong with a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The agent that holds the key of an ssh source.
    #[error(transparent)]
    Ssh(#[from] ssh::SshError),
    /// Local images.
    #[error("cannot prepare {path} for virt-v2v")]
    Local {
        /// The image, or the XML that names it.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A source made ready for virt-v2v.
#[derive(Debug, Default)]
pub struct Session {
    /// Socket of the agent that holds the key.
    pub ssh_auth_sock: Option<PathBuf>,
}

/// A guest whose disks are read by the copy engine (contract.md 6).
#[derive(Debug)]
pub struct Opened {
    /// What it is.
    pub guest: Guest,
    /// One for each disk of `guest`, in its order.
    pub disks: Vec<SourceDisk>,
    /// The libvirt XML that the user gave: then it is what virt-v2v-in-place gets, with other disks in it.
    pub domain: Option<String>,
}

/// One disk, ready to be served.
#[derive(Debug)]
pub struct SourceDisk {
    /// By what it is served.
    pub export: Export,
    /// `absolute_path` of the state file: where its host keeps it (contract.md 3.5).
    pub absolute_path: Option<String>,
    /// Something that changes when the disk's content may have changed: size and time of the file, a change id. `None`
    /// where the source has no such thing.
    pub mark: Option<String>,
    /// Largest read in bytes to begin with: 23 MiB from ESXi, 2 MiB through vCenter (contract.md 6.3, peers.md 6.3
    /// row 23).
    pub read_size: u32,
    /// Connections that may be open to it.
    pub connections: usize,
}

/// Makes the source ready. `private` is the job's private directory.
pub async fn open(job: &Job, private: &Path) -> Result<Session, SourceError> {
    match &job.plan.source {
        plan::Source::Vddk { .. } => Ok(Session::default()),
        plan::Source::Ssh { key, .. } => {
            Ok(Session { ssh_auth_sock: Some(ssh::start_agent(&job.files.tag, key, private).await?) })
        }
        plan::Source::Local(plan::LocalSource::Disks(images)) => {
            write_libvirt_xml(&job.plan.vm_name, images, &libvirt_xml(private))?;
            Ok(Session::default())
        }
        plan::Source::Local(_) => Ok(Session::default()),
    }
}

/// Several images are one guest only by a libvirt XML that says so.
fn write_libvirt_xml(name: &str, images: &[PathBuf], xml: &Path) -> Result<(), SourceError> {
    let mut disks = Vec::new();
    for image in images {
        let error = |source| SourceError::Local { path: image.clone(), source };
        let mut beginning = Vec::new();
        let mut file = File::open(image).map_err(error)?.take(local::SNIFF_BYTES as u64);
        file.read_to_end(&mut beginning).map_err(error)?;
        disks.push((image.clone(), local::sniff(&beginning)));
    }
    let error = |source| SourceError::Local { path: xml.to_owned(), source };
    std::fs::write(xml, local::libvirt_xml(name, &disks)).map_err(error)
}

/// Where the libvirt XML of local images is written.
pub fn libvirt_xml(private: &Path) -> PathBuf {
    private.join("source.xml")
}

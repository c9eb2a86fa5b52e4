//! Sources: where a guest comes from. A folder (or file) each; [`open`] is the one place that knows them all.
//!
//! In a one-phase conversion virt-v2v reads the source itself, so a source only prepares what virt-v2v needs to get
//! at it: an agent with a key, a libvirt XML. What it prepared is dropped with its session, or killed with the job.
//!
//! In a two-phase conversion we read the disks: [`open_disks`] says what the guest is and how each disk is served, and
//! [`marks`] whether a disk was written to meanwhile.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::UnboundedSender;

use self::image::{Asker, Chain};
use self::ssh::client::Host;
use crate::event::Event;
use crate::export::{Export, Login};
use crate::guest::Guest;
use crate::job::Job;
use crate::plan;
use crate::records::Records;
use crate::things::Thing;

pub mod files;
pub mod image;
pub mod local;
pub mod openstack;
pub mod ova;
pub mod slots;
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
    /// Local files, for the copy engine.
    #[error(transparent)]
    Files(#[from] files::FilesError),
    /// One image, asked again.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// A host, for the copy engine.
    #[error(transparent)]
    Host(#[from] ssh::client::ClientError),
    /// A guest of a host, for the copy engine.
    #[error(transparent)]
    Guest(#[from] ssh::guest::GuestError),
    /// A guest of vSphere, for the copy engine.
    #[error(transparent)]
    Vsphere(#[from] vsphere::VsphereError),
    /// A guest of an OpenStack.
    #[error(transparent)]
    Openstack(#[from] openstack::OpenstackSourceError),
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
    /// What the user should know although the job goes on.
    pub warnings: Vec<String>,
}

/// One disk, ready to be served.
#[derive(Debug)]
pub struct SourceDisk {
    /// By what it is served.
    pub export: Export,
    /// `absolute_path` of the state file: where its host keeps it (contract.md 3.5).
    pub absolute_path: Option<String>,
    /// Something that changes when the disk's content may have changed: size and time of the file, a change id, the last
    /// start of its server. `None` where the source has no such thing.
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
        // virt-v2v does not read it.
        plan::Source::Openstack { .. } | plan::Source::Local(_) => Ok(Session::default()),
    }
}

/// Looks at the guest and makes its disks ready to be served. `private` is the job's private directory. What it starts
/// (an agent) lives until the job ends; what it changes at a cloud is in the journal before, for [`undo`].
pub async fn open_disks(
    job: &Job,
    private: &Path,
    tell: &UnboundedSender<Event>,
) -> Result<Opened, SourceError> {
    let (plan, tag) = (&job.plan, &job.files.tag);
    match &plan.source {
        plan::Source::Vddk { .. } => Ok(vsphere::open(job).await?),
        plan::Source::Ssh { uri, key } => {
            let (host, vmx) = Host::of(uri, ssh::start_agent(tag, key, private).await?)?;
            Ok(ssh::guest::open(&host, &vmx, &plan.vm_name, tag).await?)
        }
        plan::Source::Openstack { .. } => Ok(openstack::open(job, private, tell).await?),
        plan::Source::Local(source) => Ok(files::open(source, &plan.vm_name, asker(job)).await?),
    }
}

/// The marks of the disks as they are now, in their order: one that differs from [`SourceDisk::mark`] belongs to a disk
/// that was written to since.
pub async fn marks(job: &Job, opened: &Opened) -> Result<Vec<Option<String>>, SourceError> {
    if matches!(job.plan.source, plan::Source::Vddk { .. }) {
        let now = vsphere::open(job).await?;
        return Ok(now.disks.into_iter().map(|disk| disk.mark).collect());
    }
    if matches!(job.plan.source, plan::Source::Openstack { .. }) {
        // One for all; a cloud that did not tell it before is not asked again.
        let before = opened.disks.first().and_then(|disk| disk.mark.as_ref());
        let now = if before.is_some() { openstack::mark(&job.plan).await? } else { None };
        return Ok(vec![now; opened.disks.len()]);
    }
    let mut marks = Vec::new();
    for disk in &opened.disks {
        marks.push(match &disk.export {
            Export::File { path } => {
                image::look(asker(job), path, local::ImageFormat::Raw, None, Chain::Alone).await?.mark
            }
            Export::Image { path, format, window } => {
                // As it was opened: an OVA's image stands on nothing.
                image::look(asker(job), path, *format, *window, Chain::Followed).await?.mark
            }
            Export::Ssh { host, port, user, path, login: Login::Agent(agent), known_hosts } => {
                let (host, user, agent) = (host.clone(), user.clone(), agent.clone());
                let host =
                    Host { host, port: *port, user, agent, known_hosts: known_hosts.clone(), any_key: false };
                Some(ssh::guest::mark(&host, &job.files.tag, path).await?)
            }
            // Nobody to ask: as it was.
            Export::Ssh { login: Login::Password(_), .. } | Export::Vddk { .. } | Export::Tunnel { .. } => {
                disk.mark.clone()
            }
        });
    }
    Ok(marks)
}

fn asker(job: &Job) -> Asker<'_> {
    let programs = job.plan.two_phase.as_ref().map(|two_phase| &two_phase.programs);
    let qemu_img = programs.map(|programs| programs.qemu_img.as_path());
    let qemu_img = qemu_img.filter(|program| !program.as_os_str().is_empty());
    Asker { qemu_img: qemu_img.unwrap_or(Path::new("qemu-img")), tag: &job.files.tag }
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

/// Puts back, in their order, what a job that is over has changed at a source with an API of its own; each that is as it was
/// is recorded as such. Gives a sentence for each that is not. What a job changed on a machine of vSphere is
/// [`vsphere::restore`]'s.
pub async fn undo(plan: &plan::Plan, things: &[Thing], records: &mut Records) -> Vec<String> {
    match &plan.source {
        plan::Source::Openstack { .. } => openstack::undo(plan, things, records).await,
        plan::Source::Vddk { .. } | plan::Source::Ssh { .. } | plan::Source::Local(_) => Vec::new(),
    }
}

/// Where the libvirt XML of local images is written.
pub fn libvirt_xml(private: &Path) -> PathBuf {
    private.join("source.xml")
}

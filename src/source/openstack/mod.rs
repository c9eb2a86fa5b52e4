//! A server of an OpenStack that goes to another one, or to another project (contract.md 7). Its volumes are attached to a
//! conversion host beside it, a container there serves them over NBD, and tunnels of ssh bring them here.
//!
//! ```text
//! inventory ─► moving: a copy of the boot disk, the others taken out of the server,
//!              all put into the conversion host, served there          ─► Opened: a tunnel for each disk
//!                      │
//!                 journal ─► undo: everything back, in every outcome, whoever does it
//! ```
//!
//! Nothing is converted. What the server is made of at the destination is [`crate::destination::openstack`]'s.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::mpsc::UnboundedSender;

use super::{Opened, SourceDisk, ssh};
use crate::event::Event;
use crate::export::Export;
use crate::guest::Guest;
use crate::http::Patience;
use crate::job::Job;
use crate::journal::JournalError;
use crate::json::one_line;
use crate::log::chain;
use crate::openstack::{Access, Cloud, CloudError};
use crate::plan::{self, Plan, SshKey};
use crate::records::Records;
use crate::things::Side;

mod converter;
mod inventory;
pub mod lock;
mod moving;
mod undo;

use converter::Converter;
use lock::LockError;
use moving::Moving;
pub use undo::undo;

/// How long anything at the cloud may take (contract.md 7).
const PATIENCE: Duration = Duration::from_secs(600);
/// Reads of this size at most, on so many connections through one tunnel.
const READ_SIZE: u32 = 2 << 20;
const CONNECTIONS: usize = 4;

/// What went wrong with a guest of an OpenStack. The texts begin as the old program's did.
#[derive(Debug, thiserror::Error)]
pub enum OpenstackSourceError {
    /// An answer of the cloud, or none.
    #[error("the source OpenStack")]
    Cloud(#[source] Box<CloudError>),
    /// The journal must know before anything changes.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The agent that holds the key.
    #[error(transparent)]
    Agent(#[from] ssh::SshError),
    /// The conversion host. The old program called it an instance.
    #[error(
        "Cannot find source instance {id}: no server of the source OpenStack has the id osp_source_conversion_vm_id"
    )]
    NoConverter {
        /// What was asked for.
        id: String,
    },
    /// The guest.
    #[error("Cannot find source VM {id}: no server of the source OpenStack has the id osp_source_vm_id")]
    NoServer {
        /// What was asked for.
        id: String,
    },
    /// It runs.
    #[error(
        "Source VM is not shut down! Server {name} ({id}) is in state {status}: shut it down and start the job again"
    )]
    NotShutDown {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Its state.
        status: String,
    },
    /// A disk that the document names.
    #[error("source_disks: server {server} has no volume {volume}")]
    NoSuchDisk {
        /// The server.
        server: String,
        /// The volume.
        volume: String,
    },
    /// Nothing to boot from.
    #[error(
        "No known boot device found for this instance! It was made of no image, and the volume that it boots from is not \
         there or not among source_disks"
    )]
    NoBootDevice,
    /// No way to it.
    #[error("the source conversion host {id} has neither accessIPv4 nor another address")]
    NoAddress {
        /// Its id.
        id: String,
    },
    /// It does not let us in.
    #[error("Unable to SSH to source conversion host!")]
    NoSsh(#[source] ssh::client::ClientError),
    /// A command there.
    #[error("the source conversion host")]
    Host(#[from] ssh::client::ClientError),
    /// An answer that makes no sense.
    #[error("the source conversion host answered {said:?}, which cannot be: does its login print a text?")]
    OddAnswer {
        /// The answer.
        said: String,
    },
    /// The lock of the volumes.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A step.
    #[error("cannot {what}")]
    Step {
        /// E.g. `take a snapshot of volume x`.
        what: String,
        /// Why.
        source: Box<CloudError>,
    },
    /// A volume that another server has.
    #[error(
        "volume {volume} of the source cannot be attached to its conversion host: it is in state {status}"
    )]
    Busy {
        /// The volume.
        volume: String,
        /// Its state.
        status: String,
    },
    /// It does not come to be a device.
    #[error(
        "volume {volume} is attached to the source conversion host, and no device there is it: no {link} after {seconds} s"
    )]
    NotPlugged {
        /// The volume.
        volume: String,
        /// Where it was expected.
        link: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// podman tells none.
    #[error("podman on the source conversion host published no port for {port} of the container: {said:?}")]
    NoPort {
        /// The container's.
        port: u16,
        /// What it said.
        said: String,
    },
    /// The disks are not served.
    #[error(
        "Timed out waiting for NBD export! The container on the source conversion host served no disks within {seconds} s"
    )]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The container ended.
    #[error("the container on the source conversion host ended instead of serving the disks: {said}")]
    Ended {
        /// The end of its log.
        said: String,
    },
    /// What this program has written into the journal is not what it reads there.
    #[error("the journal does not tell what it belongs to: {reason}")]
    Unclear {
        /// What is wrong.
        reason: String,
    },
    /// A program that changes: the plan's source is another one.
    #[error("the source is no OpenStack")]
    Elsewhere,
}

impl From<CloudError> for OpenstackSourceError {
    fn from(error: CloudError) -> Self {
        Self::Cloud(Box::new(error))
    }
}

/// What the plan says of this source.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    environment: &'a [(String, SecretString)],
    insecure: bool,
    ca_bundle: Option<&'a PathBuf>,
    vm: &'a str,
    converter: &'a str,
    image: &'a str,
    key: &'a SshKey,
}

impl<'a> Asked<'a> {
    fn of(plan: &'a Plan) -> Result<Self, OpenstackSourceError> {
        let plan::Source::Openstack { environment, insecure, ca_bundle, vm_id, converter_id, image, key } =
            &plan.source
        else {
            return Err(OpenstackSourceError::Elsewhere);
        };
        Ok(Self {
            environment,
            insecure: *insecure,
            ca_bundle: ca_bundle.as_ref(),
            vm: vm_id,
            converter: converter_id,
            image,
            key,
        })
    }

    async fn login(&self, plan: &Plan) -> Result<Cloud, CloudError> {
        let access = Access {
            insecure: self.insecure,
            ca_bundle: self.ca_bundle.cloned(),
            patience: http_patience(&plan.tools),
        };
        Cloud::login(self.environment, None, &access).await
    }
}

/// How long the API may take on this host.
fn http_patience(tools: &plan::Tools) -> Patience {
    let Patience { connect, answer, again } = Patience::default();
    Patience {
        connect: tools.patience(connect),
        answer: tools.patience(answer),
        again: tools.patience(again),
    }
}

/// The guest as the cloud shows it. Nothing is changed.
pub async fn look(plan: &Plan) -> Result<Guest, OpenstackSourceError> {
    let asked = Asked::of(plan)?;
    let cloud = asked.login(plan).await?;
    Ok(inventory::guest(plan, &inventory::look(&cloud, plan, &asked).await?))
}

/// See [`super::marks`]: nobody else may have the server run while its disks are copied.
pub async fn mark(plan: &Plan) -> Result<Option<String>, OpenstackSourceError> {
    let asked = Asked::of(plan)?;
    let cloud = asked.login(plan).await?;
    Ok(cloud.last_change(asked.vm).await?)
}

/// See [`super::open_disks`]. What it changes is put back by [`undo`], however the job ends.
pub async fn open(
    job: &Job,
    private: &std::path::Path,
    tell: &UnboundedSender<Event>,
) -> Result<Opened, OpenstackSourceError> {
    let (plan, tag) = (&job.plan, &job.files.tag);
    let asked = Asked::of(plan)?;
    let cloud = asked.login(plan).await?;
    let mut records = Records::of(&job.files)?;
    // What an earlier job that this one goes on with could not put back: volumes are looked for in their server.
    let mut left = records.things(Side::Source)?;
    left.reverse();
    for problem in undo(plan, &left, &mut records).await {
        tracing::warn!("{problem}");
    }
    // Before its state: one that runs from now on is not what was found.
    let mark = cloud.last_change(asked.vm).await?;
    let found = inventory::look(&cloud, plan, &asked).await?;
    let mut guest = inventory::guest(plan, &found);
    let address = converter::address(&found.converter);
    let address =
        address.ok_or_else(|| OpenstackSourceError::NoAddress { id: found.converter.id.clone() })?;
    let converter = Converter::new(address, ssh::start_agent(tag, asked.key, private).await?, tag);
    converter.connect().await?;
    let mut moving = Moving { job, cloud: &cloud, converter: &converter, records: &mut records, tell };
    let ports = moving.serve(&found, &mut guest, asked.image, address).await?;
    let disks = guest.disks.iter().zip(ports).map(|(disk, port)| SourceDisk {
        export: Export::Tunnel { host: converter.host().clone(), port, disk: disk.path.clone() },
        absolute_path: None,
        mark: mark.clone(),
        read_size: READ_SIZE,
        connections: CONNECTIONS,
    });
    let disks = disks.collect();
    Ok(Opened { guest, disks, domain: None, warnings: Vec::new() })
}

/// Tells what is waited for.
fn waits_for(tell: &UnboundedSender<Event>, what: Option<String>) {
    // Nobody listens any more when the job is over.
    let _ = tell.send(Event::WaitingFor { what });
}

fn shown(said: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(said), 300)
}

/// A step of which a cloud says that it failed.
fn step(what: impl Into<String>) -> impl FnOnce(CloudError) -> OpenstackSourceError {
    let what = what.into();
    move |source| OpenstackSourceError::Step { what, source: Box::new(source) }
}

/// A sentence for whoever must put a thing back by hand.
fn sentence(thing: &crate::things::Thing, error: &OpenstackSourceError) -> String {
    format!("{thing} at the source: {}", chain(error))
}

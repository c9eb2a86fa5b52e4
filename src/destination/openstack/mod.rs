//! OpenStack (contract.md 6.2, 6.6, 6.7): volumes in the project that logs in, handed over to the destination project, and a
//! server made of them there.
//!
//! ```text
//! one-phase: prepare ─► virt-v2v makes volumes ─► adopt: which of them are this job's ─┐
//! two-phase: prepare ─► disks: volumes in this host ─► copied, converted ─► detached ──┴─► finish: project, ports, server
//! ```
//!
//! Everything is done over REST by [`crate::openstack`]; what is made has a mark (`marks`) and stands in the journal before it
//! is. [`undo`] removes it again from the journal alone. Pure: `address`, `marks`, `properties`, `room`'s sums.

use std::path::PathBuf;

use secrecy::SecretString;

use super::{Destination, DestinationError, Machine, Work};
use crate::domain::Placed;
use crate::event::Event;
use crate::guest::Guest;
use crate::http::Patience;
use crate::journal::Entry;
use crate::openstack::{Access, Cloud, CloudError};
use crate::plan::{self, Plan};
use crate::source::openstack::lock::LockError;
use crate::state::State;

mod address;
mod adopt;
mod disks;
mod finish;
mod marks;
mod prepare;
mod properties;
mod room;
mod undo;

pub use prepare::Session;
pub use undo::undo;

/// What went wrong at an OpenStack. The texts begin as the old program's did (contract.md 6.2, 6.7).
#[derive(Debug, thiserror::Error)]
pub enum OpenstackError {
    /// An answer, or none.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// What a key names is not there.
    #[error("{key}")]
    Named {
        /// E.g. `osp_flavor_id`.
        key: &'static str,
        /// Why.
        source: Box<CloudError>,
    },
    /// The name of the new server.
    #[error("VM with the name \"{name}\" already exists on the destination")]
    Taken {
        /// The name.
        name: String,
    },
    /// `osp_server_id` of a guest that comes from an OpenStack (contract.md 7).
    #[error("Cannot find destination instance {id}: no server of the destination has the id osp_server_id")]
    NoInstance {
        /// What was asked for.
        id: String,
    },
    /// Others attach their volumes.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A quota.
    #[error(
        "Create VM failed: project {project} has a quota of {most} {what}, {used} are used, and {more} more are needed: \
         raise the quota or remove something"
    )]
    NoRoom {
        /// The project.
        project: String,
        /// E.g. `GiB of volumes`.
        what: &'static str,
        /// The quota.
        most: i64,
        /// What is used.
        used: i64,
        /// What is needed.
        more: u64,
    },
    /// virt-v2v's log told none.
    #[error("No volumes found!")]
    NoVolumes,
    /// Disks of the guest are missing.
    #[error(
        "No volumes found for {missing} of the {count} disks that virt-v2v converted: they were removed, or virt-v2v's log \
         is not whole"
    )]
    Incomplete {
        /// How many.
        missing: usize,
        /// Of how many.
        count: usize,
    },
    /// A step of the new server.
    #[error("Create VM failed")]
    Create(#[source] CloudError),
    /// The new server does not run, and its cloud says why.
    #[error("Create VM failed: {fault}")]
    Fault {
        /// The cloud's words.
        fault: String,
    },
    /// A volume that cannot be asked for.
    #[error("Unable to get volume state, quitting.")]
    VolumeState(#[source] CloudError),
    /// A volume that stays busy.
    #[error("Volume not ready in time")]
    VolumeNotReady(#[source] CloudError),
    /// A volume stays in its project.
    #[error("Failed to transfer volume")]
    Transfer(#[source] CloudError),
    /// A port.
    #[error("Failed to create port")]
    Port(#[source] CloudError),
    /// A volume of ours.
    #[error("Error creating volume")]
    CreateVolume(#[source] CloudError),
    /// A volume of ours that came to nothing.
    #[error("Error creating volume, status={status}: volume {id}")]
    VolumeFailed {
        /// Its state.
        status: String,
        /// Its id.
        id: String,
    },
    /// Volumes of ours that are not ready.
    #[error("Timed out waiting for volumes to become available, ids={ids}")]
    NotAvailable {
        /// Which.
        ids: String,
    },
    /// The conversion server does not get a volume.
    #[error("Cannot attach volume {volume} to the conversion server {server}")]
    Attach {
        /// The volume.
        volume: String,
        /// `osp_server_id`.
        server: String,
        /// Why.
        source: Box<CloudError>,
    },
    /// It keeps one.
    #[error("Cannot detach volume {volume} from the conversion server {server}")]
    Detach {
        /// The volume.
        volume: String,
        /// `osp_server_id`.
        server: String,
        /// Why.
        source: Box<CloudError>,
    },
    /// A volume is attached and no device of this host has it.
    #[error(
        "Timed out waiting for disks to get plugged/noticed: no {path} of {bytes} bytes or more after {seconds} s. Is \
         osp_server_id the server on which this program runs?"
    )]
    NotPlugged {
        /// Where it was expected.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A size is needed before a volume is made.
    #[error("the size of disk {disk} is not known, so no volume can be made for it")]
    NoSize {
        /// Its path at the source.
        disk: String,
    },
    /// Copies of an earlier job that are not there, or not as they were.
    #[error("volume {id}, with the copy of disk {number}, {what}: start the migration without resume")]
    Lost {
        /// The volume.
        id: String,
        /// From 1.
        number: usize,
        /// What is wrong.
        what: String,
    },
    /// A program that changes: the plan's destination is another one.
    #[error("the destination is no OpenStack")]
    Elsewhere,
}

/// `osp_environment`.
#[derive(Debug)]
pub struct Openstack;

/// What the plan says of this destination.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    environment: &'a [(String, SecretString)],
    server: &'a str,
    guest: &'a str,
    project: &'a str,
    flavor: &'a str,
    groups: &'a [String],
    kind: Option<&'a str>,
    ca_bundle: Option<&'a PathBuf>,
}

impl<'a> Asked<'a> {
    fn of(plan: &'a Plan) -> Result<Self, OpenstackError> {
        let plan::Destination::Openstack {
            environment,
            server_id,
            guest_id,
            project_id,
            flavor_id,
            security_groups_ids,
            volume_type_id,
            ca_bundle,
        } = &plan.destination
        else {
            return Err(OpenstackError::Elsewhere);
        };
        Ok(Self {
            environment,
            server: server_id,
            guest: guest_id,
            project: project_id,
            flavor: flavor_id,
            groups: security_groups_ids,
            kind: volume_type_id.as_deref(),
            ca_bundle: ca_bundle.as_ref(),
        })
    }
}

/// How long the API may take on this host.
fn patience(tools: &plan::Tools) -> Patience {
    let Patience { connect, answer, again } = Patience::default();
    Patience {
        connect: tools.patience(connect),
        answer: tools.patience(answer),
        again: tools.patience(again),
    }
}

/// The two projects: where volumes are made, and where the server is. Often they are one.
#[derive(Debug)]
struct Projects {
    here: Cloud,
    there: Option<Cloud>,
}

impl Projects {
    async fn login(plan: &Plan, asked: &Asked<'_>) -> Result<Self, CloudError> {
        match Self::login_to_either(plan, asked).await? {
            (projects, None) => Ok(projects),
            (_, Some(unreached)) => Err(unreached),
        }
    }

    /// The same for whoever removes what is left: also if only the project of the volumes lets us in; then with the reason.
    async fn login_to_either(
        plan: &Plan,
        asked: &Asked<'_>,
    ) -> Result<(Self, Option<CloudError>), CloudError> {
        let access = Access {
            insecure: plan.insecure_connection,
            ca_bundle: asked.ca_bundle.cloned(),
            patience: patience(&plan.tools),
        };
        let here = Cloud::login(asked.environment, None, &access).await?;
        if here.project() == asked.project {
            return Ok((Self { here, there: None }, None));
        }
        Ok(match Cloud::login(asked.environment, Some(asked.project), &access).await {
            Ok(there) => (Self { here, there: Some(there) }, None),
            Err(unreached) => (Self { here, there: None }, Some(unreached)),
        })
    }

    /// The destination project.
    fn there(&self) -> &Cloud {
        self.there.as_ref().unwrap_or(&self.here)
    }

    /// Both, or the one.
    fn each(&self) -> impl Iterator<Item = &Cloud> {
        std::iter::once(&self.here).chain(&self.there)
    }

    /// The project that has a volume, and the volume. An administrator sees it in either.
    async fn find(
        &self,
        id: &str,
    ) -> Result<Option<(&Cloud, crate::openstack::volumes::Volume)>, CloudError> {
        let (mut seen, mut forbidden) = (None, None);
        for cloud in self.each() {
            let volume = match cloud.volume_if_any(id).await {
                Ok(Some(volume)) => volume,
                Ok(None) => continue,
                // A cloud that says so of volumes of other projects: the other one may have it.
                Err(error) if error.status() == Some(403) => {
                    forbidden = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match &volume.project {
                Some(owner) if *owner != cloud.project() => seen = seen.or(Some((cloud, volume))),
                _ => return Ok(Some((cloud, volume))),
            }
        }
        match (seen, forbidden) {
            (None, Some(error)) => Err(error),
            (seen, _) => Ok(seen),
        }
    }
}

impl Destination for Openstack {
    type Handle = Session;

    async fn prepare(&self, work: &mut Work<'_>) -> Result<Session, DestinationError> {
        prepare::prepare(work).await
    }

    async fn finalize(
        &self,
        session: Session,
        _state: &State,
        work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        session.projects.here.refresh().await.map_err(OpenstackError::Create)?;
        let volumes = adopt::volumes(&session.projects, work).await?;
        let name = display_name(work)?;
        finish::finish(&session, &volumes, &name, &[], work).await.map(Some)
    }

    async fn place(
        &self,
        session: &Session,
        guest: &Guest,
        work: &mut Work<'_>,
    ) -> Result<Vec<Placed>, DestinationError> {
        disks::place(session, guest, work).await
    }

    async fn publish(
        &self,
        session: Session,
        machine: &Machine<'_>,
        work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        let volumes = disks::release(&session, machine.guest.disks.len(), work).await?;
        let properties = properties::of(machine);
        let name = display_name(work)?;
        finish::finish(&session, &volumes, &name, &properties, work).await.map(Some)
    }

    async fn abandon(&self, _session: Session) {}
}

/// What the server is called: what the log of the source said last, else what was asked for (contract.md 5).
fn display_name(work: &Work<'_>) -> Result<String, DestinationError> {
    let told = work.records.entries()?.into_iter().rev().find_map(|entry| match entry {
        Entry::GuestName { name } if !name.trim().is_empty() => Some(name),
        _ => None,
    });
    Ok(told.unwrap_or_else(|| work.job.plan.vm_name.clone()))
}

/// Says something to the user; the job goes on.
fn warn(work: &Work<'_>, text: String) {
    tracing::warn!("{text}");
    work.tell(Event::Warning { text });
}

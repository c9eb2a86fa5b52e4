//! oVirt/RHV, through its engine's REST API (version 4, JSON), or an export domain, which virt-v2v writes to alone.
//!
//! ```text
//! prepare   login, name free?, cluster, storage domain; two-phase: conversion host up?, networks
//! place     disks made ─► unlocked ─► in the conversion host ─► devices of this host
//! publish   out of the conversion host ─► machine ─► its disks ─► its NICs
//! finalize  (one-phase) nothing: virt-v2v has made all of it
//! undo      machine, attachments, disks; of virt-v2v also its image transfers
//! ```
//!
//! Each of these may be entered again, by this job or by one that resumes it: what is in the journal, or carries a mark of the
//! journal, is found before anything is made (`create`). Called by [`crate::destination`]; facts: contract.md 1.4, 6.2, 6.6.

use super::{Destination, DestinationError, Machine, Work};
use crate::domain::Placed;
use crate::event::Event;
use crate::guest::Guest;
use crate::state::State;
use crate::things::{Kind, Side};

mod answer;
mod attachments;
mod client;
mod create;
mod disks;
mod error;
mod hardware;
mod lookup;
mod machine;
mod networks;
mod terms;
mod undo;

use client::Engine;
pub use error::OvirtError;
use lookup::{Cluster, Storage};
use networks::Networks;
use terms::Terms;
pub use undo::undo;

/// `rhv_url` or `export_domain`.
#[derive(Debug)]
pub struct Ovirt;

/// A session with an engine, and what was looked up there. An export domain has none.
#[derive(Debug)]
pub struct Session(Option<Box<Prepared>>);

#[derive(Debug)]
struct Prepared {
    engine: Engine,
    cluster_name: String,
    cluster: Cluster,
    storage_name: String,
    storage: Storage,
    /// The machine that this program runs on, of a two-phase job.
    host: Option<String>,
    /// Where its NICs can go; `None` where the engine did not tell, or nobody wants to know.
    networks: Option<Networks>,
}

impl Session {
    /// See [`super::Handle::allocation`].
    pub fn allocation(&self) -> Option<&str> {
        self.0.as_ref()?.storage.allocation
    }
}

impl Destination for Ovirt {
    type Handle = Session;

    async fn prepare(&self, work: &mut Work<'_>) -> Result<Session, DestinationError> {
        let Some(terms) = Terms::of(&work.job.plan) else { return Ok(Session(None)) };
        work.waits_for(Some("the engine"));
        let engine = Engine::connect(&work.job.plan, &terms).await?;
        let looked = look(&engine, &terms, work).await;
        work.waits_for(None);
        match looked {
            Ok((cluster, storage, two_phase)) => Ok(Session(Some(Box::new(Prepared {
                engine,
                cluster_name: terms.cluster.to_owned(),
                cluster,
                storage_name: terms.storage.to_owned(),
                storage,
                host: two_phase.host,
                networks: two_phase.networks,
            })))),
            Err(error) => {
                engine.goodbye().await;
                Err(error)
            }
        }
    }

    async fn finalize(
        &self,
        session: Session,
        state: &State,
        _work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        close(session).await;
        Ok(state.vm_id.clone())
    }

    async fn place(
        &self,
        session: &Session,
        guest: &Guest,
        work: &mut Work<'_>,
    ) -> Result<Vec<Placed>, DestinationError> {
        let prepared = session.0.as_ref().ok_or(DestinationError::NoTwoPhase)?;
        let disks = disks::ensure(prepared, guest, work).await?;
        attachments::plug(prepared, &disks, work).await
    }

    async fn publish(
        &self,
        session: Session,
        machine: &Machine<'_>,
        work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        let prepared = session.0.as_ref().ok_or(DestinationError::NoTwoPhase)?;
        let published = publish(prepared, machine, work).await;
        close(session).await;
        published.map(Some)
    }

    async fn abandon(&self, session: Session) {
        close(session).await;
    }
}

async fn close(session: Session) {
    if let Some(prepared) = session.0 {
        prepared.engine.goodbye().await;
    }
}

/// What only a two-phase job looks up.
#[derive(Debug, Default)]
struct OfTwoPhase {
    host: Option<String>,
    networks: Option<Networks>,
}

/// Everything that can be known to be wrong before anything is copied.
async fn look(
    engine: &Engine,
    terms: &Terms<'_>,
    work: &mut Work<'_>,
) -> Result<(Cluster, Storage, OfTwoPhase), DestinationError> {
    forget_machine(engine, work).await?;
    lookup::name_is_free(engine, work).await?;
    let cluster = lookup::cluster(engine, terms, work).await?;
    let storage = lookup::storage(engine, terms, &cluster, work).await?;
    if work.job.plan.two_phase.is_none() {
        return Ok((cluster, storage, OfTwoPhase::default()));
    }
    let host = Some(lookup::conversion_host(engine, terms).await?);
    // Looked up once: an engine that cannot tell them hours later loses no guest.
    let networks = networks(engine, terms, &cluster, work).await?;
    Ok((cluster, storage, OfTwoPhase { host, networks }))
}

/// The machine that an earlier job began and this one makes anew.
async fn forget_machine(engine: &Engine, work: &mut Work<'_>) -> Result<(), DestinationError> {
    let mut things = work.records.things(Side::Destination)?;
    things.retain(|thing| thing.kind == Kind::Machine);
    for problem in undo::with(engine, &work.job.plan, &things, work.records).await {
        tracing::warn!("{problem}");
    }
    Ok(())
}

/// Those that the mappings name must be there.
async fn networks(
    engine: &Engine,
    terms: &Terms<'_>,
    cluster: &Cluster,
    work: &Work<'_>,
) -> Result<Option<Networks>, OvirtError> {
    let mappings = &work.job.plan.network_mappings;
    if mappings.is_empty() {
        return Ok(None);
    }
    let Some(networks) = Networks::of(engine, cluster).await? else {
        let text = "the engine does not tell its networks: network_mappings could not be checked".to_owned();
        tracing::warn!("{text}");
        work.tell(Event::Warning { text });
        return Ok(None);
    };
    match mappings.iter().find(|mapping| networks.profile(&mapping.destination).is_none()) {
        None => Ok(Some(networks)),
        Some(mapping) => Err(OvirtError::NoNetwork {
            name: mapping.destination.clone(),
            cluster: terms.cluster.to_owned(),
        }),
    }
}

async fn publish(
    prepared: &Prepared,
    machine: &Machine<'_>,
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    let mut disks = work.records.things(Side::Destination)?;
    disks.retain(|thing| thing.kind == Kind::Disk);
    // `disk 10` comes after `disk 9`.
    disks.sort_by_key(|thing| thing.of.rsplit(' ').next().and_then(|number| number.parse::<usize>().ok()));
    let disks: Vec<String> = disks.into_iter().filter_map(|thing| thing.id).collect();
    if disks.len() != machine.disks.len() {
        return Err(OvirtError::Unrecorded { known: disks.len(), disks: machine.disks.len() }.into());
    }
    attachments::unplug_all(&prepared.engine, work).await?;
    machine::publish(prepared, machine, &disks, work).await
}

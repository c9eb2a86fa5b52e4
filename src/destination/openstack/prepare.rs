//! What is looked at before hours of copying: logins, names, quotas. A cloud that does not say is no reason to stop; one that
//! says no is.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::{DestinationError, Work};
use super::marks::Marks;
use super::{Asked, OpenstackError, Projects, room, undo};
use crate::openstack::resolve::{Resolved, Resource};
use crate::openstack::{Cloud, CloudError, Service};
use crate::plan::Source;
use crate::things::{Kind, Side};

/// A session with both projects, and the ids of what the document names.
#[derive(Debug)]
pub struct Session {
    pub(super) projects: Box<Projects>,
    pub(super) flavor: String,
    /// By the name or id of the mapping.
    pub(super) networks: BTreeMap<String, String>,
    pub(super) groups: Vec<String>,
    pub(super) kind: Option<String>,
}

pub(super) async fn prepare(work: &mut Work<'_>) -> Result<Session, DestinationError> {
    let plan = &work.job.plan;
    let asked = Asked::of(plan)?;
    let two_phase = plan.two_phase.is_some();
    let projects = Box::new(Projects::login(plan, &asked).await.map_err(OpenstackError::Cloud)?);
    clear(&projects, work).await?;
    let (here, there) = (&projects.here, projects.there());
    name_is_free(there, &plan.vm_name).await?;
    let flavor = named(there, Resource::Flavor, asked.flavor, "osp_flavor_id").await?;
    let mut networks = BTreeMap::new();
    for mapping in &plan.network_mappings {
        if !networks.contains_key(&mapping.destination) {
            let found = named(there, Resource::Network, &mapping.destination, "network_mappings").await?;
            networks.insert(mapping.destination.clone(), found.id().to_owned());
        }
    }
    let mut groups = Vec::new();
    for group in asked.groups {
        let found = named(there, Resource::SecurityGroup, group, "osp_security_groups_ids").await?;
        groups.push(found.id().to_owned());
    }
    match named(here, Resource::Server, asked.server, "osp_server_id").await {
        Ok(_) => {}
        Err(OpenstackError::Named { .. }) if matches!(plan.source, Source::Openstack { .. }) => {
            return Err(OpenstackError::NoInstance { id: asked.server.to_owned() }.into());
        }
        // Who attaches the first volume to it is told by its cloud, before anything is copied.
        Err(error @ OpenstackError::Named { .. }) => tracing::warn!("{}", crate::log::chain(&error)),
        Err(error) => return Err(error.into()),
    }
    let kind = match asked.kind {
        Some(kind) => {
            Some(named(here, Resource::VolumeType, kind, "osp_volume_type_id").await?.id().to_owned())
        }
        None => None,
    };
    let shape = shape(there, &flavor).await;
    room::for_server(there, &shape, plan.network_mappings.len()).await?;
    if !two_phase {
        // Volumes that virt-v2v makes and whose ids do not get as far as its log.
        let mark = Marks::of(work).virt_v2v();
        work.records.making(Side::Destination, Kind::Disk, &mark, asked.guest)?;
    }
    Ok(Session { flavor: flavor.id().to_owned(), projects, networks, groups, kind })
}

/// A job that goes on with an earlier one: whatever that one could not remove of its server goes first.
async fn clear(projects: &Projects, work: &mut Work<'_>) -> Result<(), DestinationError> {
    let mut things = work.records.things(Side::Destination)?;
    things.retain(|thing| matches!(thing.kind, Kind::Machine | Kind::Port | Kind::Transfer));
    things.reverse();
    let plan = &work.job.plan;
    for thing in &things {
        undo::remove(projects, plan, thing, work.records).await.map_err(OpenstackError::Cloud)?;
        work.records.gone(&thing.mark)?;
    }
    Ok(())
}

async fn name_is_free(there: &Cloud, name: &str) -> Result<(), OpenstackError> {
    match there.servers().await {
        Ok(servers) if servers.iter().any(|server| server.name == name) => {
            Err(OpenstackError::Taken { name: name.to_owned() })
        }
        Ok(_) => Ok(()),
        Err(error) if says_nothing(&error) => {
            tracing::warn!("whether the name {name} is taken cannot be told: {}", crate::log::chain(&error));
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

async fn named(
    cloud: &Cloud,
    resource: Resource,
    given: &str,
    key: &'static str,
) -> Result<Resolved, OpenstackError> {
    let why = match cloud.resolve(resource, given).await {
        Ok(Resolved::Unclear { why, .. }) => why,
        Ok(known) => return Ok(known),
        Err(error) if says_nothing(&error) => crate::log::chain(&error),
        Err(source @ (CloudError::Unknown { .. } | CloudError::Ambiguous { .. })) => {
            return Err(OpenstackError::Named { key, source: Box::new(source) });
        }
        Err(error) => return Err(error.into()),
    };
    tracing::warn!("{key}: {} {given} is used as it is given: {why}", resource.noun());
    Ok(Resolved::Unclear { id: given.to_owned(), why })
}

/// The flavor, as far as it is shown.
async fn shape(there: &Cloud, flavor: &Resolved) -> Value {
    if flavor.shown().is_object() {
        return flavor.shown().clone();
    }
    let path = format!("/flavors/{}", crate::http::encoded(flavor.id()));
    match there.get(Service::Compute, &path).await {
        Ok(answer) => answer.get("flavor").cloned().unwrap_or(Value::Null),
        Err(error) => {
            tracing::debug!("{}", crate::log::chain(&error));
            Value::Null
        }
    }
}

/// No answer to a question that need not be asked: unknown there, not for us, or broken.
pub(super) fn says_nothing(error: &CloudError) -> bool {
    error.tells_nothing() || error.status().is_some_and(|status| status >= 500)
}

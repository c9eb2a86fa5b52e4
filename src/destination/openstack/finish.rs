//! Volumes become a server in the destination project (contract.md 6.7): handed over, ports, server.

use std::time::Duration;

use super::super::{DestinationError, Work};
use super::marks::Marks;
use super::prepare::says_nothing;
use super::{Asked, OpenstackError, Session, address, warn};
use crate::openstack::ports::NewPort;
use crate::openstack::servers::NewServer;
use crate::openstack::{Cloud, CloudError};
use crate::plan::NetworkMapping;
use crate::things::{Kind, Side};

/// Contract.md 6.7, and as long for the server.
const READY: Duration = Duration::from_secs(600);
/// Names are cut by clouds.
const LONGEST_NAME: usize = 255;

/// All of it: the id of the server, which runs. `properties` are set on the boot volume, the first.
pub(super) async fn finish(
    session: &Session,
    volumes: &[String],
    name: &str,
    properties: &[(String, String)],
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    for volume in volumes {
        ready(session, volume, work).await?;
    }
    if let Some(boot) = volumes.first() {
        make_bootable(session, boot, properties, work).await?;
    }
    let there = session.projects.there();
    for volume in volumes {
        let owner = owner(session, volume).await?;
        if owner.project() != there.project() {
            hand_over(owner, there, volume, work).await?;
        }
    }
    let mut ports = Vec::new();
    for (index, mapping) in work.job.plan.network_mappings.iter().enumerate() {
        ports.push(port(session, name, index, mapping, work).await?);
    }
    server(session, volumes, ports, name, work).await
}

async fn owner<'a>(session: &'a Session, volume: &str) -> Result<&'a Cloud, OpenstackError> {
    match session.projects.find(volume).await.map_err(OpenstackError::VolumeState)? {
        Some((cloud, _)) => Ok(cloud),
        None => Err(OpenstackError::VolumeState(CloudError::Unknown {
            what: "volume",
            name: volume.to_owned(),
            project: session.projects.here.project(),
        })),
    }
}

async fn ready(session: &Session, volume: &str, work: &Work<'_>) -> Result<(), OpenstackError> {
    work.waits_for(Some(&format!("volume {volume}, to become available")));
    let owner = owner(session, volume).await?;
    match owner.volume_in(volume, "available", work.job.plan.tools.patience(READY)).await {
        Ok(_) => Ok(()),
        Err(error @ (CloudError::State { .. } | CloudError::Slow { .. })) => {
            Err(OpenstackError::VolumeNotReady(error))
        }
        Err(error) => Err(OpenstackError::VolumeState(error)),
    }
}

/// What the cloud must know of the boot volume. One that does not know the request, or lets nobody make it, is not told: what it
/// says of the server counts. One that fails ends the job: a guest without its firmware does not boot.
async fn make_bootable(
    session: &Session,
    volume: &str,
    properties: &[(String, String)],
    work: &Work<'_>,
) -> Result<(), OpenstackError> {
    let owner = owner(session, volume).await?;
    let shown = owner.volume(volume).await.map_err(OpenstackError::VolumeState)?;
    if !shown.bootable
        && let Err(error) = owner.set_bootable(volume, true).await
    {
        match error.tells_nothing() {
            true => {
                tracing::warn!("volume {volume} could not be made bootable: {}", crate::log::chain(&error))
            }
            false => return Err(OpenstackError::Create(error)),
        }
    }
    if !properties.is_empty()
        && let Err(error) = owner.set_image_metadata(volume, properties).await
    {
        match error.tells_nothing() {
            true => warn(
                work,
                format!(
                    "the server may not have the hardware that the guest has drivers for: the image properties of volume \
                 {volume} could not be set: {}",
                    crate::log::chain(&error)
                ),
            ),
            false => return Err(OpenstackError::Create(error)),
        }
    }
    Ok(())
}

/// A volume that is available, from one project to the other.
pub(super) async fn hand_over(
    from: &Cloud,
    to: &Cloud,
    volume: &str,
    work: &mut Work<'_>,
) -> Result<(), DestinationError> {
    work.waits_for(Some(&format!("volume {volume}, to be handed over to project {}", to.project())));
    let patience = work.job.plan.tools.patience(READY);
    let mark = Marks::of(work).transfer(volume);
    work.records.making(Side::Destination, Kind::Transfer, &mark, volume)?;
    let offer = from.offer(volume, &mark, patience).await.map_err(OpenstackError::Transfer)?;
    work.records.made(&mark, &offer.id)?;
    to.accept(&offer, patience).await.map_err(OpenstackError::Transfer)?;
    Ok(work.records.gone(&mark)?)
}

async fn port(
    session: &Session,
    name: &str,
    index: usize,
    mapping: &NetworkMapping,
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    work.waits_for(Some(&format!("port {index} of the new server")));
    let there = session.projects.there();
    let given = &mapping.destination;
    let network = session.networks.get(given).unwrap_or(given);
    let fixed_ip = match &mapping.ip_address {
        Some(wanted) => kept(there, network, wanted, work).await?,
        None => None,
    };
    let mut name = name.to_owned();
    let suffix = format!("_port_{index}");
    while name.chars().count() + suffix.len() > LONGEST_NAME {
        name.pop();
    }
    let new = NewPort {
        name: name + &suffix,
        network: network.clone(),
        mac: mapping.mac_address.as_ref().map(|mac| mac.trim().replace('-', ":")),
        fixed_ip,
        security_groups: session.groups.clone(),
    };
    let mark = Marks::of(work).port(index);
    work.records.making(Side::Destination, Kind::Port, &mark, &there.project())?;
    let port = there.create_port(&new, &mark, false).await.map_err(OpenstackError::Port)?;
    work.records.made(&mark, &port.id)?;
    Ok(port.id)
}

/// The address, if a subnet of the network holds it.
async fn kept(
    there: &Cloud,
    network: &str,
    wanted: &str,
    work: &Work<'_>,
) -> Result<Option<String>, OpenstackError> {
    let subnets = match there.subnets(network).await {
        Ok(subnets) => subnets,
        Err(error) if says_nothing(&error) => {
            warn(work, format!("the address {wanted} is not kept: {}", crate::log::chain(&error)));
            return Ok(None);
        }
        Err(error) => return Err(OpenstackError::Port(error)),
    };
    let kept = address::kept(wanted, &subnets);
    if kept.is_none() {
        warn(work, format!("the address {wanted} is not kept: no subnet of network {network} holds it"));
    }
    Ok(kept)
}

async fn server(
    session: &Session,
    volumes: &[String],
    ports: Vec<String>,
    name: &str,
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    let asked = Asked::of(&work.job.plan)?;
    let there = session.projects.there();
    let mut new = NewServer {
        name: name.chars().take(LONGEST_NAME).collect(),
        flavor: session.flavor.clone(),
        volumes: volumes.to_vec(),
        ports,
        security_groups: session.groups.clone(),
    };
    let mark = Marks::of(work).server();
    work.records.making(Side::Destination, Kind::Machine, &mark, asked.project)?;
    let mut made = there.create_server(&new, &mark, false).await;
    let plain = plain(&new.name);
    if made.as_ref().is_err_and(|error| error.status() == Some(400)) && plain != new.name {
        let text = format!("the server is called {plain:?}: its cloud may not take {:?}", new.name);
        new.name = plain;
        made = there.create_server(&new, &mark, false).await;
        if made.is_ok() {
            warn(work, text);
        }
    }
    let id = made.map_err(OpenstackError::Create)?;
    work.records.made(&mark, &id)?;
    work.waits_for(Some(&format!("server {id}, to run")));
    active(there, &id, work.job.plan.tools.patience(READY)).await?;
    work.waits_for(None);
    Ok(id)
}

/// A name as each Nova takes it: printable, of the first 65535 characters of Unicode, and no space at its ends
/// (nova/api/validation/parameter_types.py).
fn plain(name: &str) -> String {
    let taken = |character: char| {
        let is_unseen =
            matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
        !character.is_control()
            && !is_unseen
            && !matches!(character, '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..)
    };
    let plain: String =
        name.trim().chars().map(|character| if taken(character) { character } else { '_' }).collect();
    if plain.is_empty() { "_".to_owned() } else { plain }
}

async fn active(there: &Cloud, id: &str, patience: Duration) -> Result<(), OpenstackError> {
    match there.server_in(id, "ACTIVE", patience).await {
        Ok(_) => Ok(()),
        Err(CloudError::State { words, .. }) if !words.is_empty() => {
            Err(OpenstackError::Fault { fault: words.trim_start_matches(": ").trim().to_owned() })
        }
        // A cloud that makes servers and shows none; one whose listing lacks it has lost it.
        Err(error) if says_nothing(&error) => match there.servers().await {
            Ok(servers) if !servers.iter().any(|server| server.id == id) => {
                Err(OpenstackError::Create(error))
            }
            _ => {
                tracing::warn!("whether server {id} runs cannot be told: {}", crate::log::chain(&error));
                Ok(())
            }
        },
        Err(error) => Err(OpenstackError::Create(error)),
    }
}

//! Removes what a job has made, from its journal alone, by whoever still can. Each thing is looked at first: what is not the
//! job's is left, what is gone already is no problem, what is busy is waited for.

use std::time::Duration;

use super::{Asked, OpenstackError, Projects, adopt, marks};
use crate::log::chain;
use crate::openstack::volumes::Volume;
use crate::openstack::{Cloud, CloudError};
use crate::plan::Plan;
use crate::records::Records;
use crate::things::{Kind, Thing};

/// For one thing; the caller bounds them all.
const PATIENCE: Duration = Duration::from_secs(180);
/// Clocks differ, and a tag says when its job began.
const SKEW: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// See [`super::super::undo`].
pub async fn undo(plan: &Plan, things: &[Thing], records: &mut Records) -> Vec<String> {
    let login = async {
        let asked = Asked::of(plan)?;
        Ok::<_, OpenstackError>(Projects::login_to_either(plan, &asked).await?)
    };
    let (projects, unreached) = match login.await {
        Ok(projects) => projects,
        Err(error) => return vec![chain(&error)],
    };
    let mut problems = Vec::new();
    for thing in things {
        tracing::info!("removing {thing}");
        let removed = match &unreached {
            None => remove(&projects, plan, thing, records).await,
            Some(unreached) => match is_here(&projects.here, thing).await {
                Ok(true) => remove(&projects, plan, thing, records).await,
                Ok(false) => Err(unreached.clone()),
                Err(error) => Err(error),
            },
        };
        let gone = match removed {
            Ok(()) => records.gone(&thing.mark).map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        if let Err(words) = gone {
            problems.push(format!("{thing} could not be removed: {words}"));
        }
    }
    problems
}

/// Is it in the project of the volumes, so that nobody need ask the other one?
async fn is_here(here: &Cloud, thing: &Thing) -> Result<bool, CloudError> {
    let volume = match (thing.kind, &thing.id) {
        (Kind::Attachment, _) => return Ok(true),
        (Kind::Disk, None) if marks::is_of_virt_v2v(&thing.mark) => return Ok(true),
        (Kind::Disk, None) => here.volume_marked(&thing.mark).await?,
        (Kind::Disk, Some(id)) => here.volume_if_any(id).await?,
        (Kind::Transfer, _) => here.volume_if_any(&thing.of).await?,
        _ => None,
    };
    Ok(volume.is_some_and(|volume| volume.project.is_none_or(|owner| owner == here.project())))
}

/// One thing, if it is there and the job's.
pub(super) async fn remove(
    projects: &Projects,
    plan: &Plan,
    thing: &Thing,
    records: &Records,
) -> Result<(), CloudError> {
    let there = projects.there();
    let patience = plan.tools.patience(PATIENCE);
    match thing.kind {
        Kind::Machine => {
            let id = match &thing.id {
                Some(id) => Some(id.clone()),
                None => there.server_marked(&thing.mark).await?.map(|server| server.id),
            };
            if let Some(id) = id {
                there.remove_server(&id, patience).await?;
            }
        }
        Kind::Port => {
            let id = match &thing.id {
                Some(id) => Some(id.clone()),
                None => there.port_described(&thing.mark).await?.map(|port| port.id),
            };
            if let Some(id) = id {
                there.remove_port(&id).await?;
            }
        }
        // Offered by either project: a volume may be on its way back.
        Kind::Transfer => {
            for cloud in projects.each() {
                if let Some(id) = &thing.id {
                    cloud.withdraw_transfer(id).await?;
                }
                match cloud.withdraw_all(&thing.of, &thing.mark).await {
                    Err(error) if thing.id.is_some() && error.tells_nothing() => {
                        tracing::warn!(
                            "other offers of volume {} are not shown: {}",
                            thing.of,
                            chain(&error)
                        );
                    }
                    withdrawn => withdrawn?,
                }
            }
        }
        Kind::Attachment => {
            let volume = thing.id.as_deref().or_else(|| marks::volume_of(&thing.mark));
            if let Some(volume) = volume {
                projects.here.detach(&thing.of, volume, patience).await?;
            }
        }
        Kind::Disk => volumes(projects, plan, thing, records, patience).await?,
        Kind::Detachment | Kind::Snapshot | Kind::Image | Kind::ImageTransfer | Kind::Export => {}
    }
    Ok(())
}

/// The volume, or volumes, of one record.
async fn volumes(
    projects: &Projects,
    plan: &Plan,
    thing: &Thing,
    records: &Records,
    patience: Duration,
) -> Result<(), CloudError> {
    let Ok(Asked { server, guest, .. }) = Asked::of(plan) else { return Ok(()) };
    let found = match &thing.id {
        Some(id) => projects.find(id).await?.into_iter().collect(),
        None => search(projects, thing, guest, server).await?,
    };
    for (owner, volume) in found {
        if adopt::is_of_log(thing)
            && let Some(why) = not_made(projects, &volume, guest, server, records).await
        {
            tracing::warn!("volume {}, which stands in virt-v2v's log, is left alone: {why}", volume.id);
            continue;
        }
        remove_volume(owner, &volume, server, patience).await?;
        // Handed over meanwhile, or shown by a project that does not have it.
        if let Some((other, volume)) = projects.find(&volume.id).await? {
            remove_volume(other, &volume, server, patience).await?;
        }
    }
    Ok(())
}

/// Volumes whose ids nobody knows: by the mark, or by what virt-v2v has signed since the job began.
async fn search<'a>(
    projects: &'a Projects,
    thing: &Thing,
    guest: &str,
    server: &str,
) -> Result<Vec<(&'a Cloud, Volume)>, CloudError> {
    if marks::is_of_virt_v2v(&thing.mark) {
        let begun = begun(&thing.mark);
        let mut volumes = match projects.here.volumes().await {
            // A cloud that lists none: those that the log tells are what there is to know.
            Err(error) if error.tells_nothing() => {
                tracing::warn!("volumes that stand in no log are not looked for: {}", chain(&error));
                return Ok(Vec::new());
            }
            listed => listed?,
        };
        volumes.retain(|volume| {
            let is_new = match (&begun, volume.created_at.as_deref().and_then(created)) {
                (Some(begun), Some(created)) => created >= *begun,
                _ => false,
            };
            // One with a mark is of a job that made it itself.
            let is_virt_v2vs = adopt::is_guests(volume, guest) && volume.mark().is_none();
            is_new && is_virt_v2vs && !volume.is_attached_elsewhere(server)
        });
        return Ok(volumes.into_iter().map(|volume| (&projects.here, volume)).collect());
    }
    for cloud in projects.each() {
        if let Some(volume) = cloud.volume_marked(&thing.mark).await? {
            return Ok(vec![(cloud, volume)]);
        }
    }
    Ok(Vec::new())
}

/// Why a volume of virt-v2v's log is not one that virt-v2v made for this job.
async fn not_made(
    projects: &Projects,
    volume: &Volume,
    guest: &str,
    server: &str,
    records: &Records,
) -> Option<&'static str> {
    if let Some(why) = adopt::foreign(volume, guest, server) {
        return Some(why);
    }
    if adopt::is_guests(volume, guest) || adopt::is_described(volume) {
        return None;
    }
    // Where virt-v2v has signed one it has made all.
    let things = records.things(crate::things::Side::Destination).unwrap_or_default();
    for other in things.iter().filter(|thing| adopt::is_of_log(thing) && thing.mark != volume.id) {
        if let Ok(Some((_, other))) = projects.find(&other.mark).await
            && adopt::is_guests(&other, guest)
        {
            return Some("virt-v2v has not signed it (virt_v2v_guest_id) as it has signed others");
        }
    }
    None
}

/// A volume of the job's, out of the conversion server and of whatever offer first.
async fn remove_volume(
    owner: &Cloud,
    volume: &Volume,
    server: &str,
    patience: Duration,
) -> Result<(), CloudError> {
    // Where it is attached is not shown by every cloud.
    let is_here = volume.attachments.iter().any(|attachment| attachment.server == server);
    if is_here || volume.status == "in-use" && volume.attachments.is_empty() {
        owner.detach(server, &volume.id, patience).await?;
    }
    if volume.status == "awaiting-transfer" {
        for transfer in owner.transfers().await?.iter().filter(|transfer| transfer.volume == volume.id) {
            owner.withdraw_transfer(&transfer.id).await?;
        }
    }
    owner.remove_volume(&volume.id, patience).await.map(|_| ())
}

/// When the job of a mark began, a little earlier: its tag is local time (contract.md 2.4).
fn begun(mark: &str) -> Option<jiff::Timestamp> {
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S", mark.get(..15)?).ok()?;
    time.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp().checked_sub(SKEW).ok()
}

/// Cinder writes UTC and does not say so.
fn created(text: &str) -> Option<jiff::Timestamp> {
    let bare = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    text.parse().ok().or_else(|| bare().map(|zoned| zoned.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_new_if_it_was_made_after_the_tags_time() {
        let now = jiff::Zoned::now();
        let mark = format!("{}-4711-virt-v2v", now.strftime("%Y%m%dT%H%M%S"));
        let begun = begun(&mark).unwrap();
        let at = |minutes: i64| {
            let time = now.timestamp() + jiff::SignedDuration::from_mins(minutes);
            created(&time.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.000000").to_string())
                .unwrap()
        };
        assert!(at(0) >= begun && at(60) >= begun && at(-60) < begun);
        assert_eq!(self::begun("x"), None);
        assert_eq!(created("2026-11-21T17:31:24Z"), created("2026-11-21T17:31:24.000000"));
        assert_eq!(created("soon"), None);
    }
}

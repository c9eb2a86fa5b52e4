//! The source as it was found, from the journal alone: the one place that puts it back, in every outcome.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::converter::Converter;
use super::lock::{self, VolumeLock};
use super::{Asked, OpenstackSourceError, PATIENCE, sentence, step};
use crate::log::chain;
use crate::openstack::Cloud;
use crate::openstack::attachments::Manner;
use crate::plan::Plan;
use crate::records::Records;
use crate::source::ssh;
use crate::things::{Kind, Thing};

/// In the environment of what is started meanwhile.
const TAG: &str = "put-back";

/// [`Thing::of`] of a volume in a server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) server: String,
    pub(super) volume: String,
    #[serde(flatten)]
    pub(super) manner: Manner,
}

/// As the journal has it.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        serde_json::json!(self).fmt(f)
    }
}

/// [`Thing::of`] of an export.
#[derive(Debug, Deserialize)]
struct Served {
    address: String,
    logs: PathBuf,
}

/// See [`crate::source::undo`].
pub async fn undo(plan: &Plan, things: &[Thing], records: &mut Records) -> Vec<String> {
    if things.is_empty() {
        return Vec::new();
    }
    let login = async {
        let asked = Asked::of(plan)?;
        Ok::<_, OpenstackSourceError>((asked.login(plan).await?, asked))
    };
    let (cloud, asked) = match login.await {
        Ok(session) => session,
        Err(error) => return vec![chain(&error)],
    };
    let mut undoing = Undoing { plan, cloud, asked, agent: None };
    let mut problems = Vec::new();
    for thing in in_order(things) {
        let undone = undoing.undo(thing).await;
        match undone.and_then(|()| Ok(records.gone(&thing.mark)?)) {
            Ok(()) => tracing::info!("{thing} at the source is put back or removed"),
            Err(error) => problems.push(sentence(thing, &error)),
        }
    }
    problems
}

/// The last thing first; only volumes go back into their server in the order in which they were in it. That is how most
/// hypervisors give them their devices: libvirt does not heed the names that it is told.
fn in_order(things: &[Thing]) -> Vec<&Thing> {
    let is_detached = |thing: &&Thing| thing.kind == Kind::Detachment;
    let mut detached = things.iter().rev().filter(is_detached);
    let next = |thing| if is_detached(&thing) { detached.next() } else { Some(thing) };
    things.iter().filter_map(next).collect()
}

struct Undoing<'a> {
    plan: &'a Plan,
    cloud: Cloud,
    asked: Asked<'a>,
    /// An agent with the key, and the directory of its socket. The job's own may be gone.
    agent: Option<(TempDir, PathBuf)>,
}

impl Undoing<'_> {
    async fn undo(&mut self, thing: &Thing) -> Result<(), OpenstackSourceError> {
        let (id, patience) = (thing.id.as_deref(), self.plan.tools.patience(PATIENCE));
        let cloud = &self.cloud;
        match thing.kind {
            Kind::Export => {
                let served: Served = place(thing)?;
                let converter = Converter::new(&served.address, self.agent().await?, TAG);
                converter.close(id, &thing.mark, &served.logs).await
            }
            Kind::Attachment => {
                let Place { server, volume, .. } = place(thing)?;
                let tools = &self.plan.tools;
                let _lock = VolumeLock::take(lock::SOURCE.as_ref(), |usual| tools.patience(usual)).await?;
                let failed = step(format!("detach volume {volume} from the source conversion host {server}"));
                cloud.detach(&server, &volume, patience).await.map_err(failed)
            }
            Kind::Detachment => self.put_back(&place(thing)?).await,
            Kind::Disk => {
                // Only what this job has made: its id is the answer to our own request, or it has our mark.
                let found = match id {
                    Some(id) => Some(id.to_owned()),
                    None => cloud.volume_marked(&thing.mark).await?.map(|volume| volume.id),
                };
                let Some(id) = found else { return Ok(()) };
                let failed = step(format!("remove volume {id}, the copy of the boot disk"));
                cloud.remove_volume(&id, patience).await.map(|_| ()).map_err(failed)
            }
            Kind::Snapshot => {
                let found = match id {
                    Some(id) => Some(id.to_owned()),
                    None => cloud.snapshot_marked(&thing.mark).await?.map(|snapshot| snapshot.id),
                };
                let Some(id) = found else { return Ok(()) };
                let failed = step(format!("remove snapshot {id} of the boot volume"));
                cloud.remove_snapshot(&id, patience).await.map(|_| ()).map_err(failed)
            }
            Kind::Image => {
                let found = match id {
                    Some(id) => Some(id.to_owned()),
                    None => cloud.image_marked(&thing.mark).await?.map(|image| image.id),
                };
                let Some(id) = found else { return Ok(()) };
                cloud
                    .remove_image(&id)
                    .await
                    .map(|_| ())
                    .map_err(step(format!("remove image {id} of the server")))
            }
            Kind::Transfer | Kind::Port | Kind::Machine | Kind::ImageTransfer => Ok(()),
        }
    }

    /// Back into the server that it was taken out of, as the same device.
    async fn put_back(&self, place: &Place) -> Result<(), OpenstackSourceError> {
        let Place { server, volume, manner } = place;
        let failed = || step(format!("attach volume {volume} to server {server} again"));
        let patience = self.plan.tools.patience(PATIENCE);
        // Its detachment may still be under way.
        let is_there = |shown: &crate::openstack::volumes::Volume| {
            shown.attachments.iter().any(|attachment| attachment.server == *server)
        };
        let shown = self.cloud.volume(volume).await.map_err(failed())?;
        if shown.status == "in-use" && is_there(&shown) {
            return Ok(());
        }
        if shown.status != "available" {
            self.cloud.volume_in(volume, "available", patience).await.map_err(failed())?;
        }
        self.cloud.attach_as(server, volume, manner, patience).await.map_err(failed())
    }

    async fn agent(&mut self) -> Result<PathBuf, OpenstackSourceError> {
        if let Some((_, socket)) = &self.agent {
            return Ok(socket.clone());
        }
        let directory = tempfile::Builder::new().prefix("v2v-agent-").tempdir();
        let directory = directory.map_err(|error| ssh::SshError::Agent(error.to_string()))?;
        let socket = ssh::start_agent(TAG, self.asked.key, directory.path()).await?;
        self.agent = Some((directory, socket.clone()));
        Ok(socket)
    }
}

/// What the journal says of a thing beside its id.
fn place<'a, T: Deserialize<'a>>(thing: &'a Thing) -> Result<T, OpenstackSourceError> {
    serde_json::from_str(&thing.of)
        .map_err(|error| OpenstackSourceError::Unclear { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::things::Side;

    #[test]
    fn volumes_go_back_in_the_order_in_which_they_were() {
        let thing = |kind, mark: &str| Thing {
            side: Side::Source,
            kind,
            mark: mark.to_owned(),
            of: String::new(),
            id: None,
        };
        let newest_first = [
            thing(Kind::Export, "export"),
            thing(Kind::Attachment, "in c"),
            thing(Kind::Attachment, "in root"),
            thing(Kind::Detachment, "c"),
            thing(Kind::Detachment, "b"),
            thing(Kind::Disk, "root"),
            thing(Kind::Detachment, "a"),
            thing(Kind::Snapshot, "snapshot"),
        ];
        let marks: Vec<&str> = in_order(&newest_first).iter().map(|thing| thing.mark.as_str()).collect();
        assert_eq!(marks, ["export", "in c", "in root", "a", "b", "root", "c", "snapshot"]);
    }

    /// Also what an earlier version of this program wrote.
    #[test]
    fn the_journal_tells_how_a_volume_was_attached() {
        let manner =
            Manner { device: Some("/dev/vdb".into()), tag: Some("data".into()), delete_on_termination: true };
        let place = Place { server: "s".into(), volume: "v".into(), manner };
        let read: Place = serde_json::from_str(&place.to_string()).unwrap();
        assert_eq!((read.server.as_str(), read.volume.as_str()), ("s", "v"));
        assert_eq!(read.manner, place.manner);
        let old: Place = serde_json::from_str(r#"{"server":"s","volume":"v","device":"/dev/vdc"}"#).unwrap();
        assert_eq!(old.manner, Manner { device: Some("/dev/vdc".into()), ..Manner::default() });
    }
}

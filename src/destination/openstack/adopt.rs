//! Which volumes virt-v2v has made for this job (contract.md 5 rows 8 and 9, bug 10). Their ids come from its log, in which a
//! guest's console is printed too: what cannot be this job's is left alone.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{DestinationError, Work};
use super::{Asked, OpenstackError, Projects, warn};
use crate::journal::Entry;
use crate::openstack::volumes::Volume;
use crate::things::{Kind, Side, Thing};

/// Metadata that virt-v2v puts on its volumes at its end.
pub(super) const GUEST: &str = "virt_v2v_guest_id";
pub(super) const INDEX: &str = "virt_v2v_disk_index";
/// In the description of each volume it makes.
const BY_VIRT_V2V: &str = "virt-v2v";

/// Ids of the volumes of the guest, in the order of its disks.
pub(super) async fn volumes(
    projects: &Projects,
    work: &mut Work<'_>,
) -> Result<Vec<String>, DestinationError> {
    let asked = Asked::of(&work.job.plan)?;
    let mut seen = Vec::new();
    let mut missing = Vec::new();
    for thing in work.records.things(Side::Destination)?.iter().filter(|thing| is_of_log(thing)) {
        let found = projects.find(&thing.mark).await.map_err(OpenstackError::VolumeState)?;
        match found {
            Some((_, volume)) => seen.push(volume),
            None => missing.push(thing.mark.clone()),
        }
    }
    let told = told(&work.records.entries()?);
    let (volumes, foreign) = sort(seen, asked.guest, asked.server, &told);
    for (id, why) in foreign {
        warn(work, format!("volume {id}, which stands in virt-v2v's log, is left alone: {why}"));
    }
    let whole = check_whole(&volumes)?;
    for id in missing {
        // An id that is none of this guest's, printed by somebody.
        match whole {
            true => warn(work, format!("volume {id}, which stands in virt-v2v's log, does not exist")),
            false => {
                let asked = format!("volume {id}");
                let what = "a volume: it does not exist".to_owned();
                return Err(
                    OpenstackError::VolumeState(crate::openstack::CloudError::Shape { asked, what }).into()
                );
            }
        }
    }
    if volumes.is_empty() {
        return Err(OpenstackError::NoVolumes.into());
    }
    Ok(volumes.into_iter().map(|volume| volume.id).collect())
}

/// Was it told by virt-v2v's log? Its id is its mark then.
pub(super) fn is_of_log(thing: &Thing) -> bool {
    thing.kind == Kind::Disk && thing.id.as_deref() == Some(thing.mark.as_str())
}

/// Why a volume of the log is not this job's; `None`: it may well be.
pub(super) fn foreign(volume: &Volume, guest: &str, server: &str) -> Option<&'static str> {
    match volume.metadata.get(GUEST) {
        Some(id) if id != guest => return Some("it belongs to another guest (virt_v2v_guest_id)"),
        Some(_) => {}
        // Each that virt-v2v has made says so.
        None if volume.description.is_some() && !is_described(volume) => {
            return Some("virt-v2v did not make it (description)");
        }
        None => {}
    }
    volume.is_attached_elsewhere(server).then_some("it is attached to another server")
}

/// Does its description say that virt-v2v made it?
pub(super) fn is_described(volume: &Volume) -> bool {
    volume.description.as_ref().is_some_and(|description| description.contains(BY_VIRT_V2V))
}

/// Has virt-v2v written this guest's id on it?
pub(super) fn is_guests(volume: &Volume, guest: &str) -> bool {
    volume.metadata.get(GUEST).is_some_and(|id| id == guest)
}

/// Which disk of the guest a volume is, in the words of the log, from 0.
fn told(entries: &[Entry]) -> BTreeMap<String, usize> {
    let index = |entry: &Entry| match entry {
        Entry::VolumeIndex { id, disk } => Some((id.clone(), *disk)),
        _ => None,
    };
    entries.iter().filter_map(index).collect()
}

/// Those of the guest in the order of its disks, each once; and the others, with the reason. Where a volume does not say which
/// disk it is, the log's word counts (`told`).
fn sort(
    seen: Vec<Volume>,
    guest: &str,
    server: &str,
    told: &BTreeMap<String, usize>,
) -> (Vec<Volume>, Vec<(String, &'static str)>) {
    let (mut own, mut others): (Vec<Volume>, Vec<(String, &'static str)>) = Default::default();
    // Where virt-v2v has signed one it has signed all.
    let signed = seen.iter().any(|volume| is_guests(volume, guest));
    for volume in seen {
        if own.iter().any(|known| known.id == volume.id) {
            continue;
        }
        match foreign(&volume, guest, server) {
            Some(why) => others.push((volume.id, why)),
            None if signed && !is_guests(&volume, guest) => {
                others.push((
                    volume.id,
                    "virt-v2v has not signed it (virt_v2v_guest_id) as it has signed others",
                ));
            }
            None => own.push(volume),
        }
    }
    // Stable: those without an index stay in the order of the log.
    own.sort_by_key(|volume| {
        let told = || told.get(&volume.id).map(|disk| disk + 1);
        index(volume).map(|(index, _)| index).or_else(told).unwrap_or(usize::MAX)
    });
    (own, others)
}

/// `2/3`.
fn index(volume: &Volume) -> Option<(usize, usize)> {
    let (index, count) = volume.metadata.get(INDEX)?.split_once('/')?;
    let (index, count) = (index.trim().parse().ok()?, count.trim().parse().ok()?);
    (1..=count).contains(&index).then_some((index, count))
}

/// Whether all disks are there, where the volumes tell how many there are; an error if some are not.
fn check_whole(volumes: &[Volume]) -> Result<bool, OpenstackError> {
    let Some(count) = volumes.iter().filter_map(|volume| index(volume).map(|(_, count)| count)).max() else {
        return Ok(false);
    };
    let there: BTreeSet<usize> =
        volumes.iter().filter_map(|volume| index(volume).map(|(index, _)| index)).collect();
    match count - there.len() {
        0 => Ok(true),
        missing => Err(OpenstackError::Incomplete { missing, count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openstack::volumes::AttachedTo;

    fn volume(id: &str, metadata: &[(&str, &str)]) -> Volume {
        let metadata = metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Volume { id: id.to_owned(), metadata, ..Volume::default() }
    }

    fn ids(seen: Vec<Volume>) -> (Vec<String>, Vec<String>) {
        let (own, others) = sort(seen, "guest", "host", &BTreeMap::new());
        (own.into_iter().map(|volume| volume.id).collect(), others.into_iter().map(|(id, _)| id).collect())
    }

    #[test]
    fn volumes_come_once_and_in_the_order_of_the_disks() {
        let (own, others) = ids(vec![
            volume("b", &[(GUEST, "guest"), (INDEX, "2/3")]),
            volume("c", &[(GUEST, "guest"), (INDEX, "3/3")]),
            volume("b", &[(GUEST, "guest"), (INDEX, "2/3")]),
            volume("a", &[(GUEST, "guest"), (INDEX, "1/3")]),
        ]);
        assert_eq!((own, others.len()), (["a", "b", "c"].map(str::to_owned).to_vec(), 0));
        let (own, _) = ids(vec![volume("z", &[]), volume("y", &[]), volume("x", &[])]);
        assert_eq!(own, ["z", "y", "x"]);
    }

    /// Contract.md 5 row 9: the log says it when the volume's metadata is not shown.
    #[test]
    fn the_log_tells_the_order_where_the_volumes_do_not() {
        let entry = |id: &str, disk| Entry::VolumeIndex { id: id.to_owned(), disk };
        let told = told(&[entry("a", 0), entry("b", 0), entry("b", 1), entry("c", 2)]);
        let seen = vec![volume("x", &[]), volume("c", &[]), volume("b", &[]), volume("a", &[(INDEX, "3/3")])];
        let (own, _) = sort(seen, "guest", "host", &told);
        let ids: Vec<_> = own.iter().map(|volume| volume.id.as_str()).collect();
        assert_eq!(ids, ["b", "c", "a", "x"]);
    }

    #[test]
    fn what_another_guest_or_server_has_is_left_alone() {
        let elsewhere = AttachedTo { server: "other".to_owned(), device: None };
        let here = AttachedTo { server: "host".to_owned(), device: None };
        let (own, others) = ids(vec![
            volume("theirs", &[(GUEST, "another")]),
            Volume { attachments: vec![elsewhere], ..volume("busy", &[(GUEST, "guest")]) },
            Volume { description: Some("my database".to_owned()), ..volume("described", &[]) },
            Volume { attachments: vec![here], ..volume("ours", &[(GUEST, "guest")]) },
            volume("unsigned", &[]),
        ]);
        assert_eq!(own, ["ours"]);
        assert_eq!(others, ["theirs", "busy", "described", "unsigned"]);
        let by_virt_v2v = Some("vm disk 1/1 converted by virt-v2v".to_owned());
        let (own, _) = ids(vec![Volume { description: by_virt_v2v, ..volume("early", &[]) }]);
        assert_eq!(own, ["early"]);
    }

    #[test]
    fn a_guest_never_loses_a_disk_silently() {
        let of = |indexes: &[&str]| -> Vec<Volume> {
            indexes.iter().map(|index| volume(index, &[(INDEX, index)])).collect()
        };
        assert!(check_whole(&of(&["1/2", "2/2"])).unwrap());
        assert!(!check_whole(&[volume("a", &[])]).unwrap());
        let said = check_whole(&of(&["1/3", "3/3"])).unwrap_err().to_string();
        assert!(said.starts_with("No volumes found for 1 of the 3 disks"), "{said}");
    }
}

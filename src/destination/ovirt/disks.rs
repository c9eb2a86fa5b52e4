//! The disks of a two-phase job: made side by side, each once, and waited for.
//!
//! A job that goes on with an earlier one has that one's disks in its journal: they are found, never made again. Where a disk
//! is reachable is [`super::attachments`]'s.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::answer::text;
use super::client::{Engine, LONG};
use super::create::{self, New, create, marked};
use super::lookup::Storage;
use super::{OvirtError, Prepared};
use crate::destination::{DestinationError, Work};
use crate::guest::Guest;
use crate::http::encoded;
use crate::plan::{Plan, Source};
use crate::things::{Kind, Side};

/// Storage with sectors of 4 KiB takes nothing smaller.
const BLOCK: u64 = 4096;

/// A disk that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its id.
    pub id: String,
    /// Bytes.
    pub size: u64,
}

/// What one disk is to be.
#[derive(Debug)]
struct Wanted {
    mark: String,
    name: String,
    size: u64,
    /// The id, where it is there already.
    id: Option<String>,
}

/// All disks of the guest, in order, none of them locked.
pub async fn ensure(
    prepared: &Prepared,
    guest: &Guest,
    work: &mut Work<'_>,
) -> Result<Vec<Disk>, DestinationError> {
    let Prepared { engine, storage, .. } = prepared;
    let plan = &work.job.plan;
    let allocation = plan.allocation.as_deref().or(storage.allocation).unwrap_or("sparse");
    let mut wanted = Vec::with_capacity(guest.disks.len());
    for (index, disk) in guest.disks.iter().enumerate() {
        let size = disk.size.ok_or(OvirtError::NoSize { disk: index + 1 })?.max(1).next_multiple_of(BLOCK);
        wanted.push(recall(engine, index + 1, size, work).await?);
    }
    if let Some(text) = room(&wanted, storage, allocation, &prepared.storage_name)? {
        tracing::warn!("{text}");
        work.tell(crate::event::Event::Warning { text });
    }
    for disk in wanted.iter().filter(|disk| disk.id.is_none()) {
        let of = of(wanted.iter().position(|other| other.mark == disk.mark).unwrap_or(0) + 1);
        work.records.making(Side::Destination, Kind::Disk, &disk.mark, &of)?;
    }
    make(prepared, allocation, &mut wanted, work).await?;
    let disks: Vec<Disk> =
        wanted.into_iter().filter_map(|disk| Some(Disk { id: disk.id?, size: disk.size })).collect();
    work.waits_for(Some("the new disks to be unlocked"));
    unlocked(engine, &disks).await?;
    work.waits_for(None);
    Ok(disks)
}

/// What the journal calls it, whichever job made it.
fn of(number: usize) -> String {
    format!("disk {number}")
}

/// What is known of a disk: the earlier job's, or one that is to be made.
async fn recall(
    engine: &Engine,
    number: usize,
    size: u64,
    work: &mut Work<'_>,
) -> Result<Wanted, DestinationError> {
    let name = format!("{}_Disk{number}", work.job.plan.vm_name);
    let of = of(number);
    let mut things = work.records.things(Side::Destination)?;
    things.retain(|thing| thing.kind == Kind::Disk && thing.of == of);
    let Some(thing) = things.pop() else {
        let mark = format!("{}-disk-{number}", work.job.files.tag);
        return Ok(Wanted { mark, name, size, id: None });
    };
    let found = match &thing.id {
        Some(id) => {
            let found = engine.find("cannot look for a disk", &format!("disks/{}", encoded(id))).await?;
            // What was copied to it is gone with it.
            Some(found.ok_or(OvirtError::Lost { disk: number, id: id.clone() })?)
        }
        None => marked(engine, ("disks", "disk"), &name, &thing.mark).await?,
    };
    let id = found.map(|found| create::id("cannot look for a disk", &found)).transpose()?;
    if let (Some(id), None) = (&id, &thing.id) {
        work.records.made(&thing.mark, id)?;
    }
    Ok(Wanted { mark: thing.mark, name, size, id })
}

/// Is there room for those that are to be made? Preallocated ones take all of theirs at once; of others nobody knows.
fn room(
    wanted: &[Wanted],
    storage: &Storage,
    allocation: &str,
    name: &str,
) -> Result<Option<String>, OvirtError> {
    let needed: u64 = wanted.iter().filter(|disk| disk.id.is_none()).map(|disk| disk.size).sum();
    let Some(free) = storage.available.filter(|free| *free < needed) else { return Ok(None) };
    let error = OvirtError::NoRoom { storage: name.to_owned(), free, needed };
    if allocation == "preallocated" {
        return Err(error);
    }
    Ok(Some(format!("{error}; they are sparse, so it may do")))
}

/// Makes those that are not there, side by side. Each is in the journal as soon as the engine says its id, also when another
/// fails.
async fn make(
    prepared: &Prepared,
    allocation: &str,
    wanted: &mut [Wanted],
    work: &mut Work<'_>,
) -> Result<(), DestinationError> {
    let Prepared { engine, storage, storage_name, .. } = prepared;
    let plan = &work.job.plan;
    let making = |index: usize, disk: &Wanted| {
        let body = body(plan, disk, storage, storage_name, allocation);
        let (mark, name) = (disk.mark.clone(), disk.name.clone());
        async move {
            let what = format!("Create disk {} failed", index + 1);
            let new = New { what: &what, path: "disks", body: &body };
            let find = async || marked(engine, ("disks", "disk"), &name, &mark).await;
            let made = create(engine, new, &engine.wait(LONG), find).await;
            (index, made.and_then(|made| create::id(&what, &made)))
        }
    };
    let missing = wanted.iter().enumerate().filter(|(_, disk)| disk.id.is_none());
    let mut running: FuturesUnordered<_> = missing.map(|(index, disk)| making(index, disk)).collect();
    let mut failed = None;
    while let Some((index, made)) = running.next().await {
        match made {
            Ok(id) => {
                work.records.made(&wanted[index].mark, &id)?;
                wanted[index].id = Some(id);
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn body(plan: &Plan, disk: &Wanted, storage: &Storage, storage_name: &str, allocation: &str) -> Value {
    let domain = match &storage.id {
        Some(id) => json!({"id": id}),
        None => json!({"name": storage_name}),
    };
    json!({
        "name": disk.name,
        "alias": disk.name,
        "description": description(plan, &disk.mark),
        "format": "raw",
        "provisioned_size": disk.size,
        "initial_size": disk.size,
        "sparse": allocation == "sparse",
        "shareable": true,
        "storage_domains": {"storage_domain": [domain]},
    })
}

/// Where a thing of ours comes from, with its mark as the last word.
pub fn description(plan: &Plan, mark: &str) -> String {
    let from = match plan.source {
        Source::Vddk { .. } | Source::Ssh { .. } => " from VMware",
        Source::Openstack { .. } | Source::Local(_) => "",
    };
    let now = jiff::Timestamp::now().strftime("%a %b %e %H:%M:%S %Y");
    format!("Converted{from} on {now} UTC by virt-v2v-wrapper {mark}")
}

/// Waits until none is locked.
pub async fn unlocked(engine: &Engine, disks: &[Disk]) -> Result<(), OvirtError> {
    let wait = engine.wait(LONG);
    for disk in disks {
        let path = format!("disks/{}", encoded(&disk.id));
        let look = async || {
            let found = engine.get("cannot look at a new disk", &path).await?;
            match text(&found, "status").map(str::to_ascii_lowercase).as_deref() {
                None | Some("ok") => Ok(Some(())),
                Some("locked") => Ok(None),
                Some(status) => Err(OvirtError::Broken { id: disk.id.clone(), status: status.to_owned() }),
            }
        };
        wait.until(look).await?.ok_or(OvirtError::StillLocked)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(size: u64, id: Option<&str>) -> Wanted {
        Wanted { mark: "m".into(), name: "n".into(), size, id: id.map(str::to_owned) }
    }

    #[test]
    fn room_is_asked_for_what_is_not_there_yet() {
        let storage = Storage { available: Some(10 << 20), ..Storage::default() };
        let wanted = [disk(8 << 20, None), disk(3 << 20, None)];
        let error = room(&wanted, &storage, "preallocated", "data").unwrap_err().to_string();
        assert!(
            error.contains("\"data\" has 10 MiB free, and the disks of the guest take 11 MiB"),
            "{error}"
        );
        assert!(room(&wanted, &storage, "sparse", "data").unwrap().is_some());
        let wanted = [disk(8 << 20, Some("there")), disk(3 << 20, None)];
        assert_eq!(room(&wanted, &storage, "preallocated", "data").unwrap(), None);
        assert_eq!(room(&wanted, &Storage::default(), "preallocated", "data").unwrap(), None);
    }
}

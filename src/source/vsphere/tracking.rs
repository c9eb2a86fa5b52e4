//! Which areas of a disk changed since a change id, asked slice by slice until the end of the disk (peers.md 6.3, rows 2
//! to 4).
//!
//! A list that ends too early is a disk that is silently wrong, so `Walk`, which is pure, takes nothing for an end but
//! the size of the disk: an answer that does not bring it nearer is an error. Not here: what to do when the change id is
//! no good any more (the caller compares or copies all of the disk).

use std::num::NonZeroU64;

use super::Vsphere;
use super::error::ClientError;
use super::operations::machine;
use super::soap::{Call, Element, Fault, Reference};
use crate::extent::{Extent, Extents, Kind};

/// All areas that are allocated, instead of a change id.
pub const ALLOCATED: &str = "*";
/// Areas that servers put into one answer at most; its `length` may all the same reach beyond the last one (row 2).
const CAP: usize = 2000;
/// More areas than this are made coarser, so that memory does not grow with a disk's fragmentation: an area that is read
/// without need is not wrong.
const MOST_AREAS: usize = 200_000;
/// Hosts track no smaller areas on disks of any size that matters here.
const TRACKED: NonZeroU64 = match NonZeroU64::new(64 << 10) {
    Some(unit) => unit,
    None => NonZeroU64::MIN,
};
/// Answers for one disk. With 2000 areas in each, and 64 KiB in each area, this is 12 TB of single changes.
const MOST_ANSWERS: usize = 100_000;

/// What changed is not known.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server does not track from there: tracking was reset, the machine was reverted, the disk moved, or tracking
    /// has not begun. The disk must be read as a whole, and compared (row 5).
    #[error("vSphere cannot tell {}: {fault}", question(*disk_key, since))]
    ChangeId {
        /// The disk.
        disk_key: i32,
        /// What was asked for.
        since: String,
        /// The server's words.
        fault: Fault,
    },
    /// The answers do not come nearer to the end of the disk.
    #[error(
        "vSphere does not get on telling {}: asked from byte {asked} of {size} on, it answered {told}",
        question(*disk_key, since)
    )]
    NoProgress {
        /// The disk.
        disk_key: i32,
        /// What was asked for.
        since: String,
        /// From where.
        asked: u64,
        /// Bytes of the disk.
        size: u64,
        /// The answer, in words.
        told: String,
    },
    /// Numbers that cannot be true.
    #[error("vSphere's answer makes no sense when asked {}: {told}", question(*disk_key, since))]
    Absurd {
        /// The disk.
        disk_key: i32,
        /// What was asked for.
        since: String,
        /// The answer, in words.
        told: String,
    },
}

fn question(disk_key: i32, since: &str) -> String {
    match since {
        ALLOCATED => format!("which areas of disk {disk_key} are allocated"),
        _ => format!("what changed on disk {disk_key} since change id {since}"),
    }
}

/// Do two change ids count the same changes? What stands before the `/` is new when tracking begins anew: then the older
/// one is worthless (row 5), whether or not the server says so.
pub fn is_same_tracking(before: &str, now: &str) -> bool {
    match (before.rsplit_once('/'), now.rsplit_once('/')) {
        (Some((before, _)), Some((now, _))) => before == now && !before.is_empty(),
        _ => false,
    }
}

/// `DiskChangeInfo`: one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Slice {
    start: i64,
    length: i64,
    /// Start and length of each area.
    areas: Vec<(i64, i64)>,
}

impl Slice {
    /// `None` where a number is missing or none.
    fn read(answer: &Element) -> Option<Self> {
        let area = |area: &Element| Some((area.number("start")?, area.number("length")?));
        Some(Self {
            start: answer.number("startOffset")?,
            length: answer.number("length")?,
            areas: answer.all("changedArea").map(area).collect::<Option<_>>()?,
        })
    }

    fn told(&self) -> String {
        let Self { start, length, areas } = self;
        format!("{} areas in the {length} bytes from {start} on", areas.len())
    }
}

/// Why an answer is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refused {
    NoProgress(String),
    Absurd(String),
}

/// The way through one disk.
#[derive(Debug)]
struct Walk {
    size: u64,
    at: u64,
    answers: usize,
    found: Vec<Extent>,
    most: usize,
}

impl Walk {
    fn new(size: u64) -> Self {
        Self { size, at: 0, answers: 0, found: Vec::new(), most: MOST_AREAS }
    }

    /// From where to ask; `None` at the end. Never the size of the disk: servers refuse that (row 4).
    fn next(&self) -> Option<u64> {
        (self.at < self.size).then_some(self.at)
    }

    /// Takes the answer to the question from [`Walk::next`] on.
    fn take(&mut self, slice: &Slice) -> Result<(), Refused> {
        let absurd = || Refused::Absurd(slice.told());
        let (start, mut end) = range(slice.start, slice.length).ok_or_else(absurd)?;
        // What lies between is told by nobody.
        if start > self.at {
            return Err(absurd());
        }
        let mut areas = Vec::with_capacity(slice.areas.len());
        for (start, length) in &slice.areas {
            let (start, end) = range(*start, *length)
                .ok_or_else(|| Refused::Absurd(format!("an area of {length} bytes from {start} on")))?;
            areas.push(Extent::new(start, end - start, Kind::Data));
        }
        let last = areas.last().map_or(0, Extent::end);
        // A full answer ends with its last area, whatever it says; one of no length may still have areas.
        if areas.len() >= CAP || end == start {
            if !areas.is_sorted_by_key(|area| area.offset) {
                return Err(Refused::Absurd(format!("{}, out of order", slice.told())));
            }
            end = if end == start { last } else { end.min(last) };
        }
        self.answers += 1;
        if end <= self.at || self.answers > MOST_ANSWERS {
            return Err(Refused::NoProgress(slice.told()));
        }
        self.at = end;
        self.found.append(&mut areas);
        if self.found.len() > self.most {
            self.shorten();
        }
        Ok(())
    }

    /// Areas within the disk, in order.
    fn extents(self) -> Extents {
        Extents::normalize(self.found).clamp(self.size)
    }

    fn shorten(&mut self) {
        let mut fewer = Extents::normalize(std::mem::take(&mut self.found));
        // To half of it, so that not every answer does this again.
        let mut unit = TRACKED;
        while fewer.len() > self.most / 2 && unit.get() < self.size {
            fewer = fewer.widen(unit, self.size);
            unit = unit.saturating_add(unit.get());
        }
        self.found = fewer.iter().collect();
    }
}

/// First byte and the byte behind the last; `None` if that is no range of a disk.
fn range(start: i64, length: i64) -> Option<(u64, u64)> {
    let end = start.checked_add(length)?;
    let (start, end) = (u64::try_from(start).ok()?, u64::try_from(end).ok()?);
    (start <= end).then_some((start, end))
}

/// Is it about the change id? Servers say so in three ways, of which the third is that of old hosts.
fn is_about_change_id(fault: &Fault) -> bool {
    fault.kind == "FileFault"
        || (fault.kind == "InvalidArgument" && fault.property.as_deref() == Some("changeId"))
        || fault.words.contains("Error caused by file")
}

impl Vsphere {
    /// What changed on a disk since change id `since` ([`ALLOCATED`]: what is allocated), up to a snapshot or, without
    /// one, up to now; then the machine must be off. `size` is the disk's, in bytes.
    pub async fn changed_areas(
        &self,
        moref: &str,
        snapshot: Option<&str>,
        disk_key: i32,
        since: &str,
        size: u64,
    ) -> Result<Extents, ChangesError> {
        let machine = machine(moref);
        let snapshot = snapshot.map(|snapshot| Reference::new("VirtualMachineSnapshot", snapshot));
        let since = since.to_owned();
        let mut walk = Walk::new(size);
        while let Some(asked) = walk.next() {
            let mut call = Call::new("QueryChangedDiskAreas", &machine);
            if let Some(snapshot) = &snapshot {
                call = call.reference("snapshot", snapshot);
            }
            let call = call
                .text("deviceKey", &disk_key.to_string())
                .text("startOffset", &asked.to_string())
                .text("changeId", &since);
            let answer = match self.client.value(&call).await {
                Err(ClientError::Fault { fault, .. }) if is_about_change_id(&fault) => {
                    return Err(ChangesError::ChangeId { disk_key, since, fault });
                }
                answer => answer?,
            };
            let slice = Slice::read(&answer).ok_or_else(|| Refused::Absurd("a number is missing".to_owned()));
            match slice.and_then(|slice| walk.take(&slice)) {
                Ok(()) => {}
                Err(Refused::NoProgress(told)) => {
                    return Err(ChangesError::NoProgress { disk_key, since, asked, size, told });
                }
                Err(Refused::Absurd(told)) => return Err(ChangesError::Absurd { disk_key, since, told }),
            }
        }
        Ok(walk.extents())
    }
}

#[cfg(test)]
mod tests;

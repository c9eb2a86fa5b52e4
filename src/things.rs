//! What a job has made or changed at a cloud, read from its journal: volumes, ports, servers, attachments. Pure.
//!
//! Each has a mark, which no other job's has and which stands on the thing itself wherever its API lets one put a text: that
//! is how a thing is found whose creation was answered by nobody. Whoever has credentials puts it back
//! ([`crate::put_back`], by way of [`crate::destination::undo`] and [`crate::source::undo`]); what a job changed on a machine of
//! vSphere is [`crate::footprint`]'s, local files are [`crate::undo`]'s.

use serde::{Deserialize, Serialize};

use crate::journal::{Entry, Fate};

/// Which cloud a thing is at: source and destination may be two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Where the guest comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// What kind of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A disk of oVirt, or a volume of OpenStack.
    Disk,
    /// A disk of ours in the conversion host.
    Attachment,
    /// A disk of theirs, taken out of their machine for the copy: it goes back.
    Detachment,
    /// An offer of a volume to another project.
    Transfer,
    /// A network port.
    Port,
    /// The new machine.
    Machine,
    /// A snapshot of a volume.
    Snapshot,
    /// An image of a server.
    Image,
    /// A transfer of oVirt's image service.
    ImageTransfer,
    /// Programs and files on the conversion host of the source.
    Export,
}

impl Kind {
    /// As a part of a sentence.
    fn noun(self) -> &'static str {
        match self {
            Self::Disk => "the disk",
            Self::Attachment => "the attachment",
            Self::Detachment => "the detached volume",
            Self::Transfer => "the volume transfer",
            Self::Port => "the port",
            Self::Machine => "the machine",
            Self::Snapshot => "the snapshot",
            Self::Image => "the image",
            Self::ImageTransfer => "the image transfer",
            Self::Export => "the export",
        }
    }
}

/// Something at a cloud that is there, or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// Which cloud.
    pub side: Side,
    /// What it is.
    pub kind: Kind,
    /// Finds it where its id is not known; no other thing has it.
    pub mark: String,
    /// What it belongs to, in its provider's own words: a project, a server, a device. May be empty.
    pub of: String,
    /// Its id; `None`: its creation was begun, and nobody knows how that ended.
    pub id: Option<String>,
}

impl Thing {
    /// The entries from which another journal says the same.
    pub fn entries(&self) -> Vec<Entry> {
        let Self { side, kind, mark, of, id } = self;
        let mut entries =
            vec![Entry::Making { side: *side, kind: *kind, mark: mark.clone(), of: of.clone() }];
        entries.extend(id.clone().map(|id| Entry::Made { mark: mark.clone(), id }));
        entries
    }

    /// Whether it is where it belongs when the job has come to this end.
    fn stays(&self, fate: Fate) -> bool {
        match (fate, self.side) {
            // Its journal speaks of it now.
            (Fate::TakenOver, _) => true,
            (_, Side::Source) | (Fate::Undone, _) => false,
            (Fate::Kept, Side::Destination) => matches!(self.kind, Kind::Disk | Kind::Attachment),
            (Fate::Delivered, Side::Destination) => {
                matches!(self.kind, Kind::Disk | Kind::Port | Kind::Machine)
            }
        }
    }
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, mark, id, .. } = self;
        match id {
            Some(id) => write!(f, "{} {id}", kind.noun()),
            None => write!(f, "{} marked {mark}", kind.noun()),
        }
    }
}

/// All that are there, or may be, in the order in which they were begun.
pub fn there(entries: &[Entry]) -> Vec<Thing> {
    let mut things: Vec<Thing> = Vec::new();
    for entry in entries {
        match entry {
            Entry::Making { side, kind, mark, of } if !things.iter().any(|thing| thing.mark == *mark) => {
                let (side, kind, mark, of) = (*side, *kind, mark.clone(), of.clone());
                things.push(Thing { side, kind, mark, of, id: None });
            }
            Entry::Made { mark, id } => {
                let thing = things.iter_mut().find(|thing| thing.mark == *mark);
                thing.into_iter().for_each(|thing| thing.id = Some(id.clone()));
            }
            Entry::Gone { mark } => things.retain(|thing| thing.mark != *mark),
            Entry::ResumedBy { .. } => things.clear(),
            _ => {}
        }
    }
    things
}

/// Those that must go, or go back, when the job has come to this end; the last one first.
pub fn to_undo(entries: &[Entry], fate: Fate) -> Vec<Thing> {
    let mut things = there(entries);
    things.retain(|thing| !thing.stays(fate));
    things.reverse();
    things
}

#[cfg(test)]
mod tests {
    use super::*;

    fn making(side: Side, kind: Kind, mark: &str) -> Entry {
        Entry::Making { side, kind, mark: mark.into(), of: String::new() }
    }

    fn made(mark: &str, id: &str) -> Entry {
        Entry::Made { mark: mark.into(), id: id.into() }
    }

    /// Between its intent and its result a thing may be there, and so it is looked for.
    #[test]
    fn what_was_begun_counts_until_it_is_gone() {
        let disk = making(Side::Destination, Kind::Disk, "t-1");
        for (entries, ids) in [
            (vec![], vec![]),
            (vec![disk.clone()], vec![None]),
            (vec![disk.clone(), made("t-1", "a")], vec![Some("a")]),
            (vec![disk.clone(), made("t-1", "a"), disk.clone()], vec![Some("a")]),
            (vec![disk.clone(), made("t-1", "a"), Entry::Gone { mark: "t-1".into() }], vec![]),
            (vec![disk.clone(), Entry::ResumedBy { tag: "t".into() }], vec![]),
        ] {
            let things = there(&entries);
            let found: Vec<_> = things.iter().map(|thing| thing.id.as_deref()).collect();
            assert_eq!(found, ids, "{entries:?}");
            let again: Vec<Entry> = things.iter().flat_map(Thing::entries).collect();
            assert_eq!(there(&again), things);
        }
    }

    #[test]
    fn what_goes_depends_on_the_end_of_the_job() {
        let all = [
            making(Side::Source, Kind::Detachment, "s"),
            making(Side::Destination, Kind::Disk, "disk"),
            making(Side::Destination, Kind::Attachment, "attachment"),
            making(Side::Destination, Kind::Transfer, "transfer"),
            making(Side::Destination, Kind::Port, "port"),
            making(Side::Destination, Kind::Machine, "machine"),
        ];
        for (fate, goes) in [
            (Fate::Undone, vec!["machine", "port", "transfer", "attachment", "disk", "s"]),
            (Fate::Kept, vec!["machine", "port", "transfer", "s"]),
            (Fate::Delivered, vec!["transfer", "attachment", "s"]),
            (Fate::TakenOver, vec![]),
        ] {
            let things = to_undo(&all, fate);
            let marks: Vec<_> = things.iter().map(|thing| thing.mark.as_str()).collect();
            assert_eq!(marks, goes, "{fate:?}");
        }
    }
}

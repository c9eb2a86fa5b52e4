//! Snapshots of a machine: made, listed, read and removed. The readers are pure, the methods an edge.
//!
//! Nothing here knows whose a snapshot is: the caller recognises its own by name or by what its journal holds, and removes
//! no other.

use std::time::Duration;

use super::Vsphere;
use super::machine::{self, Names};
use super::operations::{self, OperationError};
use super::soap::{Call, Element, Reference};
use super::task;

/// VSS in a Windows guest has ten minutes for itself, and a host with many snapshots waits for its turn.
const CREATION: Duration = Duration::from_secs(1200);
const REMOVE: &str = "RemoveSnapshot_Task";
const HARDWARE: &str = "config.hardware";

/// A snapshot to be made, without the machine's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// The guest brings its file systems to rest first; needs tools that run.
    pub quiesce: bool,
}

/// A snapshot as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id, e.g. `snapshot-1043`.
    pub moref: String,
    /// The disks it holds, in the machine's order.
    pub disks: Vec<SnapshotDisk>,
}

/// A disk at the time of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotDisk {
    /// Key of the device: it stays the same as long as the disk is in the machine.
    pub key: i32,
    /// UUID of the disk, where its host knows one.
    pub uuid: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// The file that the snapshot closed, `[store] folder/disk.vmdk`.
    pub file: String,
    /// Changes since here are asked for with this; `None` where they are not tracked (independent disks, too).
    pub change_id: Option<String>,
}

/// A snapshot that a machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSnapshot {
    /// Its id.
    pub moref: String,
    /// Its name, as people see it.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Others were made after it.
    pub has_children: bool,
}

/// All snapshots of the property `snapshot`, newest last.
pub fn found(info: &Element) -> Vec<FoundSnapshot> {
    let mut found = Vec::new();
    let mut trees: Vec<&Element> = info.all("rootSnapshotList").collect();
    while let Some(tree) = trees.pop() {
        let children = trees.len();
        trees.extend(tree.all("childSnapshotList"));
        let text = |name| tree.text_of(name).unwrap_or_default();
        let snapshot = FoundSnapshot {
            moref: text("snapshot").to_owned(),
            name: machine::unescaped(text("name")),
            description: text("description").to_owned(),
            has_children: trees.len() > children,
        };
        // Counted up for each machine; times are texts of different forms, and clocks are set.
        found.push((tree.number::<i64>("id").unwrap_or_default(), snapshot));
    }
    found.sort_by_key(|(id, _)| *id);
    found.into_iter().map(|(_, snapshot)| snapshot).collect()
}

/// The disks of a snapshot's hardware; `None` when one of them has no key.
fn disks(hardware: &Element) -> Option<Vec<SnapshotDisk>> {
    let disks = machine::disks(hardware, &Names::default()).into_iter().map(|(disk, backing)| {
        Some(SnapshotDisk {
            key: disk.key?,
            uuid: disk.uuid,
            size: disk.size,
            file: backing.file,
            change_id: backing.change_id,
        })
    });
    disks.collect()
}

fn snapshot_of(moref: &str) -> Reference {
    Reference::new("VirtualMachineSnapshot", moref)
}

/// `consolidate` is left to the server: merging is what is wanted, and it is the default.
fn removal(snapshot: &str) -> Call {
    Call::new(REMOVE, &snapshot_of(snapshot)).text("removeChildren", "false")
}

impl Vsphere {
    /// Makes a snapshot and reads it. After an error but [`TaskError::Failed`](super::task::TaskError::Failed) it may exist
    /// all the same, now or soon: it is to be looked for by its name.
    pub async fn create_snapshot(&self, moref: &str, new: &NewSnapshot) -> Result<Snapshot, OperationError> {
        let call = Call::new("CreateSnapshot_Task", &operations::machine(moref))
            .text("name", &new.name)
            .text("description", &new.description)
            .text("memory", "false")
            .text("quiesce", if new.quiesce { "true" } else { "false" });
        let result = self.run(&call, CREATION).await?;
        let made = result.as_ref().and_then(Element::reference);
        let made = made.ok_or_else(|| self.client.incomplete(call.method(), "the snapshot it made"))?;
        let unread = |why| OperationError::Unread { snapshot: made.value.clone(), why: Box::new(why) };
        self.read_snapshot(&made.value).await.map_err(unread)
    }

    /// Reads a snapshot that exists.
    pub async fn read_snapshot(&self, moref: &str) -> Result<Snapshot, OperationError> {
        let object = self.told(&snapshot_of(moref), &[HARDWARE]).await?;
        let hardware = object.get(HARDWARE).ok_or_else(|| self.untold("the hardware", &object, HARDWARE))?;
        let disks = disks(hardware).ok_or_else(|| self.untold("the key of a disk", &object, HARDWARE))?;
        Ok(Snapshot { moref: moref.to_owned(), disks })
    }

    /// All snapshots of a machine, newest last.
    pub async fn snapshots(&self, moref: &str) -> Result<Vec<FoundSnapshot>, OperationError> {
        let object = self.told(&operations::machine(moref), &["snapshot"]).await?;
        match (object.get("snapshot"), object.why_missing("snapshot")) {
            (Some(info), _) => Ok(found(info)),
            // Not the same as a machine without snapshots.
            (None, Some(_)) => Err(self.untold("the snapshots", &object, "snapshot")),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Removes a snapshot and waits until its file is merged into the others, which may take hours. Those made after it
    /// stay. One that is gone already is well.
    pub async fn remove_snapshot(&self, snapshot: &str, limit: Duration) -> Result<(), OperationError> {
        match self.run(&removal(snapshot), limit).await.map(drop) {
            Err(error) if error.is_gone() => {
                tracing::info!("snapshot {snapshot} is gone already");
                Ok(())
            }
            result => result,
        }
    }

    /// Begins to remove a snapshot and gives the task, for [`Vsphere::wait_for`]. The machine may run meanwhile.
    pub async fn begin_to_remove_snapshot(&self, snapshot: &str) -> Result<Reference, OperationError> {
        Ok(task::begin(&self.client, &removal(snapshot)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::vsphere::soap::{Answer, parse};

    fn element(inside: &str) -> Element {
        let text = format!("<Envelope xmlns:xsi='x'><Body><val>{inside}</val></Body></Envelope>");
        let Answer::Response(element) = parse(text.as_bytes()).unwrap() else { panic!("a fault") };
        element
    }

    fn tree(kind: &str, id: u32, name: &str, inside: &str) -> String {
        format!(
            "<{kind}><snapshot type='VirtualMachineSnapshot'>snapshot-{id}</snapshot><name>{name}</name><description>of \
             {id}</description><id>{id}</id>{inside}</{kind}>"
        )
    }

    /// A tree with branches: every snapshot once, the newest last, wherever it hangs.
    #[test]
    fn all_snapshots_of_a_tree_are_found_newest_last() {
        let old = tree("childSnapshotList", 4, "50%25 %2f", "") + &tree("childSnapshotList", 2, "b", "");
        let info = tree("rootSnapshotList", 1, "a", &old)
            + &tree("rootSnapshotList", 3, "c", &tree("childSnapshotList", 5, "e", ""));
        let found = found(&element(&info));
        let told: Vec<_> = found
            .iter()
            .map(|found| (found.moref.as_str(), found.name.as_str(), found.has_children))
            .collect();
        assert_eq!(
            told,
            [
                ("snapshot-1", "a", true),
                ("snapshot-2", "b", false),
                ("snapshot-3", "c", true),
                ("snapshot-4", "50% /", false),
                ("snapshot-5", "e", false),
            ]
        );
        assert_eq!(found[3].description, "of 4");
        assert_eq!(super::found(&element("")), []);
    }

    /// A disk is known by its key, in the next snapshot too: one without is not guessed at.
    #[test]
    fn disks_of_a_snapshot_have_keys_and_change_ids() {
        let disk = |key: &str, inside: &str| {
            format!(
                "<device xsi:type='VirtualDisk'>{key}<backing xsi:type='VirtualDiskFlatVer2BackingInfo'>\
                 <fileName>[s] a/a.vmdk</fileName>{inside}</backing><capacityInKB>4</capacityInKB></device>"
            )
        };
        let two = disk("<key>2000</key>", "<uuid>u</uuid><changeId>52 ab/3</changeId>")
            + &disk("<key>2001</key>", "");
        let disks = super::disks(&element(&two)).unwrap();
        let first = SnapshotDisk {
            key: 2000,
            uuid: Some("u".to_owned()),
            size: Some(4096),
            file: "[s] a/a.vmdk".to_owned(),
            change_id: Some("52 ab/3".to_owned()),
        };
        let second = SnapshotDisk { key: 2001, uuid: None, change_id: None, ..first.clone() };
        assert_eq!(disks, [first, second]);
        assert_eq!(super::disks(&element(&disk("", ""))), None);
        assert_eq!(super::disks(&element(&disk("<key>x</key>", ""))), None);
        assert_eq!(super::disks(&element("")), Some(Vec::new()));
    }
}

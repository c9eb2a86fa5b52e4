//! What a state says of copied disks, against what the disks hold, computed here from the source's own content.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Texts of a job and of a disk, in the order in which they may come (contract.md 3.4, 3.5).
const JOB: [&str; 4] =
    ["Preparing", "Pre-copy #0 (last)", "Starting virt-v2v", "Finishing (committing overlays)"];
const DISK: [&str; 7] =
    ["Prepared", "Created", "Copying (getting block stats)", "Copying", "Copied", "Committing", "Committed"];

/// BLAKE3 over the BLAKE3 of each 4 MiB of a raw disk.
pub fn checksum(content: &Path) -> String {
    let mut disk = blake3::Hasher::new();
    for chunk in fs::read(content).unwrap().chunks(4 << 20) {
        disk.update(blake3::hash(chunk).as_bytes());
    }
    format!("blake3-4MiB:{}", disk.finalize().to_hex())
}

/// A disk as it must be shown once it is copied.
pub struct Expected<'a> {
    pub path: String,
    /// The end of it; what is before is the source's business.
    pub absolute_path: String,
    /// As the source labels it.
    pub label: &'a str,
    /// Whether the source tells where the disk has no data.
    pub maps: bool,
    /// The same disk, raw, read by nobody but us.
    pub content: &'a Path,
}

/// The keys of disk `index` in a state that was written after its copy: names, sizes, its one round, checksum.
pub fn assert_copied(state: &Value, index: usize, expected: &Expected<'_>) {
    let disk = &state["disks"][index];
    let Expected { path, absolute_path, label, maps, content } = expected;
    assert_eq!(disk["path"], json!(path), "{disk:#}");
    let absolute = disk["absolute_path"].as_str().unwrap();
    assert!(absolute.starts_with('/') && absolute.ends_with(absolute_path), "{disk:#}");
    assert_eq!(disk["label"], json!(label), "{disk:#}");
    let size = fs::metadata(content).unwrap().len();
    assert_eq!((&disk["size"], &disk["progress"]), (&json!(size), &json!(100.0)), "{disk:#}");
    let (copied, to_copy) = (disk["copied"].as_u64().unwrap(), disk["to_copy"].as_u64().unwrap());
    assert_eq!(copied, to_copy, "{disk:#}");
    assert!(copied > 0 && (copied < size || !maps && copied == size), "only data are copied: {disk:#}");
    let [round] = disk["copies"].as_array().unwrap().as_slice() else { panic!("not one round: {disk:#}") };
    let began = round["start_time"].as_f64().unwrap();
    assert!(began > 1.7e9 && began <= round["end_time"].as_f64().unwrap(), "{round:#}");
    let mut round = round.clone();
    for time in ["start_time", "end_time"] {
        round.as_object_mut().unwrap().remove(time);
    }
    let expected =
        json!({"change_id": "*", "path": path, "copied": copied, "to_copy": to_copy, "status": "Copied"});
    assert_eq!(round, expected);
    assert_eq!(disk["checksum"], json!(checksum(content)), "{disk:#}");
}

/// The texts that a client saw, each once.
#[derive(Default)]
pub struct Seen {
    job: Vec<String>,
    disks: Vec<Vec<String>>,
}

impl Seen {
    /// To be shown every state.
    pub fn look(&mut self, state: &Value) {
        push(&mut self.job, &state["status"]);
        for (index, disk) in state["disks"].as_array().into_iter().flatten().enumerate() {
            self.disks.resize_with(self.disks.len().max(index + 1), Vec::new);
            push(&mut self.disks[index], &disk["status"]);
        }
    }

    /// All texts were known ones in their order, and these among them: the others may be too short to be seen.
    pub fn assert_in_order(&self, job: &[&str], disks: usize, disk: &[&str]) {
        in_order(&self.job, &JOB, job);
        assert_eq!(self.disks.len(), disks);
        self.disks.iter().for_each(|seen| in_order(seen, &DISK, disk));
    }

    /// This text of the job was not shown.
    pub fn assert_never(&self, text: &str) {
        assert!(!self.job.iter().any(|seen| seen == text), "{text:?} was shown: {:?}", self.job);
    }
}

fn push(seen: &mut Vec<String>, text: &Value) {
    if let Some(text) = text.as_str()
        && seen.last().is_none_or(|last| last != text)
    {
        seen.push(text.to_owned());
    }
}

fn in_order(seen: &[String], order: &[&str], wanted: &[&str]) {
    let mut left = order.iter();
    for text in seen {
        assert!(left.any(|known| known == text), "{text:?} is unknown or in the wrong place: {seen:?}");
    }
    for text in wanted {
        assert!(seen.iter().any(|seen| seen == text), "{text:?} was not shown: {seen:?}");
    }
}

//! What a job has changed on the machine it migrates, read from its journal: the snapshots, the change tracking and the
//! power that must be put back. Pure.
//!
//! Whoever has credentials puts it back ([`crate::source::vsphere::restore`]): the worker at the end of every job, or
//! `virt-v2v-wrapper cleanup` when all processes of a job were killed. Local files are [`crate::undo`]'s.

use crate::journal::Entry;

/// What is left on the source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The machine, as soon as anything of it was to be changed.
    pub machine: Option<String>,
    /// Names of snapshots that may be there.
    pub snapshots: Vec<String>,
    /// Change tracking, which was off, may be on.
    pub tracking: bool,
    /// The machine, which ran, may be off.
    pub switched_off: bool,
}

impl Footprint {
    /// Reads it from a journal.
    pub fn of(entries: &[Entry]) -> Self {
        let mut left = Self::default();
        for entry in entries {
            match entry {
                Entry::Machine { moref } => left.machine = Some(moref.clone()),
                Entry::TrackingOn => left.tracking = true,
                Entry::TrackingOff => left.tracking = false,
                Entry::Snapshot { name } if !left.snapshots.contains(name) => {
                    left.snapshots.push(name.clone())
                }
                Entry::SnapshotGone { name } => left.snapshots.retain(|left| left != name),
                Entry::SwitchedOff => left.switched_off = true,
                Entry::SwitchedOn => left.switched_off = false,
                // Its journal speaks of it now.
                Entry::ResumedBy { .. } => left = Self::default(),
                _ => {}
            }
        }
        left
    }

    /// The entries from which another job's journal says the same.
    pub fn entries(&self) -> Vec<Entry> {
        let Some(moref) = &self.machine else { return Vec::new() };
        let mut entries = vec![Entry::Machine { moref: moref.clone() }];
        entries.extend(self.tracking.then_some(Entry::TrackingOn));
        entries.extend(self.snapshots.iter().map(|name| Entry::Snapshot { name: name.clone() }));
        entries.extend(self.switched_off.then_some(Entry::SwitchedOff));
        entries
    }

    /// Is the source as it was found?
    pub fn is_clean(&self) -> bool {
        !self.tracking && !self.switched_off && self.snapshots.is_empty()
    }

    /// What is to be put back: a machine that was migrated stays off.
    pub fn after(mut self, succeeded: bool) -> Self {
        self.switched_off &= !succeeded;
        self
    }
}

/// As a part of a sentence: `snapshot "x", changed block tracking`.
impl std::fmt::Display for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let snapshots = self.snapshots.iter().map(|name| format!("the snapshot {name:?}"));
        let tracking = self.tracking.then(|| "changed block tracking switched on".to_owned());
        let off = self.switched_off.then(|| "the machine switched off".to_owned());
        let parts: Vec<String> = snapshots.chain(tracking).chain(off).collect();
        match parts.split_last() {
            None => f.write_str("nothing"),
            Some((last, [])) => f.write_str(last),
            Some((last, first)) => write!(f, "{} and {last}", first.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str) -> Entry {
        Entry::Snapshot { name: name.into() }
    }

    fn gone(name: &str) -> Entry {
        Entry::SnapshotGone { name: name.into() }
    }

    #[test]
    fn what_was_begun_and_not_put_back_is_left() {
        let machine = Entry::Machine { moref: "vm-1".into() };
        for (entries, left, clean) in [
            (vec![], "nothing", true),
            (vec![machine.clone()], "nothing", true),
            (vec![machine.clone(), Entry::TrackingOn], "changed block tracking switched on", false),
            (vec![machine.clone(), Entry::TrackingOn, Entry::TrackingOff], "nothing", true),
            (
                vec![machine.clone(), snapshot("a"), gone("a"), snapshot("b"), snapshot("c"), gone("b")],
                "the snapshot \"c\"",
                false,
            ),
            (
                vec![machine.clone(), Entry::TrackingOn, snapshot("a"), Entry::Cutover, Entry::SwitchedOff],
                "the snapshot \"a\", changed block tracking switched on and the machine switched off",
                false,
            ),
            (
                vec![machine.clone(), Entry::SwitchedOff, Entry::SwitchingOn],
                "the machine switched off",
                false,
            ),
            (
                vec![machine.clone(), Entry::SwitchedOff, Entry::SwitchingOn, Entry::SwitchedOn],
                "nothing",
                true,
            ),
            (vec![machine, Entry::TrackingOn, Entry::ResumedBy { tag: "t".into() }], "nothing", true),
        ] {
            let footprint = Footprint::of(&entries);
            assert_eq!((footprint.to_string().as_str(), footprint.is_clean()), (left, clean), "{entries:?}");
            assert_eq!(Footprint::of(&footprint.entries()), footprint, "{entries:?}");
        }
    }

    #[test]
    fn success_leaves_the_machine_off_and_nothing_else() {
        let entries =
            [Entry::Machine { moref: "vm-1".into() }, Entry::TrackingOn, snapshot("a"), Entry::SwitchedOff];
        let all = Footprint::of(&entries);
        assert!(all.switched_off && all.clone().after(false) == all);
        let delivered = all.clone().after(true);
        assert_eq!(delivered, Footprint { switched_off: false, ..all });
    }
}

//! What a round copies. Values only.

use crate::extent::Extents;

/// What a round copies of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// All that the ledger does not have.
    Missing,
    /// The same, and what changed since the rest was copied.
    MissingAnd(Extents),
    /// What changed since the round before; the ledger has the whole disk.
    Changed(Extents),
    /// All that the source holds otherwise than the ledger says: nobody can tell what changed.
    Differing,
}

/// One round over all disks.
#[derive(Debug)]
pub(crate) struct Round {
    /// From 0.
    pub(crate) number: u32,
    /// The machine is off, and nothing is copied after it.
    pub(crate) last: bool,
    /// It follows other rounds of this process.
    pub(crate) follows: bool,
    /// Of a machine that runs: whether a disk changed since is known by its change id, not by a mark.
    pub(crate) warm: bool,
    /// For each disk: what is copied, and from which change id on; `*` is all of it.
    pub(crate) disks: Vec<(What, String)>,
}

impl Round {
    /// The only round of a machine that is off.
    pub(crate) fn only(disks: usize) -> Self {
        let all = vec![(What::Missing, "*".to_owned()); disks];
        Self { number: 0, last: true, follows: false, warm: false, disks: all }
    }
}

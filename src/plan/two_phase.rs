//! What a two-phase conversion is told. Values only; `general` and `warm` judge the keys.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Shutdown, Warm};

/// What a two-phase conversion is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwoPhase {
    /// virt-v2v-in-place converts the copies. Not from OpenStack to OpenStack: that guest has what it needs already.
    pub convert: bool,
    /// Copies are read back and compared.
    pub verify: bool,
    /// Tag of the interrupted job whose copies are taken over.
    pub resume: Option<String>,
    /// The programs it needs besides virt-v2v.
    pub programs: TwoPhasePrograms,
    /// The machine runs while it is copied; `None`: it is off.
    pub warm: Option<Warm>,
    /// Who switches it off before the last copy.
    pub shutdown: Shutdown,
    /// The change tracking that this program switched on stays on.
    pub keep_change_tracking: bool,
}

/// Programs of a two-phase conversion, absolute; empty where one was not found (then [`crate::start`] refuses).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwoPhasePrograms {
    /// Serves disks of hypervisors and raw files.
    pub nbdkit: PathBuf,
    /// Serves images that have a format, and writes qcow2.
    pub qemu_nbd: PathBuf,
    /// Makes images and commits overlays.
    pub qemu_img: PathBuf,
    /// Converts the copies.
    pub virt_v2v_in_place: PathBuf,
}

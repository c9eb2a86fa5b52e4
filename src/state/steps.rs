//! How far a job is when virt-v2v says that it begins a step. Pure.

/// Progress of the whole job when virt-v2v begins a step, by the beginning of its message
/// (virt-v2v-output.md 7, one-phase column). Between the copies' bounds the disks' own progress counts.
pub(super) const STEPS: [(&str, f64); 12] = [
    ("Setting up the source", 1.0),
    ("Opening the ", 3.0),
    ("Creating an overlay", 2.0),
    ("Inspecting the ", 5.0),
    ("Checking for sufficient", 6.0),
    ("Converting ", 6.0),
    ("Setting a random seed", 12.0),
    ("SELinux relabelling", 13.0),
    ("Mapping filesystem data", 14.0),
    ("Closing the ", 15.0),
    ("Creating output metadata", 99.0),
    ("Finishing off", 99.0),
];

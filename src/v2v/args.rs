//! virt-v2v's command line and environment (contract.md 4), from the plan and the capabilities. Pure.
//!
//! Secrets do not stand in the result: an argument that needs one refers to it by [`Arg::SecretFile`], and the
//! edge that spawns ([`crate::convert`]) puts a sealed memfd's path there.

use std::ffi::OsString;
use std::path::Path;

use secrecy::SecretString;

use crate::plan::Plan;
use crate::v2v::capabilities::Capabilities;

/// One argument or environment value.
#[derive(Debug, Clone)]
pub enum Arg {
    /// As it stands.
    Plain(OsString),
    /// `prefix` followed by the path of a file with exactly this content that only the tool can read.
    SecretFile {
        /// What stands before the path, e.g. `/dev/sda1:file:`; empty for a bare path.
        prefix: String,
        /// The content.
        content: SecretString,
    },
}

/// How virt-v2v is to be run.
#[derive(Debug, Clone, Default)]
pub struct CommandLine {
    /// Arguments after the program's name.
    pub args: Vec<Arg>,
    /// Added to (or replacing in) the caller's environment.
    pub env: Vec<(String, Arg)>,
}

/// Paths that only exist once the job runs.
#[derive(Debug, Clone, Copy)]
pub struct Paths<'a> {
    /// `--machine-readable=file:` of this.
    pub machine_readable_log: &'a Path,
    /// libvirt XML written for [`crate::plan::LocalSource::Disks`].
    pub libvirt_xml: &'a Path,
    /// `TMPDIR` and `VIRT_V2V_TMPDIR`.
    pub private_directory: &'a Path,
    /// Socket of the job's ssh-agent, for ssh sources.
    pub ssh_auth_sock: Option<&'a Path>,
}

/// The command line for a one-phase conversion.
pub fn one_phase(_plan: &Plan, _capabilities: &Capabilities, _paths: Paths<'_>) -> CommandLine {
    CommandLine::default()
}

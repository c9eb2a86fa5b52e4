//! The network limit of a virt-v2v that copies itself: its `--bandwidth-file`, which it reads while it runs.
//!
//! The number in it is **bits** per second (virt-v2v(1)), handed through to nbdkit's rate filter, which looks at the
//! file before every read and takes 0 for no limit (nbdkit 1.16 and later). An absent file changes nothing.
//! Used by [`super::control`]; the option itself is [`crate::v2v::args`]'s.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::Rate;
use crate::plan::{Plan, Source};
use crate::v2v::capabilities::Capabilities;

/// The limit could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}")]
pub struct RateFileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// Why virt-v2v cannot limit the network of a job; said when a limit is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRateFile {
    /// Neither the capability nor, since it was removed after 2.13.3 (virt-v2v-output.md 9), the option.
    #[error("this virt-v2v has no --bandwidth-file; two_phase copies the disks with a limit")]
    Capability,
    /// virt-v2v(1): the option is silently ignored for other inputs.
    #[error("virt-v2v limits only what it reads from VMware, and this job reads files of this host")]
    LocalSource,
    /// [`Plan::limits_expected`].
    #[error(
        "virt-v2v takes a limit only if it was started for one: put \"throttling\": {{}} into the document to be able to \
         set limits later"
    )]
    NotExpected,
}

/// Where the file of a job is, below its private directory, or why it has none. Pure.
pub fn path(plan: &Plan, capabilities: &Capabilities, private: &Path) -> Result<PathBuf, NoRateFile> {
    match &plan.source {
        // virt-v2v does not even run from OpenStack to OpenStack.
        Source::Local(_) | Source::Openstack { .. } => Err(NoRateFile::LocalSource),
        Source::Vddk { .. } | Source::Ssh { .. } if !capabilities.has("bandwidth-option") => {
            Err(NoRateFile::Capability)
        }
        Source::Vddk { .. } | Source::Ssh { .. } if !plan.limits_expected => Err(NoRateFile::NotExpected),
        Source::Vddk { .. } | Source::Ssh { .. } => Ok(private.join("bandwidth")),
    }
}

/// Writes the limit; a reader sees the old one or the new one.
pub fn write(path: &Path, rate: Rate) -> Result<(), RateFileError> {
    let error = |source| RateFileError { path: path.to_owned(), source };
    let bits = rate.bytes_per_second().map_or(0, |rate| rate.get().saturating_mul(8).min(i64::MAX as u64));
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(error)?;
    writeln!(file, "{bits}").map_err(error)?;
    // nbdkit reads it as the user who runs it, who is this one: 0600 is right.
    file.persist(path).map_err(|persist| error(persist.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_bits_and_no_limit_is_zero() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bandwidth");
        for (limit, content) in [
            ("1048576", "8388608\n"),
            ("unlimited", "0\n"),
            ("1", "8\n"),
            ("18446744073709551615", "9223372036854775807\n"),
        ] {
            write(&path, Rate::parse(limit).unwrap()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "{limit}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
        let error = write(&directory.path().join("gone/bandwidth"), Rate::Unlimited).unwrap_err();
        assert!(error.to_string().contains("gone/bandwidth"), "{error}");
    }
}

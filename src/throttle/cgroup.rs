//! The processor limit: a cgroup (version 2) below the worker's own, with the worker and all its tools in it.
//!
//! The worker moves itself in, so that tools started later are born there, then what runs already. Its own cgroup is
//! seldom empty (the client's session is in it), so the new one is made *threaded*, as the kernel wants it where
//! processes and children compete (Documentation/admin-guide/cgroup-v2.rst, "Threads"). Nothing is moved out of the
//! unit or session it was started in, and an existing cgroup only learns to pass `cpu` on.
//!
//! It is made when the first limit is asked for and removed when the job ends: by the worker, the supervisor or the next
//! start, from the journal ([`crate::undo`]). Whether a host lets us is found out by trying; what refuses is told.
//! Used by [`super::control`].

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Cpu;

/// Where the tree is mounted, on every host that has version 2 alone.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The period of the limit in microseconds, the kernel's default.
const PERIOD: u64 = 100_000;

/// Why the processors cannot be limited here.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Version 1, or a mixture in which version 2 has no controllers.
    #[error(
        "it takes cgroup version 2 with the cpu controller, and {path} lists none (this host may use version 1)"
    )]
    NoController {
        /// `cgroup.controllers` of the own cgroup.
        path: PathBuf,
    },
    /// The process is in no cgroup of version 2.
    #[error("it takes cgroup version 2, and this host has only version 1")]
    NoCgroup,
    /// Somebody made what was to be made.
    #[error("{path} is there already: somebody else made it")]
    Exists {
        /// The cgroup.
        path: PathBuf,
    },
    /// The kernel, or whoever manages the tree, refused.
    #[error("{path}: {source}")]
    Refused {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A cgroup of one job.
#[derive(Debug)]
pub struct Cgroup {
    own: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// Names the cgroup of a job and makes nothing. `root` is where the tree is mounted, `membership` the text of
    /// `/proc/self/cgroup`.
    pub fn new(root: &Path, membership: &str, tag: &str) -> Result<Self, CgroupError> {
        let own = membership.lines().find_map(|line| line.strip_prefix("0::/"));
        let own = root.join(own.ok_or(CgroupError::NoCgroup)?);
        let controllers = own.join("cgroup.controllers");
        if !lists_cpu(&controllers) {
            return Err(CgroupError::NoController { path: controllers });
        }
        let path = own.join(format!("virt-v2v-{tag}"));
        if path.symlink_metadata().is_ok() {
            return Err(CgroupError::Exists { path });
        }
        Ok(Self { own, path })
    }

    /// The directory, for the journal: to be recorded before [`Self::create`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it. What is half made is taken back.
    pub fn create(&self) -> Result<(), CgroupError> {
        std::fs::create_dir(&self.path).map_err(|source| refused(&self.path, source))?;
        self.equip().inspect_err(|_| {
            // The reason is told; an empty cgroup that stays is the journal's.
            let _ = std::fs::remove_dir(&self.path);
        })
    }

    fn equip(&self) -> Result<(), CgroupError> {
        let passed_on = self.own.join("cgroup.subtree_control");
        if !lists_cpu(&passed_on) {
            write(&passed_on, "+cpu")?;
        }
        // A cgroup among processes; one below an empty cgroup, or below the root, is a `domain` and stays one.
        let kind = self.path.join("cgroup.type");
        if std::fs::read_to_string(&kind).is_ok_and(|kind| kind.trim() == "domain invalid") {
            write(&kind, "threaded")?;
        }
        Ok(())
    }

    /// Sets or lifts the limit.
    pub fn limit(&self, cpu: Cpu) -> Result<(), CgroupError> {
        let quota = match cpu {
            Cpu::Unlimited => "max".to_owned(),
            Cpu::Percent(percent) => (u64::from(percent.get()) * PERIOD / 100).to_string(),
        };
        write(&self.path.join("cpu.max"), &format!("{quota} {PERIOD}"))
    }

    /// Moves a process in; its children follow only if they are born later. One that ended meanwhile is no error.
    pub fn enter(&self, pid: i32) -> Result<(), CgroupError> {
        match write(&self.path.join("cgroup.procs"), &pid.to_string()) {
            Err(CgroupError::Refused { source, .. })
                if source.raw_os_error() == Some(Errno::ESRCH as i32) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

/// Removes a job's cgroup, this process out of it first. One that is not there is no error; one that still has
/// processes is.
pub fn remove(path: &Path) -> std::io::Result<()> {
    let Some(parent) = path.parent().filter(|_| path.symlink_metadata().is_ok()) else { return Ok(()) };
    if let (Ok(membership), Some(name)) = (membership(), path.file_name().and_then(|name| name.to_str()))
        && membership.lines().any(|line| line.starts_with("0::") && line.ends_with(&format!("/{name}")))
    {
        write(&parent.join("cgroup.procs"), &std::process::id().to_string())
            .map_err(std::io::Error::other)?;
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The cgroups of this process.
pub fn membership() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/self/cgroup")
}

fn lists_cpu(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|list| list.split_ascii_whitespace().any(|word| word == "cpu"))
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    // One write, as the kernel wants it. It makes no files there; where the tree is only played, this makes them.
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()))
        .map_err(|source| refused(path, source))
}

fn refused(path: &Path, source: std::io::Error) -> CgroupError {
    CgroupError::Refused { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    //! A directory stands in for the tree: it shows what is written where and in which order, and nothing of what a
    //! kernel would say to it.

    use std::num::NonZeroU32;

    use super::*;

    const MEMBERSHIP: &str = "1:cpu:/\n0::/system.slice/a.service\n";

    fn tree(controllers: &str, passed_on: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("system.slice/a.service");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("cgroup.controllers"), controllers).unwrap();
        std::fs::write(own.join("cgroup.subtree_control"), passed_on).unwrap();
        root
    }

    fn percent(percent: u32) -> Cpu {
        Cpu::Percent(NonZeroU32::new(percent).unwrap())
    }

    #[test]
    fn a_cgroup_is_made_below_the_own_one_and_holds_limit_and_processes() {
        let root = tree("memory cpu pids\n", "");
        let own = root.path().join("system.slice/a.service");
        let cgroup = Cgroup::new(root.path(), MEMBERSHIP, "t").unwrap();
        assert_eq!(cgroup.path(), own.join("virt-v2v-t"));
        assert!(!cgroup.path().exists(), "nothing is made before the journal knows");
        cgroup.create().unwrap();
        for cpu in [percent(50), percent(250), Cpu::Unlimited] {
            cgroup.limit(cpu).unwrap();
        }
        for pid in [10, 11] {
            cgroup.enter(pid).unwrap();
        }
        let content = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        assert_eq!(content(own.join("cgroup.subtree_control")), "+cpu\n");
        assert_eq!(content(own.join("virt-v2v-t/cpu.max")), "50000 100000\n250000 100000\nmax 100000\n");
        assert_eq!(content(own.join("virt-v2v-t/cgroup.procs")), "10\n11\n");
        assert!(!own.join("virt-v2v-t/cgroup.type").exists());
        assert!(matches!(Cgroup::new(root.path(), MEMBERSHIP, "t"), Err(CgroupError::Exists { .. })));
    }

    #[test]
    fn what_passes_cpu_on_already_is_left_alone() {
        let root = tree("cpu\n", "cpu\n");
        Cgroup::new(root.path(), MEMBERSHIP, "t").unwrap().create().unwrap();
        let passed_on = root.path().join("system.slice/a.service/cgroup.subtree_control");
        assert_eq!(std::fs::read_to_string(passed_on).unwrap(), "cpu\n");
    }

    #[test]
    fn a_host_that_cannot_says_why() {
        let root = tree("cpuset memory\n", "");
        let error = Cgroup::new(root.path(), MEMBERSHIP, "t").unwrap_err();
        assert!(error.to_string().contains("a.service/cgroup.controllers"), "{error}");
        let error = Cgroup::new(root.path(), "1:cpu:/\n", "t").unwrap_err();
        assert!(matches!(error, CgroupError::NoCgroup), "{error}");
        let root = tree("cpu\n", "");
        let passed_on = root.path().join("system.slice/a.service/cgroup.subtree_control");
        std::fs::remove_file(&passed_on).unwrap();
        std::fs::create_dir(&passed_on).unwrap();
        let cgroup = Cgroup::new(root.path(), MEMBERSHIP, "t").unwrap();
        let error = cgroup.create().unwrap_err();
        assert!(error.to_string().contains("cgroup.subtree_control: "), "{error}");
        assert!(!cgroup.path().exists(), "what is half made is taken back");
    }

    #[test]
    fn one_that_is_gone_is_removed_and_one_that_is_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("virt-v2v-t");
        remove(&path).unwrap();
        std::fs::create_dir_all(path.join("busy")).unwrap();
        assert!(remove(&path).is_err());
        std::fs::remove_dir(path.join("busy")).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}

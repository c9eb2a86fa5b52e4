//! The site configuration: what is true of a host and not of one migration (design.md "Jobs, files, configuration").
//!
//! Values only, but for two thin edges: [`Site::load`] reads the file, [`find_program`] looks into directories. The
//! program's start calls them once, before the fork; everything after it gets a [`Site`] or what the plan took of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::job::JobFiles;
use crate::json;

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_FILE: &str = "/etc/virt-v2v-wrapper/config.toml";

/// Environment variable that names another file.
pub const FILE_VARIABLE: &str = "VIRT_V2V_WRAPPER_CONFIG";

/// Searched when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Values of `patience_percent`.
const PATIENCE: std::ops::RangeInclusive<u32> = 1..=10_000;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The file cannot be read.
    #[error("cannot read the site configuration {file}: {error}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not TOML.
    #[error("site configuration {file}: line {line}: {sentence}")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// The parser's words.
        sentence: String,
    },
    /// A key nobody reads: most often a misspelt one, whose author believes that it works.
    #[error("site configuration {file}: unknown key {key}")]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// A value that cannot be used.
    #[error("site configuration {file}: {key}: {sentence}")]
    Value {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        sentence: String,
    },
    /// An ordinary user without a home directory.
    #[error(
        "no directory for state files: HOME and XDG_STATE_HOME are not set; set state_dir in {DEFAULT_FILE}"
    )]
    NoStateDirectory,
    /// A program of the configuration is not there.
    #[error("{name}: {path} of the site configuration is not an executable file")]
    NotExecutable {
        /// Name of the program.
        name: String,
        /// What the configuration says.
        path: PathBuf,
    },
    /// A program is nowhere.
    #[error("{name} is not installed: it is in no directory of PATH")]
    NoProgram {
        /// Name of the program.
        name: String,
    },
}

/// How files of a job are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A directory for each job.
    #[default]
    Job,
    /// The fixed names of the v2 container, one job at a time.
    Uci,
}

/// What `two_phase` and `warm` in a document mean here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TwoPhase {
    /// They are done, or refused with a reason.
    #[default]
    Honour,
    /// They are ignored, as every v1 did: clients of v1 hosts send them blindly (contract.md 0).
    Ignore,
}

/// The configuration, every key with its default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Site {
    /// `job` or `uci`.
    pub layout: Layout,
    /// Directory of state files; see [`Site::directories`] for the default.
    pub state_dir: Option<PathBuf>,
    /// Directory of logs.
    pub log_dir: Option<PathBuf>,
    /// Go to the background; the document's key wins.
    pub daemonize: bool,
    /// `honour` or `ignore`.
    pub two_phase: TwoPhase,
    /// Path of virt-v2v.
    pub virt_v2v: Option<PathBuf>,
    /// Path of virt-v2v-in-place.
    pub virt_v2v_in_place: Option<PathBuf>,
    /// Path of nbdkit.
    pub nbdkit: Option<PathBuf>,
    /// Directory of VMware's VDDK library.
    pub vddk_libdir: PathBuf,
    /// CA certificates of the clouds and, in two-phase conversions, of vSphere.
    pub ca_bundle: Option<PathBuf>,
    /// `VIRTIO_WIN` of virt-v2v.
    pub virtio_win: Option<PathBuf>,
    /// Parent of the jobs' private directories. `/var/tmp` for everyone: `/tmp` may be memory.
    pub tmp_dir: PathBuf,
    /// `LIBGUESTFS_BACKEND_SETTINGS` of virt-v2v, e.g. `force_tcg`.
    pub libguestfs_backend_settings: Option<String>,
    /// How long a two-phase job waits for what is slow or fails, in percent of the usual.
    pub patience_percent: u32,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            layout: Layout::Job,
            state_dir: None,
            log_dir: None,
            daemonize: true,
            two_phase: TwoPhase::Honour,
            virt_v2v: None,
            virt_v2v_in_place: None,
            nbdkit: None,
            vddk_libdir: "/opt/vmware-vix-disklib-distrib".into(),
            ca_bundle: None,
            virtio_win: None,
            tmp_dir: "/var/tmp".into(),
            libguestfs_backend_settings: None,
            patience_percent: 100,
        }
    }
}

impl Site {
    /// Reads the file that `VIRT_V2V_WRAPPER_CONFIG` names, or the default one. A file that does not exist means the
    /// defaults (design.md "Jobs, files, configuration").
    pub fn load(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Site, SiteError> {
        let named = env(FILE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let file = named.unwrap_or_else(|| DEFAULT_FILE.into());
        match std::fs::read_to_string(&file) {
            Ok(text) => Site::parse(&text, &file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Site::default()),
            Err(error) => Err(SiteError::Read { file, error }),
        }
    }

    /// A sentence when `VIRT_V2V_WRAPPER_CONFIG` names a file that does not exist: the defaults hold, and somebody who
    /// mistyped the name should read so.
    pub fn missing_file(env: &dyn Fn(&str) -> Option<OsString>) -> Option<String> {
        let named = env(FILE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)?;
        let missing = !named.exists();
        missing.then(|| {
            format!("{FILE_VARIABLE} names {}, which does not exist: the defaults hold", named.display())
        })
    }

    /// Reads a configuration; `file` is only named in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Site, SiteError> {
        let syntax = |error: &toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
            SiteError::Syntax { file: file.to_owned(), line, sentence: json::one_line(error.message(), 200) }
        };
        let mut unknown = None;
        let mut note = |path: serde_ignored::Path<'_>| {
            unknown.get_or_insert_with(|| path.to_string());
        };
        let toml = toml::Deserializer::parse(text).map_err(|error| syntax(&error))?;
        let result = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(toml, &mut note));
        let site: Site = result.map_err(|error| {
            let key = error.path().to_string();
            let sentence = json::sentence(error.inner().message());
            SiteError::Value { file: file.to_owned(), key, sentence }
        })?;
        if let Some(key) = unknown {
            return Err(SiteError::UnknownKey { file: file.to_owned(), key });
        }
        site.check(file)?;
        Ok(site)
    }

    /// Every path must be absolute: the daemon's working directory is not the caller's.
    fn check(&self, file: &Path) -> Result<(), SiteError> {
        let paths = [
            ("state_dir", self.state_dir.as_deref()),
            ("log_dir", self.log_dir.as_deref()),
            ("virt_v2v", self.virt_v2v.as_deref()),
            ("virt_v2v_in_place", self.virt_v2v_in_place.as_deref()),
            ("nbdkit", self.nbdkit.as_deref()),
            ("vddk_libdir", Some(&*self.vddk_libdir)),
            ("ca_bundle", self.ca_bundle.as_deref()),
            ("virtio_win", self.virtio_win.as_deref()),
            ("tmp_dir", Some(&*self.tmp_dir)),
        ];
        let value = |key: &str, sentence: String| {
            Err(SiteError::Value { file: file.to_owned(), key: key.to_owned(), sentence })
        };
        for (key, path) in paths {
            let Some(path) = path else { continue };
            if !path.is_absolute() {
                return value(
                    key,
                    format!("{} is not an absolute path", json::one_line(&path.to_string_lossy(), 200)),
                );
            }
            if path.as_os_str().as_encoded_bytes().contains(&0) {
                return value(key, "a path cannot hold a NUL character".to_owned());
            }
        }
        if !PATIENCE.contains(&self.patience_percent) {
            let (least, most) = (PATIENCE.start(), PATIENCE.end());
            return value(
                "patience_percent",
                format!("must be {least} to {most}, not {}", self.patience_percent),
            );
        }
        match &self.libguestfs_backend_settings {
            Some(settings) if settings.contains('\0') => {
                value("libguestfs_backend_settings", "must not contain a NUL character".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Where the files of jobs lie for this caller.
    pub fn directories(&self, caller: &Caller) -> Result<Directories, SiteError> {
        let (state, log) = match (self.layout, caller.uid) {
            (Layout::Uci, _) => ("/var/lib/uci".into(), "/var/log/uci".into()),
            (Layout::Job, 0) => ("/var/lib/virt-v2v-wrapper".into(), "/var/log/virt-v2v-wrapper".into()),
            // Relative values of XDG variables are to be ignored (XDG base directory specification 0.8).
            (Layout::Job, _) => {
                let xdg = caller.xdg_state_home.clone().filter(|path| path.is_absolute());
                let home = caller.home.clone().filter(|path| path.is_absolute());
                let own = xdg
                    .or_else(|| home.map(|home| home.join(".local/state")))
                    .map(|above| above.join("virt-v2v-wrapper"));
                let state = match (&self.state_dir, own) {
                    (Some(state), _) => state.clone(),
                    (None, Some(own)) => own,
                    (None, None) => return Err(SiteError::NoStateDirectory),
                };
                let log = state.join("log");
                (state, log)
            }
        };
        Ok(Directories {
            layout: self.layout,
            state: self.state_dir.clone().unwrap_or(state),
            log: self.log_dir.clone().unwrap_or(log),
        })
    }

    /// CA bundle of the oVirt API: the configured one, or where that generation's hosts had it (contract.md 1.4).
    pub fn ovirt_ca_bundle(&self) -> PathBuf {
        self.ca_bundle.clone().unwrap_or_else(|| match self.layout {
            Layout::Job => "/etc/pki/vdsm/certs/cacert.pem".into(),
            Layout::Uci => "/etc/pki/ca-trust/source/anchors/v2v-conversion-host-ca-bundle.pem".into(),
        })
    }
}

/// What the directories depend on besides the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
}

impl Caller {
    /// This process's.
    pub fn of_this_process() -> Self {
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            home: std::env::var_os("HOME").map(PathBuf::from),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME").map(PathBuf::from),
        }
    }
}

/// Directories of all jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    layout: Layout,
    state: PathBuf,
    log: PathBuf,
}

impl Directories {
    /// The directory with one directory for each job; `None` where there is one job at a time.
    pub fn jobs_directory(&self) -> Option<PathBuf> {
        (self.layout == Layout::Job).then(|| self.state.join("jobs"))
    }

    /// The directory above all state.
    pub fn state_directory(&self) -> &Path {
        &self.state
    }

    /// The jobs that have files here, running and finished, in no order.
    pub fn jobs(&self) -> Vec<JobFiles> {
        let Some(directory) = self.jobs_directory() else { return vec![self.job_files("uci")] };
        let Ok(listing) = std::fs::read_dir(directory) else { return Vec::new() };
        listing
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|tag| self.job_files(&tag))
            .collect()
    }

    /// The names of a job's files.
    pub fn job_files(&self, tag: &str) -> JobFiles {
        let (directory, log_directory) = match self.layout {
            Layout::Job => (self.state.join("jobs").join(tag), self.log.join(tag)),
            Layout::Uci => (self.state.clone(), self.log.clone()),
        };
        JobFiles { tag: tag.to_owned(), directory, log_directory }
    }
}

/// The absolute path of a program: the configured one, else the first in `path` (the value of `PATH`), else in
/// `extra_directories`.
pub fn find_program(
    configured: Option<&Path>,
    name: &str,
    extra_directories: &[&Path],
    path: Option<&OsStr>,
) -> Result<PathBuf, SiteError> {
    if let Some(program) = configured {
        return match is_executable(program) {
            true => Ok(program.to_owned()),
            false => Err(SiteError::NotExecutable { name: name.to_owned(), path: program.to_owned() }),
        };
    }
    std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH)))
        .chain(extra_directories.iter().map(|directory| directory.to_path_buf()))
        // A relative directory would mean another program after the daemon's change of directory.
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|program| is_executable(program))
        .ok_or_else(|| SiteError::NoProgram { name: name.to_owned() })
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests;

//! The LUKS vault: a file with keys of encrypted devices, by virtual machine (contract.md 1.5).
//!
//! An edge: it opens one file. What is checked is the open file, not its name, so nobody can put another one there
//! between check and reading. Called by [`crate::preflight`] before the fork.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use zeroize::Zeroizing;

use crate::json::{self, Anything, JsonError, Objects};
use crate::plan::{LuksKey, LuksVault};

/// Largest vault that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Why the keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Someone else could have written it. The text is the old program's, byte for byte.
    #[error("LUKS keys vault does'nt belong touser running virt-v2v-wrapper")]
    Owner,
    /// Mode bits for others.
    #[error("LUKS keys vault is accessible to others")]
    Others,
    /// Mode bits for the group.
    #[error("LUKS keys vault is accessible to group")]
    Group,
    /// A directory, a pipe, a device.
    #[error("LUKS keys vault {file} is not a regular file")]
    NotAFile {
        /// The vault.
        file: PathBuf,
    },
    /// The system does not give it.
    #[error("cannot read LUKS keys vault {file}: {error}")]
    Read {
        /// The vault.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// No vault is that large.
    #[error("LUKS keys vault {file} is larger than {} MiB", MAX_BYTES / 1024 / 1024)]
    TooLarge {
        /// The vault.
        file: PathBuf,
    },
    /// Not the JSON it should be.
    #[error("LUKS keys vault {file}: {error}")]
    Malformed {
        /// The vault.
        file: PathBuf,
        /// Where and what, without a value.
        error: JsonError,
    },
    /// A device that virt-v2v's `--key DEVICE:file:PATH` cannot name.
    #[error("LUKS keys vault {file}: {path}: a device must not be empty or contain : or control characters")]
    Device {
        /// The vault.
        file: PathBuf,
        /// The entry.
        path: String,
    },
}

/// The guest's keys and, when the document named a file that does not exist, a warning: that was always ignored.
pub fn read(vault: &LuksVault, uid: u32) -> Result<(Vec<LuksKey>, Option<String>), VaultError> {
    for path in &vault.paths {
        match open(path, uid)? {
            Some(file) => return Ok((keys(path, file, &vault.names)?, None)),
            None => continue,
        }
    }
    let missing = vault.explicit.then(|| vault.paths.first()).flatten();
    let warning =
        missing.map(|path| format!("luks_keys_vault {} does not exist: no keys are used", path.display()));
    Ok((Vec::new(), warning))
}

/// Opens and checks; `None` when there is no such file.
fn open(path: &Path, uid: u32) -> Result<Option<File>, VaultError> {
    // Without O_NONBLOCK a pipe would wait for a writer for ever.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let read_error = |error| VaultError::Read { file: path.to_owned(), error };
    let file = match opened {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => {
            // The usual reason that it cannot be opened is that it belongs to somebody else.
            let owned = std::fs::metadata(path).map_or(true, |data| data.uid() == uid);
            return Err(if owned { read_error(error) } else { VaultError::Owner });
        }
    };
    let data = file.metadata().map_err(read_error)?;
    if !data.is_file() {
        return Err(VaultError::NotAFile { file: path.to_owned() });
    }
    check(&data, uid)?;
    Ok(Some(file))
}

/// Owner, others, group: the contract's order.
fn check(data: &Metadata, uid: u32) -> Result<(), VaultError> {
    if data.uid() != uid {
        return Err(VaultError::Owner);
    }
    if data.mode() & 0o007 != 0 {
        return Err(VaultError::Others);
    }
    if data.mode() & 0o070 != 0 {
        return Err(VaultError::Group);
    }
    Ok(())
}

fn keys(path: &Path, file: File, names: &[String]) -> Result<Vec<LuksKey>, VaultError> {
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| VaultError::Read { file: path.to_owned(), error })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(VaultError::TooLarge { file: path.to_owned() });
    }
    let malformed = |error| VaultError::Malformed { file: path.to_owned(), error };
    let text = json::check(&bytes).map_err(malformed)?;
    let (name, entries) = json::read(Lookup { names }, text, &mut Vec::new()).map_err(malformed)?;
    entries
        .into_iter()
        .enumerate()
        .map(|(index, Entry { device, key })| {
            let place = |key: &str| json::one_line(&format!("{name}[{index}].{key}"), 200);
            if device.is_empty()
                || device.contains(|character: char| character == ':' || character.is_control())
            {
                return Err(VaultError::Device { file: path.to_owned(), path: place("device") });
            }
            if key.expose_secret().is_empty() {
                let sentence = "the key is empty".to_owned();
                return Err(malformed(JsonError::Shape { path: place("key"), sentence }));
            }
            Ok(LuksKey { device, key })
        })
        .collect()
}

/// One key of a guest.
#[derive(serde::Deserialize)]
struct Entry {
    device: String,
    key: SecretString,
}

/// Reads the entries of the first of `names` that the vault has. Other guests' entries are not looked into: one that
/// is broken must not stop this guest.
struct Lookup<'a> {
    names: &'a [String],
}

impl<'de> DeserializeSeed<'de> for Lookup<'_> {
    type Value = (String, Vec<Entry>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lookup<'_> {
    type Value = (String, Vec<Entry>);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object with the names of virtual machines")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut best = self.names.len();
        let mut found = (String::new(), Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            match self.names.iter().position(|name| *name == key) {
                Some(rank) if rank < best => {
                    best = rank;
                    found = (key, map.next_value_seed(Objects(std::marker::PhantomData))?);
                }
                _ => {
                    map.next_value::<Anything>()?;
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;

//! The document of a job that may be resumed, or cleaned up after, kept without its secrets: so that `virt-v2v-wrapper resume
//! <tag>` and `cleanup <tag>` need only these.
//!
//! An edge: called by [`crate::start`], before the fork. It lies beside the job's ledgers ([`JobFiles::copies`]).

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::job::{Job, JobFiles};
use crate::journal::{Entry, Journal, JournalError};
use crate::plan::problems::names_a_secret;
use crate::two_phase::earlier::{self, EarlierError};

/// Its name in the directory of the copies.
pub const FILE: &str = "document.json";
/// Shorter ones are in every text.
const SHORTEST_SECRET: usize = 4;

/// Why a document is not kept, or cannot be had again.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It could not be kept.
    #[error("cannot keep the document in {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The job cannot be resumed.
    #[error(transparent)]
    Earlier(#[from] EarlierError),
    /// There is none.
    #[error("resume: {path} is not there: send the document of job {tag} on stdin")]
    Missing {
        /// The tag.
        tag: String,
        /// The file.
        path: PathBuf,
    },
    /// What is on stdin is no object.
    #[error(
        "resume: on stdin goes a JSON object: the document of job {tag}, or those of its keys that are secret"
    )]
    NoObject {
        /// The tag.
        tag: String,
    },
    /// Secrets are not kept.
    #[error(
        "resume: job {tag} was told {keys}, and secrets are not kept: send a JSON object with these keys (or the whole \
         document) on stdin"
    )]
    Secrets {
        /// The tag.
        tag: String,
        /// Names of keys.
        keys: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Without what is secret.
    document: Map<String, Value>,
    /// Names of the keys that held something secret.
    secret: Vec<String>,
}

fn path(files: &JobFiles) -> PathBuf {
    files.copies().join(FILE)
}

/// Keeps the document of a job that begins.
pub fn keep(job: &Job, document: &[u8]) -> Result<(), KeptError> {
    let path = path(&job.files);
    let error = |source| KeptError::Write { path: path.clone(), source };
    let Ok(Value::Object(mut document)) = serde_json::from_slice(document) else { return Ok(()) };
    let secrets = job.plan.secrets();
    let secrets: Vec<&str> = secrets.iter().map(|secret| secret.expose_secret()).collect();
    let mut secret = Vec::new();
    document.retain(|key, value| {
        let hidden = holds_secret(key, value, &secrets);
        if hidden {
            secret.push(key.clone());
        }
        !hidden
    });
    let kept = serde_json::to_vec(&Kept { document, secret }).map_err(|source| error(source.into()))?;
    let directory = job.files.copies();
    Journal::open(&job.files.journal())?.record(&Entry::Copies { directory: directory.clone() })?;
    DirBuilder::new().mode(0o700).create(&directory).map_err(error)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(&kept).and_then(|()| file.sync_all())).map_err(error)
}

/// Is there a secret in a value, or below it? What is named like one is taken for one.
fn holds_secret(key: &str, value: &Value, secrets: &[&str]) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| holds_secret(key, value, secrets)),
        Value::Array(items) => items.iter().any(|value| holds_secret(key, value, secrets)),
        Value::Null => false,
        Value::String(text) => {
            let known = |secret: &&str| secret.len() >= SHORTEST_SECRET && text.contains(*secret);
            names_a_secret(key) || key == "ssh_key" || secrets.iter().any(known)
        }
        Value::Bool(_) | Value::Number(_) => names_a_secret(key),
    }
}

/// The document of an interrupted job with `given` (JSON, or nothing) put over it, and with `resume`.
pub fn complete(files: &JobFiles, given: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeptError> {
    let tag = || files.tag.clone();
    let given = match given.iter().all(u8::is_ascii_whitespace) {
        true => Map::new(),
        false => match serde_json::from_slice(given) {
            Ok(Value::Object(given)) => given,
            _ => return Err(KeptError::NoObject { tag: tag() }),
        },
    };
    let kept = std::fs::read(path(files)).ok().and_then(|kept| serde_json::from_slice::<Kept>(&kept).ok());
    let mut document = match kept {
        Some(Kept { document, secret }) => {
            let missing: Vec<&str> =
                secret.iter().filter(|key| !given.contains_key(*key)).map(String::as_str).collect();
            if !missing.is_empty() {
                return Err(KeptError::Secrets { tag: tag(), keys: missing.join(", ") });
            }
            document
        }
        // A whole document needs nothing kept.
        None if !given.is_empty() => Map::new(),
        None => {
            earlier::find(files)?;
            return Err(KeptError::Missing { tag: tag(), path: path(files) });
        }
    };
    document.extend(given);
    document.insert("resume".to_owned(), Value::String(tag()));
    Ok(Zeroizing::new(Value::Object(document).to_string().into_bytes()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_secret_is_kept_wherever_it_stands() {
        let secrets = ["hunter22", "abc"];
        for (key, value, secret) in [
            ("vmware_password", json!("x"), true),
            ("vmware_uri", json!("esx://root:hunter22@h"), true),
            ("osp_environment", json!({"os-auth_url": "u", "os-password": "p"}), true),
            ("network_mappings", json!([{"source": "a", "destination": "hunter22"}]), true),
            ("ssh_key", json!("-----BEGIN"), true),
            ("vm_name", json!("abc"), false),
            ("source_disks", json!(["/a", "/b"]), false),
            ("two_phase", json!(true), false),
        ] {
            assert_eq!(holds_secret(key, &value, &secrets), secret, "{key}");
        }
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_given_counts() {
        let directory = tempfile::tempdir().unwrap();
        let files = JobFiles {
            tag: "20260101T000000-1".into(),
            directory: directory.path().to_owned(),
            log_directory: directory.path().to_owned(),
        };
        let missing = complete(&files, b" ").unwrap_err().to_string();
        assert!(missing.contains("there is no job"), "{missing}");
        std::fs::create_dir(files.copies()).unwrap();
        let document = json!({"vm_name": "a", "verify": "off"}).as_object().unwrap().clone();
        let kept = Kept { document, secret: vec!["vmware_password".into()] };
        std::fs::write(path(&files), serde_json::to_vec(&kept).unwrap()).unwrap();
        let error = complete(&files, b"{\"verify\":\"full\"}").unwrap_err().to_string();
        assert!(error.contains("vmware_password"), "{error}");
        assert!(complete(&files, b"[]").is_err());
        let whole = complete(&files, b"{\"vmware_password\":\"p\",\"verify\":\"full\"}").unwrap();
        let whole: Value = serde_json::from_slice(&whole).unwrap();
        let expected =
            json!({"vm_name": "a", "verify": "full", "vmware_password": "p", "resume": "20260101T000000-1"});
        assert_eq!(whole, expected);
    }
}

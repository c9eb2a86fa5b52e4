//! What is wrong with a document, and what else was found while it was judged. Pure.
//!
//! Clients of the old wrapper see the first line (contract.md 2.3), people see all of them.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use crate::document::{Address, Document, Pairs, Scalar};
use crate::json::one_line;
use crate::uri;

/// Longest problem, in characters: problems repeat values of the document, which may be megabytes.
const MAX_LINE: usize = 1000;

/// Every problem of a document, one line each, none twice. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .lines.join("\n"))]
pub struct Problems {
    lines: Vec<String>,
}

impl Problems {
    /// From lines in their order.
    pub fn new(given: Vec<String>) -> Self {
        let mut lines: Vec<String> = Vec::new();
        for line in given.iter().map(|line| one_line(line, MAX_LINE)) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        if lines.is_empty() {
            lines.push("the document cannot be carried out".to_owned());
        }
        Self { lines }
    }

    /// A single problem.
    pub fn one(line: impl Into<String>) -> Self {
        Self::new(vec![line.into()])
    }

    /// What the old program would have said: the state file's `last_message`.
    pub fn first(&self) -> &str {
        &self.lines[0]
    }

    /// All of them, for stderr.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

/// What is collected while a document is judged.
#[derive(Default)]
pub(super) struct Findings {
    /// Problems the old program knew, in its order.
    pub contract: Vec<String>,
    /// Problems only this program knows; they come after the others.
    pub ours: Vec<String>,
    /// What the user should know although the job goes on.
    pub warnings: Vec<String>,
    /// Secrets that are not used but must not be shown.
    pub secrets: Vec<SecretString>,
}

impl Findings {
    /// A cloud's URL stands in errors, and in the journal, which is on disk: it may hold no user and no password. `whose` is the
    /// key that holds it.
    pub(super) fn auth_url(&mut self, whose: &str, key: &str, value: &SecretString) {
        let value = value.expose_secret();
        let authority = value.split_once("://").map_or(value, |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        if key == "auth-url" && authority.contains('@') {
            self.ours(format!(
                "{whose}: os-auth_url must not hold a user or a password: give os-username and os-password"
            ));
        }
    }

    /// Notes a problem of the contract.
    pub fn contract(&mut self, line: impl Into<String>) {
        self.contract.push(line.into());
    }

    /// Notes a mandatory key that is absent.
    pub fn missing(&mut self, key: &str) {
        self.contract.push(format!("Missing argument: {key}"));
    }

    /// Notes a problem of our own.
    pub fn ours(&mut self, line: String) {
        self.ours.push(line);
    }

    /// Notes a warning.
    pub fn warn(&mut self, line: String) {
        self.warnings.push(one_line(&line, MAX_LINE));
    }

    /// A text for argv or the environment: an empty one counts as absent, a NUL cannot be passed.
    pub fn text(&mut self, key: &str, value: Option<String>) -> Option<String> {
        let value = value.filter(|value| !value.is_empty())?;
        if value.contains('\0') {
            self.ours(format!("{key} must not contain a NUL character"));
        }
        Some(value)
    }

    /// The same, with a problem when it is absent.
    pub fn mandatory(&mut self, key: &str, value: Option<String>) -> Option<String> {
        let value = self.text(key, value);
        if value.is_none() {
            self.missing(key);
        }
        value
    }

    /// A path that means the same from any working directory.
    pub fn absolute(&mut self, key: &str, value: Option<String>) -> Option<PathBuf> {
        let value = self.text(key, value)?;
        if !value.starts_with('/') {
            self.ours(format!("{key} must be an absolute path: {value}"));
        }
        Some(value.into())
    }

    /// A URI without the password that may stand in it: argv is public.
    pub fn uri(&mut self, key: &str, value: Option<Address>) -> Option<String> {
        let value = self.text(key, value.map(|Address(value)| value))?;
        match uri::without_password(&value) {
            Ok((_, None)) => Some(value),
            Ok((without, Some(password))) => {
                self.warn(format!("{key}: the password inside the URI is not used"));
                self.secrets.extend(uri::percent_decode(&password).map(SecretString::from));
                self.secrets.push(password.into());
                Some(without)
            }
            Err(error) => {
                self.ours(format!("{key}: {error}"));
                // Not the value: it would appear in further problems.
                Some(String::new())
            }
        }
    }

    /// Takes the secrets that nothing took before.
    pub fn unused_secrets(&mut self, document: &mut Document) {
        self.secrets.extend(document.vmware_password.take());
        self.secrets.extend(document.rhv_password.take());
        if let Some(key) = document.ssh_key.take() {
            add_ssh_key(&key, &mut self.secrets);
        }
        for environment in [document.osp_environment.take(), document.osp_source_environment.take()] {
            let Some(Pairs(pairs)) = environment else { continue };
            let hidden = pairs.into_iter().filter(|(key, _)| names_a_secret(key));
            self.secrets.extend(hidden.map(|(_, Scalar(value))| value));
        }
    }
}

/// The secrets of an environment.
pub fn secrets_of(environment: &[(String, SecretString)]) -> impl Iterator<Item = SecretString> {
    environment.iter().filter(|(key, _)| names_a_secret(key)).map(|(_, value)| value.clone())
}

/// Is the value of this `osp_environment` key a secret? User names and URLs are not.
pub fn names_a_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "secret", "token", "passcode"].iter().any(|word| key.contains(word))
}

/// The key of a cloud's environment without its `os-` or `os_`.
pub(super) fn without_os(key: &str) -> Option<&str> {
    let prefix = key.get(..3)?;
    (prefix.eq_ignore_ascii_case("os-") || prefix.eq_ignore_ascii_case("os_")).then(|| &key[3..])
}

/// The key, and each of its lines: a tool may print one of them.
pub(super) fn add_ssh_key(key: &SecretString, secrets: &mut Vec<SecretString>) {
    let text = key.expose_secret();
    secrets.push(key.clone());
    secrets.extend(text.lines().map(str::trim).filter(|line| line.len() > 8).map(SecretString::from));
}

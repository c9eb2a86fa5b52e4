//! What goes wrong at an engine, as sentences: the contract's texts, the step, the engine's own words.

use reqwest::StatusCode;

use crate::http::{HttpError, NOTHING_SAID};

/// What went wrong at an engine.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OvirtError {
    /// No URL.
    #[error("rhv_url {url} is no URL of an engine, like https://engine.example.com/ovirt-engine/api")]
    Url {
        /// As it was given.
        url: String,
    },
    /// The engine does not know us.
    #[error(
        "Login failed: the engine at {url} does not let {user} in ({said}); check rhv_password, and the user in rhv_url"
    )]
    Login {
        /// Who.
        user: String,
        /// The engine.
        url: String,
        /// Its words.
        said: String,
    },
    /// Neither a token nor a refusal.
    #[error("Login failed: {url} gave no token")]
    NoToken {
        /// The service.
        url: String,
    },
    /// A request.
    #[error("{what}")]
    Request {
        /// The step.
        what: String,
        /// What came of it.
        source: HttpError,
    },
    /// An answer without what was asked for.
    #[error("{what}: the engine's answer does not say {missing}")]
    Answer {
        /// The step.
        what: String,
        /// What is not in it.
        missing: &'static str,
    },
    /// This is for a program that changes.
    #[error("Create VM failed: the journal knows {known} disks of {disks}")]
    Unrecorded {
        /// In the journal.
        known: usize,
        /// Of the guest.
        disks: usize,
    },
    /// contract.md 1.4.
    #[error("VM with the name \"{name}\" already exists on the destination")]
    Exists {
        /// Its name.
        name: String,
    },
    /// contract.md 1.4.
    #[error("Found {count} domains matching \"{storage}\"!")]
    Domains {
        /// How many.
        count: usize,
        /// `rhv_storage`.
        storage: String,
    },
    /// No such cluster.
    #[error("rhv_cluster: there is no cluster \"{name}\" at {url}")]
    NoCluster {
        /// Its name.
        name: String,
        /// The engine.
        url: String,
    },
    /// The machine could not use its disks.
    #[error(
        "rhv_storage: the storage domain \"{storage}\" does not belong to the data center of the cluster \"{cluster}\": \
         name two that go together"
    )]
    Apart {
        /// `rhv_storage`.
        storage: String,
        /// `rhv_cluster`.
        cluster: String,
    },
    /// It is full.
    #[error(
        "the storage domain \"{storage}\" has {} MiB free, and the disks of the guest take {} MiB: free space there, or name \
         another one (rhv_storage)",
        free >> 20,
        needed.div_ceil(1 << 20)
    )]
    NoRoom {
        /// `rhv_storage`.
        storage: String,
        /// Bytes.
        free: u64,
        /// Bytes.
        needed: u64,
    },
    /// contract.md 1.2.
    #[error("VM {id} is not running,\nhow can this script be running on a machine that is not up?")]
    HostNotUp {
        /// `conversion_host_uuid`.
        id: String,
    },
    /// contract.md 1.2.
    #[error("VM {id} not found,\nhow can this script be running on a machine that does not exist?")]
    NoHost {
        /// `conversion_host_uuid`.
        id: String,
    },
    /// The plan refuses such a document.
    #[error("Missing argument: conversion_host_uuid")]
    NoHostGiven,
    /// A network of the mappings.
    #[error(
        "network_mappings: {name} is neither a network of the cluster \"{cluster}\" with a vNIC profile nor a vNIC profile \
         of one"
    )]
    NoNetwork {
        /// `destination` of the mapping.
        name: String,
        /// `rhv_cluster`.
        cluster: String,
    },
    /// A source that does not tell.
    #[error("the size of disk {disk} is not known, so none can be made at the destination")]
    NoSize {
        /// From 1.
        disk: usize,
    },
    /// What was copied to it is gone, too.
    #[error(
        "disk {disk} ({id}), which the earlier job copied to, is not at the engine any more: start the job without resume"
    )]
    Lost {
        /// From 1.
        disk: usize,
        /// Its id.
        id: String,
    },
    /// Nobody stops a machine that somebody started.
    #[error("VM {id} of this job runs: stop it, then it can be removed")]
    Runs {
        /// Its id.
        id: String,
    },
    /// The engine says so.
    #[error("disk {id} is {status}: the engine could not make it; its events tell more")]
    Broken {
        /// Its id.
        id: String,
        /// E.g. `illegal`.
        status: String,
    },
    /// contract.md 6.2.
    #[error("Timed out waiting for disks to become unlocked")]
    StillLocked,
    /// contract.md 6.2.
    #[error(
        "Timed out waiting for disks to get plugged/noticed: {path} is not there; conversion_host_uuid must be the machine \
         that this program runs on"
    )]
    NotPlugged {
        /// The device.
        path: String,
    },
    /// It took too long.
    #[error("{what}: not done within {seconds} s")]
    Slow {
        /// The step.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
}

impl OvirtError {
    pub(super) fn request(what: &str, source: HttpError) -> Self {
        Self::Request { what: what.to_owned(), source }
    }

    fn http(&self) -> Option<&HttpError> {
        match self {
            Self::Request { source, .. } => Some(source),
            _ => None,
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.http().is_some_and(HttpError::is_not_found)
    }

    /// The engine may have done it all the same.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.http().is_some_and(HttpError::is_ambiguous)
    }

    /// A name with characters that the engine does not take. Its sentence is that of a translation file, so only its words
    /// count: `The given name contains special characters. Only ... are allowed.`
    pub(super) fn is_about_characters(&self) -> bool {
        let Some(HttpError::Refused { status, said, .. }) = self.http() else { return false };
        let refused = matches!(*status, StatusCode::BAD_REQUEST | StatusCode::CONFLICT);
        let said = said.to_lowercase();
        refused && said.contains("name") && said.contains("character")
    }

    /// It does not know what it was asked for, or does not tell it to us.
    pub(super) fn is_untold(&self) -> bool {
        let unknown = [
            StatusCode::BAD_REQUEST,
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::NOT_IMPLEMENTED,
            StatusCode::NOT_ACCEPTABLE,
        ];
        self.http().is_some_and(|error| match error {
            HttpError::NotJson { .. } => true,
            error => error.status().is_some_and(|status| unknown.contains(&status)),
        })
    }

    /// Something is locked: it goes away by itself. Every other refusal is 409, too, so the words must tell.
    pub(super) fn is_busy(&self) -> bool {
        let Some(HttpError::Refused { status: StatusCode::CONFLICT, said, .. }) = self.http() else {
            return false;
        };
        let said = said.to_lowercase();
        let words = ["locked", "in progress", "try again", "being ", "currently", "busy"];
        words.iter().any(|words| said.contains(words))
    }

    /// The engine itself says that it failed, not somebody between it and us.
    pub(super) fn is_failure(&self) -> bool {
        self.http().and_then(HttpError::status) == Some(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The engine answered, and would not.
    pub(super) fn is_refusal(&self) -> bool {
        self.http().is_some_and(|error| error.status().is_some())
    }

    /// A conflict without a word about it.
    pub(super) fn is_bare_conflict(&self) -> bool {
        let conflict = StatusCode::CONFLICT;
        matches!(self.http(), Some(HttpError::Refused { status, said, .. }) if *status == conflict && said == NOTHING_SAID)
    }
}

//! What a plan says of an engine, and what its URL says. Pure: values in, values out.

use secrecy::SecretString;

use super::OvirtError;
use crate::plan::{self, Plan};
use crate::uri::percent_decode;

/// The user where the URL names none (contract.md 1.4).
const USER: &str = "admin@internal";

/// What a plan says of an engine.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// `rhv_url`.
    pub url: &'a str,
    /// `rhv_password`.
    pub password: &'a SecretString,
    /// `rhv_cluster`.
    pub cluster: &'a str,
    /// `rhv_storage`.
    pub storage: &'a str,
    /// Authorities.
    pub cafile: &'a std::path::Path,
    /// `conversion_host_uuid`.
    pub conversion_host: Option<&'a str>,
}

impl<'a> Terms<'a> {
    /// `None` for a plan without an engine.
    pub fn of(plan: &'a Plan) -> Option<Self> {
        match &plan.destination {
            plan::Destination::Ovirt { url, password, cluster, storage, cafile, conversion_host } => {
                Some(Self {
                    url,
                    password,
                    cluster,
                    storage,
                    cafile,
                    conversion_host: conversion_host.as_deref(),
                })
            }
            _ => None,
        }
    }
}

/// Where the API and its login are, and who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Without a slash at its end, and without a user.
    pub api: String,
    /// What the SSO service lies below.
    pub base: String,
    /// `admin@internal`, or the URL's.
    pub user: String,
}

impl Address {
    /// Of `rhv_url`.
    pub fn of(given: &str) -> Result<Self, OvirtError> {
        let wrong = || OvirtError::Url { url: crate::json::one_line(given, 200) };
        let mut url = url::Url::parse(given).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
            return Err(wrong());
        }
        let user = percent_decode(url.username()).filter(|user| !user.is_empty());
        url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| wrong())?;
        url.set_query(None);
        url.set_fragment(None);
        let root = url.origin().ascii_serialization();
        let api = match url.path().trim_matches('/') {
            // Only the engine, or its web page.
            "" | "ovirt-engine" => format!("{root}/ovirt-engine/api"),
            _ => url.as_str().trim_end_matches('/').to_owned(),
        };
        let base = match api.strip_suffix("/api") {
            Some(base) => base.to_owned(),
            None => format!("{root}/ovirt-engine"),
        };
        Ok(Self { api, base, user: user.unwrap_or_else(|| USER.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_gives_the_api_the_login_and_the_user() {
        for (url, api, base, user) in [
            ("https://e/ovirt-engine/api", "https://e/ovirt-engine/api", "https://e/ovirt-engine", USER),
            (
                "https://e:8443/ovirt-engine/api/",
                "https://e:8443/ovirt-engine/api",
                "https://e:8443/ovirt-engine",
                USER,
            ),
            ("http://bob%40ad.x@e/api?x#y", "http://e/api", "http://e", "bob@ad.x"),
            ("https://admin@internal@e/api", "https://e/api", "https://e", "admin@internal"),
            ("https://bob@e", "https://e/ovirt-engine/api", "https://e/ovirt-engine", "bob"),
            (
                "https://e:8443/ovirt-engine/",
                "https://e:8443/ovirt-engine/api",
                "https://e:8443/ovirt-engine",
                USER,
            ),
            ("https://e/rhevm", "https://e/rhevm", "https://e/ovirt-engine", USER),
        ] {
            let at = Address::of(url).unwrap();
            assert_eq!((at.api.as_str(), at.base.as_str(), at.user.as_str()), (api, base, user), "{url}");
        }
        for url in ["engine", "ftp://e/api", "https://"] {
            assert!(Address::of(url).is_err(), "{url}");
        }
    }
}

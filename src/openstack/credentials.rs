//! Who logs in, where, and to which project: `osp_environment` read as `keystoneauth` reads it. Pure.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::CloudError;

/// Keystone's domain where nobody names one.
const DEFAULT_DOMAIN: &str = "default";

/// All that a login needs.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Keystone, ending in `/v3`.
    pub auth_url: String,
    method: Method,
    scope: Option<Value>,
    /// `os-region-name`.
    pub region: Option<String>,
    /// `public`, `internal` or `admin`.
    pub interface: String,
    /// `os-cacert`.
    pub cacert: Option<PathBuf>,
    /// `os-insecure`, or `os-verify` that is false.
    pub insecure: bool,
}

#[derive(Debug, Clone)]
enum Method {
    Password { user: Value, password: SecretString },
    ApplicationCredential { names: Value, secret: SecretString },
    Token(SecretString),
}

/// The pairs, the last of a key counting; empty ones are absent.
struct Pairs<'a>(&'a [(String, SecretString)]);

impl Pairs<'_> {
    fn secret(&self, keys: &[&str]) -> Option<SecretString> {
        keys.iter().find_map(|key| {
            let found = self.0.iter().rev().find(|(name, _)| name == key);
            found.map(|(_, value)| value.clone()).filter(|value| !value.expose_secret().is_empty())
        })
    }

    fn text(&self, keys: &[&str]) -> Option<String> {
        self.secret(keys).map(|value| value.expose_secret().trim().to_owned())
    }

    fn is(&self, key: &str, words: &[&str]) -> bool {
        self.text(&[key]).is_some_and(|value| words.iter().any(|word| value.eq_ignore_ascii_case(word)))
    }

    /// `{"id": ...}` or `{"name": ...}` of a domain.
    fn domain(&self, id: &str, name: &str) -> Value {
        if let Some(id) = self.text(&[id]) {
            return json!({ "id": id });
        }
        if let Some(name) = self.text(&[name]) {
            return json!({ "name": name });
        }
        // The command's `--os-default-domain` is an id.
        match (self.text(&["default-domain-id", "default-domain"]), self.text(&["default-domain-name"])) {
            (Some(id), _) => json!({ "id": id }),
            (None, Some(name)) => json!({ "name": name }),
            (None, None) => json!({ "id": DEFAULT_DOMAIN }),
        }
    }
}

impl Credentials {
    /// Keys are those of [`crate::plan::Destination::Openstack`]: without `os-`, lower case, `-` between words.
    pub fn read(environment: &[(String, SecretString)]) -> Result<Self, CloudError> {
        let pairs = Pairs(environment);
        let method = method(&pairs)?;
        let interface = pairs.text(&["interface", "endpoint-type"]).unwrap_or_default().to_ascii_lowercase();
        let interface = match interface.strip_suffix("url").unwrap_or(&interface) {
            "" => "public",
            interface => interface,
        };
        Ok(Self {
            auth_url: auth_url(&pairs)?,
            // Its project is its own.
            scope: match method {
                Method::ApplicationCredential { .. } => None,
                Method::Password { .. } | Method::Token(_) => scope(&pairs),
            },
            method,
            region: pairs.text(&["region-name", "region"]),
            interface: interface.to_owned(),
            cacert: pairs.text(&["cacert"]).map(PathBuf::from),
            insecure: pairs.is("insecure", &["true", "1", "yes", "on"])
                || pairs.is("verify", &["false", "0", "no", "off"]),
        })
    }

    /// Another project, by its id, instead of the one that the keys name.
    pub fn in_project(mut self, id: &str) -> Self {
        if !self.is_bound() {
            self.scope = Some(json!({ "project": { "id": id } }));
        }
        self
    }

    /// The id of the project that is asked for, where it is not asked for by its name.
    pub fn project_id(&self) -> Option<String> {
        self.scope.as_ref()?.get("project")?.get("id")?.as_str().map(str::to_owned)
    }

    /// Good for one project only, whatever is asked for?
    pub fn is_bound(&self) -> bool {
        matches!(self.method, Method::ApplicationCredential { .. })
    }

    /// What is sent to `/auth/tokens`. Holds the secret.
    pub fn body(&self) -> Value {
        let identity = match &self.method {
            Method::Password { user, password } => {
                let mut user = user.clone();
                user["password"] = json!(password.expose_secret());
                json!({ "methods": ["password"], "password": { "user": user } })
            }
            Method::ApplicationCredential { names, secret } => {
                let mut credential = names.clone();
                credential["secret"] = json!(secret.expose_secret());
                json!({ "methods": ["application_credential"], "application_credential": credential })
            }
            Method::Token(token) => json!({ "methods": ["token"], "token": { "id": token.expose_secret() } }),
        };
        match &self.scope {
            Some(scope) => json!({ "auth": { "identity": identity, "scope": scope } }),
            None => json!({ "auth": { "identity": identity } }),
        }
    }
}

fn wrong(sentence: impl Into<String>) -> CloudError {
    CloudError::Environment { sentence: sentence.into() }
}

fn auth_url(pairs: &Pairs<'_>) -> Result<String, CloudError> {
    let given = pairs.text(&["auth-url"]).ok_or_else(|| wrong("os-auth-url is missing"))?;
    let url =
        Url::parse(&given).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(mut url) = url else {
        return Err(wrong(format!("os-auth-url {given:?} is no http or https URL")));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "os-auth-url must not hold a user or a password: give os-username and os-password",
        ));
    }
    url.set_query(None);
    url.set_fragment(None);
    let old = "Keystone v2.0 is not spoken: give the URL of v3";
    if pairs.text(&["identity-api-version"]).is_some_and(|version| version.starts_with('2')) {
        return Err(wrong(format!("os-identity-api-version: {old}, and os-identity-api-version 3")));
    }
    let url = url.as_str().trim_end_matches('/');
    match url.rsplit('/').next() {
        Some("v3") => Ok(url.to_owned()),
        Some("v2.0" | "v2") => Err(wrong(format!("os-auth-url {url}: {old}"))),
        _ => Ok(format!("{url}/v3")),
    }
}

fn method(pairs: &Pairs<'_>) -> Result<Method, CloudError> {
    let user = || match (pairs.text(&["user-id"]), pairs.text(&["username", "user-name"])) {
        (Some(id), _) => Some(json!({ "id": id })),
        (None, Some(name)) => {
            let domain = pairs.domain("user-domain-id", "user-domain-name");
            Some(json!({ "name": name, "domain": domain }))
        }
        (None, None) => None,
    };
    let has = |key| pairs.secret(&[key]).is_some();
    let implied = if has("application-credential-id") || has("application-credential-name") {
        "v3applicationcredential"
    } else if has("token") && !has("password") {
        "v3token"
    } else {
        "v3password"
    };
    let kind = pairs.text(&["auth-type"]).unwrap_or_else(|| implied.to_owned());
    match kind.as_str() {
        "password" | "v3password" => {
            let password = pairs.secret(&["password"]).ok_or_else(|| wrong("os-password is missing"))?;
            let user = user().ok_or_else(|| wrong("os-username (or os-user-id) is missing"))?;
            Ok(Method::Password { user, password })
        }
        "v3applicationcredential" => {
            let secret = pairs
                .secret(&["application-credential-secret"])
                .ok_or_else(|| wrong("os-application-credential-secret is missing"))?;
            let id = pairs.text(&["application-credential-id"]);
            let name = pairs.text(&["application-credential-name"]);
            let names = match (id, name, user()) {
                (Some(id), _, _) => json!({ "id": id }),
                (None, Some(name), Some(user)) => json!({ "name": name, "user": user }),
                (None, Some(_), None) => {
                    return Err(wrong("os-application-credential-name needs os-username or os-user-id"));
                }
                (None, None, _) => return Err(wrong("os-application-credential-id is missing")),
            };
            Ok(Method::ApplicationCredential { names, secret })
        }
        "token" | "v3token" => {
            Ok(Method::Token(pairs.secret(&["token"]).ok_or_else(|| wrong("os-token is missing"))?))
        }
        other => Err(wrong(format!(
            "os-auth-type {other:?} is not spoken: use v3password, v3applicationcredential or v3token"
        ))),
    }
}

fn scope(pairs: &Pairs<'_>) -> Option<Value> {
    if let Some(trust) = pairs.text(&["trust-id"]) {
        return Some(json!({ "OS-TRUST:trust": { "id": trust } }));
    }
    if let Some(id) = pairs.text(&["project-id", "tenant-id"]) {
        return Some(json!({ "project": { "id": id } }));
    }
    if let Some(name) = pairs.text(&["project-name", "tenant-name"]) {
        let domain = pairs.domain("project-domain-id", "project-domain-name");
        return Some(json!({ "project": { "name": name, "domain": domain } }));
    }
    if let Some(id) = pairs.text(&["domain-id"]) {
        return Some(json!({ "domain": { "id": id } }));
    }
    pairs.text(&["domain-name"]).map(|name| json!({ "domain": { "name": name } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Credentials, CloudError> {
        let environment: Vec<_> = pairs.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect();
        Credentials::read(&environment)
    }

    const BASE: [(&str, &str); 3] = [("auth-url", "http://k:5000"), ("username", "u"), ("password", "p")];

    fn with(more: &[(&'static str, &'static str)]) -> Credentials {
        read(&[&BASE, more].concat()).unwrap()
    }

    #[test]
    fn the_url_is_that_of_version_3() {
        for (given, expected) in [
            ("http://k:5000", Ok("http://k:5000/v3")),
            ("http://k:5000/", Ok("http://k:5000/v3")),
            ("https://k/identity", Ok("https://k/identity/v3")),
            ("https://k/identity/v3/", Ok("https://k/identity/v3")),
            ("http://k:5000/v2.0", Err("Keystone v2.0 is not spoken")),
            ("ftp://k", Err("no http or https URL")),
            ("http://u:geheim@k", Err("must not hold a user or a password")),
        ] {
            let read = read(&[("auth-url", given), ("username", "u"), ("password", "p")]);
            match expected {
                Ok(url) => assert_eq!(read.unwrap().auth_url, url),
                Err(words) => {
                    let said = read.unwrap_err().to_string();
                    assert!(said.contains(words) && !said.contains("geheim"), "{said}");
                }
            }
        }
    }

    #[test]
    fn who_and_where_as_the_keys_say() {
        let user = json!({ "name": "u", "domain": { "id": "default" }, "password": "p" });
        assert_eq!(
            with(&[]).body(),
            json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": user } } } })
        );
        for (more, scope) in [
            (&[("project-id", "i"), ("project-name", "n")][..], json!({ "project": { "id": "i" } })),
            (&[("tenant-name", "n")], json!({ "project": { "name": "n", "domain": { "id": "default" } } })),
            (
                &[("project-name", "n"), ("project-domain-name", "D")],
                json!({ "project": { "name": "n", "domain": { "name": "D" } } }),
            ),
            (&[("domain-name", "D")], json!({ "domain": { "name": "D" } })),
            (&[("project-id", ""), ("domain-id", "d")], json!({ "domain": { "id": "d" } })),
        ] {
            assert_eq!(with(more).body()["auth"]["scope"], scope);
            let elsewhere = with(more).in_project("x").body();
            assert_eq!(elsewhere["auth"]["scope"], json!({ "project": { "id": "x" } }));
        }
        let domain = with(&[("default-domain", "d")]).body();
        assert_eq!(domain["auth"]["identity"]["password"]["user"]["domain"], json!({ "id": "d" }));
        let domain = with(&[("user-domain-name", "D")]).body();
        assert_eq!(domain["auth"]["identity"]["password"]["user"]["domain"], json!({ "name": "D" }));
    }

    #[test]
    fn an_application_credential_has_no_scope() {
        let pairs = [("auth-url", "http://k"), ("application-credential-secret", "s"), ("project-id", "p")];
        let by_id = read(&[&pairs[..], &[("application-credential-id", "i")]].concat()).unwrap();
        let expected = json!({ "auth": { "identity": {
            "methods": ["application_credential"], "application_credential": { "id": "i", "secret": "s" }
        } } });
        assert_eq!(by_id.clone().in_project("other").body(), expected);
        assert!(by_id.is_bound());
        let nobodys = read(&[&pairs[..], &[("application-credential-name", "n")]].concat()).unwrap_err();
        assert!(nobodys.to_string().contains("needs os-username"), "{nobodys}");
    }

    #[test]
    fn a_token_is_used_where_there_is_no_password() {
        let token = read(&[("auth-url", "http://k"), ("token", "t"), ("project-id", "p")]).unwrap().body();
        assert_eq!(token["auth"]["identity"], json!({ "methods": ["token"], "token": { "id": "t" } }));
        assert_eq!(with(&[("token", "t")]).body()["auth"]["identity"]["methods"], json!(["password"]));
    }

    #[test]
    fn what_is_missing_or_not_spoken_is_said() {
        for (pairs, words) in [
            (&[("username", "u"), ("password", "p")][..], "os-auth-url is missing"),
            (&[("auth-url", "http://k"), ("password", "p")], "os-username (or os-user-id) is missing"),
            (&[("auth-url", "http://k"), ("username", "u"), ("password", "")], "os-password is missing"),
            (
                &[("auth-url", "http://k"), ("auth-type", "v3oidcpassword")],
                "\"v3oidcpassword\" is not spoken",
            ),
            (
                &[
                    ("auth-url", "http://k"),
                    ("username", "u"),
                    ("password", "p"),
                    ("identity-api-version", "2"),
                ],
                "Keystone v2.0 is not spoken",
            ),
        ] {
            let said = read(pairs).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn interfaces_have_two_spellings() {
        for (given, expected) in
            [("publicURL", "public"), ("internal", "internal"), ("adminURL", "admin"), ("", "public")]
        {
            assert_eq!(with(&[("endpoint-type", given)]).interface, expected);
        }
        assert!(with(&[("insecure", "True")]).insecure && with(&[("verify", "False")]).insecure);
        assert!(!with(&[("insecure", "0")]).insecure);
    }
}

//! `osp_environment` as a clouds.yaml. virt-v2v calls `openstack` with an `--os-KEY=VALUE` for each `-oo os-KEY=VALUE`,
//! so the old wrapper's passwords stood in two command lines (contract.md 4). `--os-cloud=NAME` with the file in
//! `OS_CLIENT_CONFIG_FILE` says the same without showing it. The file is JSON, which is YAML. Pure.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

/// Name of the cloud in the file.
pub const CLOUD: &str = "v2v";

/// Pairs that belong under `auth`; all others stand beside it, where the SDK also looks for options of the
/// authentication plugin.
const AUTH: [&str; 22] = [
    "username",
    "user_id",
    "password",
    "passcode",
    "token",
    "trust_id",
    "system_scope",
    "project_id",
    "project_name",
    "project_domain_id",
    "project_domain_name",
    "tenant_id",
    "tenant_name",
    "user_domain_id",
    "user_domain_name",
    "default_domain_id",
    "default_domain_name",
    "domain_id",
    "domain_name",
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
];

/// The file's content. `environment` has the keys of [`crate::plan::Destination::Openstack`].
pub fn clouds_yaml(environment: &[(String, SecretString)], insecure: bool) -> SecretString {
    let mut auth = Map::new();
    let mut cloud = Map::new();
    for (key, value) in environment {
        let key = key.replace('-', "_");
        let value = value.expose_secret();
        match key.as_str() {
            // As a text, `verify` would be the path of a bundle of authorities.
            "insecure" => {
                cloud.insert("verify".to_owned(), Value::Bool(!is(value, &["true", "1", "yes", "on"])));
            }
            "verify" => {
                cloud.insert(key, Value::Bool(!is(value, &["false", "0", "no", "off"])));
            }
            "auth_url" => {
                auth.insert(key, Value::from(literal(value)));
            }
            name if AUTH.contains(&name) => {
                auth.insert(key, Value::from(value));
            }
            _ => {
                cloud.insert(key, Value::from(literal(value)));
            }
        }
    }
    if !cloud.contains_key("auth_type") {
        let implied = if auth.keys().any(|key| key.starts_with("application_credential_")) {
            Some("v3applicationcredential")
        } else if auth.contains_key("token") && !auth.contains_key("password") {
            Some("token")
        } else {
            None
        };
        cloud.extend(implied.map(|kind| ("auth_type".to_owned(), Value::from(kind))));
    }
    if insecure {
        cloud.insert("verify".to_owned(), Value::Bool(false));
    }
    cloud.insert("auth".to_owned(), Value::Object(auth));
    let file = serde_json::json!({ "clouds": { CLOUD: cloud } });
    yaml(&file.to_string()).into()
}

fn is(value: &str, words: &[&str]) -> bool {
    words.iter().any(|word| value.trim().eq_ignore_ascii_case(word))
}

/// openstacksdk runs Python's `str.format` over these values (openstack/config/loader.py, `magic_fixes` and `get_one`);
/// what stands under `auth` is taken as it is, but for `auth_url`.
fn literal(value: &str) -> String {
    value.replace('{', "{{").replace('}', "}}")
}

/// JSON leaves characters as they are that YAML only takes escaped (YAML 1.2, 5.1).
fn yaml(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pairs: &[(&str, &str)], insecure: bool) -> Value {
        let environment: Vec<_> = pairs.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect();
        let mut file: Value =
            serde_json::from_str(clouds_yaml(&environment, insecure).expose_secret()).unwrap();
        file["clouds"][CLOUD].take()
    }

    #[test]
    fn pairs_go_where_the_sdk_looks_for_them() {
        use serde_json::json;
        for (pairs, insecure, expected) in [
            (
                &[
                    ("auth-url", "http://k/v3"),
                    ("username", "u"),
                    ("password", "p"),
                    ("project-name", "n"),
                    ("user-domain-name", "d"),
                    ("region-name", "r"),
                    ("interface", "public"),
                    ("identity-api-version", "3"),
                    ("cacert", "/ca"),
                ][..],
                false,
                json!({
                    "auth": {"auth_url": "http://k/v3", "username": "u", "password": "p", "project_name": "n",
                             "user_domain_name": "d"},
                    "region_name": "r", "interface": "public", "identity_api_version": "3", "cacert": "/ca"
                }),
            ),
            (
                &[("application-credential-id", "i"), ("application-credential-secret", "s")],
                true,
                json!({
                    "auth": {"application_credential_id": "i", "application_credential_secret": "s"},
                    "auth_type": "v3applicationcredential", "verify": false
                }),
            ),
            (
                &[("auth-type", "v3oidcpassword"), ("application-credential-id", "i"), ("insecure", "True")],
                false,
                json!({"auth": {"application_credential_id": "i"}, "auth_type": "v3oidcpassword", "verify": false}),
            ),
            (&[("token", "t")], false, json!({"auth": {"token": "t"}, "auth_type": "token"})),
            (
                &[("auth-url", "http://k/{x}"), ("password", "{p}"), ("region-name", "{r")],
                false,
                json!({"auth": {"auth_url": "http://k/{{x}}", "password": "{p}"}, "region_name": "{{r"}),
            ),
            (&[("password", "a"), ("password", "b")], false, json!({"auth": {"password": "b"}})),
            (&[("verify", "False")], false, json!({"auth": {}, "verify": false})),
            (&[("verify", "true")], false, json!({"auth": {}, "verify": true})),
            (&[("insecure", "on")], false, json!({"auth": {}, "verify": false})),
        ] {
            assert_eq!(file(pairs, insecure), expected);
        }
    }

    #[test]
    fn any_password_survives() {
        let password = "\"'\\/: #\u{7f}\u{85}\u{2028}\u{feff}\n\té🔑";
        assert_eq!(file(&[("password", password)], false)["auth"]["password"], password);
        let text = clouds_yaml(&[("password".to_owned(), password.into())], false);
        assert!(!text.expose_secret().contains(['\u{7f}', '\u{85}', '\u{2028}', '\u{feff}', '\n']));
    }
}

//! Keystone v3: logins with a password or an application credential, and the catalogue.

use serde_json::{Value, json};

use super::super::http::{Answer, Request};
use super::World;
use super::state::{CREDENTIAL, Token, USER};

pub fn error(code: u16, message: &str) -> Value {
    json!({"error": {"code": code, "title": title(code), "message": message}})
}

fn title(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        500 => "Internal Server Error",
        _ => "Error",
    }
}

pub fn answer(world: &mut World, request: &Request, method: &str, path: &[&str]) -> Answer {
    match (method, path) {
        ("GET", []) => Answer::new(
            200,
            json!({"version": {"id": "v3.14", "status": "stable", "links": [], "media-types": []}}),
        ),
        ("POST", ["auth", "tokens"]) => login(world, &request.body["auth"]),
        ("GET", ["auth", "tokens"]) => match world.token(request) {
            Some(token) => Answer::new(200, json!({"token": shown(world, &token.project, "password")})),
            None => refused(),
        },
        ("DELETE", ["auth", "tokens"]) => {
            let subject = request.header("x-subject-token").unwrap_or_default().to_owned();
            world.tokens.retain(|token| token.id != subject);
            Answer::empty(204)
        }
        _ => Answer::new(404, error(404, "Could not find it.")),
    }
}

fn refused() -> Answer {
    Answer::new(401, error(401, "The request you have made requires authentication."))
}

fn login(world: &mut World, auth: &Value) -> Answer {
    let identity = &auth["identity"];
    let (project, kind) = match identity["methods"][0].as_str() {
        Some("password") => {
            let user = &identity["password"]["user"];
            let is_user = user["name"] == USER.0 || user["id"] == USER.0;
            if !is_user || user["password"] != USER.1 {
                return refused();
            }
            let scope = &auth["scope"]["project"];
            let given = scope["id"].as_str().or(scope["name"].as_str()).unwrap_or_default();
            (given.to_owned(), "password")
        }
        Some("application_credential") => {
            let credential = &identity["application_credential"];
            if credential["id"] != CREDENTIAL.0 || credential["secret"] != CREDENTIAL.1 {
                return refused();
            }
            // It has one project; another cannot be asked for.
            if !auth["scope"].is_null() {
                return Answer::new(401, error(401, "Application credentials cannot request a scope."));
            }
            ("p".to_owned(), "application_credential")
        }
        _ => return refused(),
    };
    if !world.projects.contains(&project) {
        return refused();
    }
    world.count += 1;
    let id = format!("token-{}-of-{project}", world.count);
    world.tokens.push(Token { id: id.clone(), project: project.clone() });
    let mut answer = Answer::new(201, json!({"token": shown(world, &project, kind)}));
    answer.headers.push(("X-Subject-Token".to_owned(), id));
    answer
}

fn shown(world: &World, project: &str, kind: &str) -> Value {
    let base = &world.base;
    let issued = now();
    let service = |name: &str, kind: &str, url: String| {
        let endpoint = |interface: &str| {
            json!({"id": format!("{name}-{interface}"), "interface": interface, "region_id": "RegionOne",
                "region": "RegionOne", "url": url})
        };
        let endpoints = ["public", "internal", "admin"].map(endpoint);
        json!({"id": name, "name": name, "type": kind, "endpoints": endpoints})
    };
    let domain = json!({"id": "default", "name": "Default"});
    json!({
        "methods": [kind],
        "user": {"domain": domain, "id": USER.0, "name": USER.0, "password_expires_at": null},
        "audit_ids": ["a"],
        "issued_at": stamp(issued),
        "expires_at": stamp(issued + world.token_life),
        "project": {"domain": domain, "id": project, "name": project},
        "is_domain": false,
        "roles": [{"id": "member", "name": "member"}],
        "catalog": [
            service("keystone", "identity", format!("{base}/v3")),
            service("cinderv3", "volumev3", format!("{base}/volume/v3/{project}")),
            service("nova", "compute", format!("{base}/compute/v2.1")),
            service("neutron", "network", format!("{base}/network")),
            service("glance", "image", format!("{base}/image/v2")),
        ],
    })
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs().cast_signed()
}

/// As keystone writes a moment.
fn stamp(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The civil calendar of days since 1970, by eras of 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.000000Z")
}

#[test]
fn a_moment_is_written_as_the_calendar_has_it() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_868_799, "2000-02-29T23:59:59.000000Z"),
        (1_795_283_294, "2026-11-21T17:48:14.000000Z"),
    ] {
        assert_eq!(stamp(seconds), text);
    }
}

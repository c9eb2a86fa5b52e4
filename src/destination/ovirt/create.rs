//! Making one thing at an engine exactly once, although an answer may be lost. An edge.
//!
//! A request whose answer is lost may have been done, or may still be: so the thing is looked for, a few times, before it is
//! asked for again. By what it is found is the caller's: its mark, or the place it is in.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::OvirtError;
use super::answer::{is_marked, is_odd, list, search, text};
use super::client::{Engine, Wait};
use crate::http::encoded;

/// How often it is asked for.
const TRIES: u32 = 3;
/// How long the thing is looked for whose creation was answered by nobody.
pub const LOST: Duration = Duration::from_secs(10);

/// The same where the engine said itself that it failed.
const FAILED: Duration = Duration::from_secs(2);

/// What is made, and where.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// The step, for errors: `Create VM failed`.
    pub what: &'a str,
    /// The collection.
    pub path: &'a str,
    /// The thing.
    pub body: &'a Value,
}

/// Makes it; gives it, as the engine shows it or as it was found.
pub async fn create(
    engine: &Engine,
    new: New<'_>,
    wait: &Wait,
    mut find: impl AsyncFnMut() -> Result<Option<Value>, OvirtError>,
) -> Result<Value, OvirtError> {
    let New { what, path, body } = new;
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match engine.patiently(what, Method::POST, path, Some(body), wait).await {
            Ok(made) if text(&made, "id").is_some() => return Ok(made),
            Ok(_) => OvirtError::Answer { what: what.to_owned(), missing: "its id" },
            // It says that there is one already where the request before was lost.
            Err(error) if error.is_ambiguous() || tries > 1 => error,
            Err(error) => return Err(error),
        };
        tracing::warn!("{}: looking whether it was done all the same", crate::log::chain(&error));
        let long = if error.is_failure() { FAILED } else { LOST };
        if let Some(found) = engine.wait(long).until(async || find().await).await? {
            return Ok(found);
        }
        if tries >= TRIES || !error.is_ambiguous() {
            return Err(error);
        }
    }
}

/// The thing with this mark in a collection of things that have names.
pub async fn marked(
    engine: &Engine,
    (collection, key): (&str, &str),
    name: &str,
    mark: &str,
) -> Result<Option<Value>, OvirtError> {
    let what = format!("cannot look for the {key} marked {mark}");
    let of = |answer: &Value| list(answer, key)?.iter().find(|thing| is_marked(thing, mark)).cloned();
    let searched = engine.optional(&what, &format!("{collection}?search={}", encoded(&search(name)))).await?;
    match searched.as_ref().map(of) {
        // A search that the engine does not understand.
        None => Ok(engine.find(&what, collection).await?.as_ref().and_then(of)),
        Some(None) if is_odd(name) => Ok(of(&engine.get(&what, collection).await?)),
        Some(found) => Ok(found),
    }
}

/// The id of a thing that was made or found.
pub fn id(what: &str, thing: &Value) -> Result<String, OvirtError> {
    text(thing, "id")
        .map(str::to_owned)
        .ok_or_else(|| OvirtError::Answer { what: what.to_owned(), missing: "its id" })
}

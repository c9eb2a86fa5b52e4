//! Versions in URLs, and the documents that tell which microversions a service speaks. Pure.

use serde_json::Value;

use super::catalogue::{array, text};

/// A microversion, e.g. 2.37.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Microversion {
    /// E.g. 2.
    pub major: u32,
    /// E.g. 37.
    pub minor: u32,
}

impl Microversion {
    /// E.g. 2.37.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    fn read(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().trim_start_matches('v').split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for Microversion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The segment of a URL's path that is a version, `v2.1`.
pub fn of(url: &str) -> Option<&str> {
    path(url).split('/').find(|segment| is_version(segment))
}

/// A URL up to its version, where it has one: there a service tells what it speaks.
pub fn root(url: &str) -> Option<&str> {
    let version = of(url)?;
    let begin = url.len() - path(url).len();
    let at = begin
        + path(url).split('/').take_while(|segment| *segment != version).map(|s| s.len() + 1).sum::<usize>();
    Some(&url[..at + version.len()])
}

fn path(url: &str) -> &str {
    let behind_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    behind_scheme.find('/').map_or("", |at| &behind_scheme[at..])
}

fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|rest| {
        rest.starts_with(|digit: char| digit.is_ascii_digit())
            && rest.chars().all(|character| character.is_ascii_digit() || character == '.')
    })
}

/// Does a document of versions list this one, `v2.0`?
pub fn lists(document: &Value, wanted: &str) -> bool {
    let major = |id: &str| id.split('.').next().map(str::to_owned);
    all(document)
        .any(|version| text(version, "id").is_some_and(|id| id == wanted || major(&id) == major(wanted)))
}

/// The highest microversion that a document tells for this version, `v3`. Without one there are none.
pub fn highest(document: &Value, of: &str) -> Option<Microversion> {
    let major = |id: &str| id.split('.').next().map(str::to_owned);
    let wanted = major(of);
    let same = all(document).filter(|version| text(version, "id").is_some_and(|id| major(&id) == wanted));
    same.filter_map(|version| {
        ["version", "max_version"]
            .iter()
            .find_map(|key| text(version, key))
            .and_then(|text| Microversion::read(&text))
    })
    .max()
}

fn all(document: &Value) -> impl Iterator<Item = &Value> {
    // Keystone has one more level.
    let nested = document.get("versions").map_or(&[][..], |versions| array(versions, "values"));
    document.get("version").into_iter().chain(array(document, "versions")).chain(nested)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_is_a_segment_of_the_path() {
        for (url, version, root_of) in [
            ("http://h:8774/v2.1", Some("v2.1"), Some("http://h:8774/v2.1")),
            ("http://h:8776/v3/4711", Some("v3"), Some("http://h:8776/v3")),
            ("http://h/volume/v3/v3", Some("v3"), Some("http://h/volume/v3")),
            ("http://v3/compute", None, None),
            ("http://h:9696", None, None),
            ("http://h/vault/v", None, None),
        ] {
            assert_eq!((of(url), root(url)), (version, root_of), "{url}");
        }
    }

    #[test]
    fn microversions_are_those_of_the_version_that_is_used() {
        let nova = json!({ "version": { "id": "v2.1", "version": "2.93", "min_version": "2.1" } });
        assert_eq!(highest(&nova, "v2.1"), Some(Microversion::new(2, 93)));
        let cinder = json!({ "versions": [
            { "id": "v2.0", "version": "" }, { "id": "v3.0", "version": "3.70", "min_version": "3.0" }
        ] });
        assert_eq!(highest(&cinder, "v3"), Some(Microversion::new(3, 70)));
        assert!(Microversion::new(2, 9) < Microversion::new(2, 37));
        for nothing in
            [json!(null), json!({ "version": "x" }), json!({ "versions": [{ "id": "v2.0" }] }), json!([])]
        {
            assert_eq!(highest(&nothing, "v3"), None);
        }
        assert!(lists(&cinder, "v3") && !lists(&cinder, "v1") && !lists(&Value::Null, "v3"));
    }
}

//! A refusal of vSphere's, in its own words. Pure; `super` reads it out of answers, `properties` and `task` out of what
//! is told about an object.

use super::Element;
use crate::json::one_line;

/// Characters of a server's text that are repeated in a sentence.
const MOST_SAID: usize = 500;
/// Characters of a name: the longest kind of VMware's has 60.
const MOST_NAME: usize = 100;

/// A refusal in the server's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// Type, e.g. `InvalidLogin`; empty where the server named none.
    pub kind: String,
    /// `faultstring` and further messages.
    pub words: String,
    /// `invalidProperty` of an `InvalidArgument`: the argument that is not right. Words may be in any language.
    pub property: Option<Box<str>>,
}

impl Fault {
    /// The session is over, or there was none.
    pub fn is_not_authenticated(&self) -> bool {
        self.kind == "NotAuthenticated"
    }

    /// What was asked about, or asked to do something, is gone, or was never there.
    pub fn is_not_found(&self) -> bool {
        self.kind == "ManagedObjectNotFound"
    }

    /// Of a `detail`, or of a fault inside an answer (`MissingProperty.fault`).
    pub(in super::super) fn of(kind: &str, words: &str, detail: Option<&Element>) -> Self {
        let mut said: Vec<&str> = vec![words.trim()];
        for message in detail.into_iter().flat_map(|detail| detail.all("faultMessage")) {
            said.push(message.text_of("message").unwrap_or_default());
        }
        said.retain(|text| !text.is_empty());
        let property = detail.and_then(|detail| detail.text_of("invalidProperty"));
        Self {
            kind: one_line(kind, MOST_NAME),
            words: one_line(&said.join(" "), MOST_SAID),
            property: property.map(|property| one_line(property, MOST_NAME).into()),
        }
    }

    /// Of a `LocalizedMethodFault`: the error of a task, or why a property is missing.
    pub(in super::super) fn localized(element: &Element) -> Self {
        let detail = element.child("fault");
        let kind = detail.and_then(|detail| detail.kind.as_deref()).unwrap_or_default();
        Self::of(kind, element.text_of("localizedMessage").unwrap_or_default(), detail)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.words.as_str(), self.kind.as_str()) {
            ("", "") => f.write_str("a fault without words"),
            ("", kind) => f.write_str(kind),
            (words, "") => f.write_str(words),
            (words, kind) => write!(f, "{} ({kind})", words.trim_end_matches('.')),
        }
    }
}

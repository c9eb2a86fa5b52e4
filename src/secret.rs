//! Secrets: their types, and the scrubber that keeps them out of every text we write.
//!
//! A secret is a [`SecretString`]; its bytes are reached only by `expose_secret()`, which a reviewer can grep.
//! It leaves the process in two ways: a sealed memfd handed to one tool ([`crate::process`]), and the plan's
//! own memfd from the supervisor to the worker ([`expose`]). Never argv, environment, log, state or journal.

use std::ops::Range;

use secrecy::{ExposeSecret, SecretString};
use serde::Serializer;

/// Serialises a secret in the clear. Only the plan uses it, and only towards a sealed memfd.
pub fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

/// The same for a list of secrets.
pub fn expose_list<S: Serializer>(secrets: &[SecretString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(secrets.iter().map(ExposeSecret::expose_secret))
}

/// Finds every known secret in a text, to replace it.
#[derive(Clone, Default)]
pub struct Scrubber {
    secrets: Vec<SecretString>,
}

impl Scrubber {
    /// A scrubber for these secrets, also as they look inside JSON and inside a URI. Values under four bytes are left
    /// alone: replacing every `a` hides nothing and ruins the text.
    pub fn new(secrets: impl IntoIterator<Item = SecretString>) -> Self {
        let mut forms: Vec<SecretString> = Vec::new();
        for secret in secrets {
            let plain = secret.expose_secret();
            let in_uri: String = url::form_urlencoded::byte_serialize(plain.as_bytes()).collect();
            let in_json = serde_json::Value::from(plain).to_string();
            let in_json = in_json.trim_matches('"').to_owned();
            for form in [in_uri, in_json] {
                if form != plain {
                    forms.push(form.into());
                }
            }
            forms.push(secret);
        }
        forms.retain(|form| form.expose_secret().len() >= 4);
        // Longest first, so that a secret that contains another one disappears whole.
        forms.sort_by_key(|form| std::cmp::Reverse(form.expose_secret().len()));
        Self { secrets: forms }
    }

    /// `text` with `***` for every secret.
    pub fn scrub(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| {
            if text.contains(secret.expose_secret()) {
                text.replace(secret.expose_secret(), "***")
            } else {
                text
            }
        })
    }

    /// Where secrets stand in `bytes`.
    pub fn occurrences(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let found = |secret: &SecretString| {
            let secret = secret.expose_secret().as_bytes();
            memchr::memmem::find_iter(bytes, secret).map(|at| at..at + secret.len()).collect::<Vec<_>>()
        };
        self.secrets.iter().flat_map(found).collect()
    }

    /// Length of the longest secret; 0 if there is none.
    pub fn longest(&self) -> usize {
        self.secrets.first().map_or(0, |secret| secret.expose_secret().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_is_replaced_and_the_longest_first() {
        let scrubber = Scrubber::new(["hunter2".into(), "hunter2-long".into(), "abc".into()]);
        assert_eq!(scrubber.scrub("a hunter2-long b hunter2 c abc"), "a *** b *** c abc");
    }

    #[test]
    fn a_secret_is_known_inside_json_and_uris_too() {
        let scrubber = Scrubber::new([r#"pa"ss w/ord"#.into()]);
        assert_eq!(
            scrubber.scrub(r#"{"a":"pa\"ss w/ord"} root:pa%22ss+w%2Ford@h"#),
            r#"{"a":"***"} root:***@h"#
        );
        assert_eq!(scrubber.occurrences(br#"xpa"ss w/ord"#).first(), Some(&(1..12)));
    }
}

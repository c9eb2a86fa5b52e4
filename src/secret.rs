//! Secrets: their types, and the scrubber that keeps them out of every text we write.
//!
//! A secret is a [`SecretString`]; its bytes are reached only by `expose_secret()`, which a reviewer can grep.
//! It leaves the process in two ways: a sealed memfd handed to one tool ([`crate::process`]), and the plan's
//! own memfd from the supervisor to the worker ([`expose`]). Never argv, environment, log, state or journal.

use secrecy::{ExposeSecret, SecretString};
use serde::Serializer;

/// Serialises a secret in the clear. Only the plan uses it, and only towards a sealed memfd.
pub fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

/// The same for an optional secret.
pub fn expose_option<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => serializer.serialize_some(secret.expose_secret()),
        None => serializer.serialize_none(),
    }
}

/// The same for a list of secrets.
pub fn expose_list<S: Serializer>(secrets: &[SecretString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(secrets.iter().map(ExposeSecret::expose_secret))
}

/// Replaces every known secret in a text by `***`.
#[derive(Clone, Default)]
pub struct Scrubber {
    secrets: Vec<SecretString>,
}

impl Scrubber {
    /// A scrubber for these secrets. Values under four bytes are left alone: replacing every `a` hides nothing
    /// and ruins the text.
    pub fn new(secrets: impl IntoIterator<Item = SecretString>) -> Self {
        let mut secrets: Vec<SecretString> =
            secrets.into_iter().filter(|secret| secret.expose_secret().len() >= 4).collect();
        // Longest first, so that a secret that contains another one disappears whole.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose_secret().len()));
        Self { secrets }
    }

    /// `text` without secrets.
    pub fn scrub(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| {
            if text.contains(secret.expose_secret()) {
                text.replace(secret.expose_secret(), "***")
            } else {
                text
            }
        })
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
}

//! Values of the document whose type is looser than JSON's, because clients were. Pure; only [`super`] uses it.

use std::fmt;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};

use crate::json::Anything;

/// A URI, or a name that old clients replaced by a URI: a password may be in it, so it is never printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(pub String);

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address([REDACTED])")
    }
}

/// A list, or something else that the plan refuses in the contract's words (contract.md 1.2, 1.4).
#[derive(Debug, Clone)]
pub enum List<T> {
    /// The items.
    Items(Vec<T>),
    /// A value that is no array.
    NotAList,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_bool<E>(self, _: bool) -> Result<List<T>, E> {
                Ok(List::NotAList)
            }

            fn visit_i64<E>(self, _: i64) -> Result<List<T>, E> {
                Ok(List::NotAList)
            }

            fn visit_u64<E>(self, _: u64) -> Result<List<T>, E> {
                Ok(List::NotAList)
            }

            fn visit_f64<E>(self, _: f64) -> Result<List<T>, E> {
                Ok(List::NotAList)
            }

            fn visit_str<E>(self, _: &str) -> Result<List<T>, E> {
                Ok(List::NotAList)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<List<T>, A::Error> {
                while map.next_entry::<String, Anything>()?.is_some() {}
                Ok(List::NotAList)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<List<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = sequence.next_element()? {
                    items.push(item);
                }
                Ok(List::Items(items))
            }
        }

        deserializer.deserialize_any(ListVisitor(std::marker::PhantomData))
    }
}

/// An object whose order counts (`osp_environment` goes to virt-v2v in the order of the input, contract.md 4).
/// A `null` value is an absent pair.
#[derive(Debug, Clone)]
pub struct Pairs<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<V>(std::marker::PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Option<V>>()? {
                    pairs.extend(value.map(|value| (key, value)));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_any(PairsVisitor(std::marker::PhantomData))
    }
}

/// A text, number or boolean, kept as text. One of them may be a password, so all are secrets.
#[derive(Debug, Clone)]
pub struct Scalar(pub SecretString);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, number or boolean")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string().into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string().into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string().into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                // `{:?}` keeps the point of 3.0, as Python's formatting did.
                Ok(Scalar(format!("{value:?}").into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.into()))
            }
        }

        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// A number of seconds, or a text that holds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seconds {
    /// Whole seconds, as given; may be negative.
    Whole(i64),
    /// What a number is without its fraction.
    Cut(i64),
    /// Not a number.
    Invalid,
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecondsVisitor;

        impl Visitor<'_> for SecondsVisitor {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_i64<E>(self, value: i64) -> Result<Seconds, E> {
                Ok(Seconds::Whole(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Seconds, E> {
                Ok(i64::try_from(value).map_or(Seconds::Invalid, Seconds::Whole))
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Seconds, E> {
                // Python's int() cuts the fraction off; beyond 2^53 a float is no number of seconds.
                if value.abs() > 9e15 {
                    return Err(E::invalid_value(Unexpected::Float(value), &self));
                }
                Ok(if value.fract() == 0.0 {
                    Seconds::Whole(value as i64)
                } else {
                    Seconds::Cut(value as i64)
                })
            }

            fn visit_str<E>(self, value: &str) -> Result<Seconds, E> {
                Ok(value.trim().parse().map_or(Seconds::Invalid, Seconds::Whole))
            }
        }

        deserializer.deserialize_any(SecondsVisitor)
    }
}

/// A limit of `throttling`: a text such as `50%` or `unlimited`; numbers are taken too (contract.md 8.1 says they
/// killed the conversion).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit(pub String);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use secrecy::ExposeSecret;
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        Ok(Self(text.expose_secret().to_owned()))
    }
}

/// `verify`: `full`, `off`, or a boolean that means one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify(pub String);

impl<'de> Deserialize<'de> for Verify {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use secrecy::ExposeSecret;
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        Ok(Self(match text.expose_secret() {
            "true" => "full".to_owned(),
            "false" => "off".to_owned(),
            other => other.to_owned(),
        }))
    }
}

/// `snapshot_quiesce`: `auto`, `require`, `never`, or a boolean that means one of the latter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quiesce(pub String);

impl<'de> Deserialize<'de> for Quiesce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use secrecy::ExposeSecret;
        let Scalar(text) = Scalar::deserialize(deserializer)?;
        Ok(Self(match text.expose_secret() {
            "true" => "require".to_owned(),
            "false" => "never".to_owned(),
            other => other.to_owned(),
        }))
    }
}

/// A text or a boolean.
#[derive(JsonSchema)]
#[schemars(inline)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its shape is used")]
pub(super) enum VerifyShape {
    Text(String),
    Flag(bool),
}

/// A text, number or boolean.
#[derive(JsonSchema)]
#[schemars(inline)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its shape is used")]
pub(super) enum ScalarShape {
    Text(String),
    Number(f64),
    Flag(bool),
}

/// A number, or a text that holds one.
#[derive(JsonSchema)]
#[schemars(inline)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its shape is used")]
pub(super) enum SecondsShape {
    Number(i64),
    Text(String),
}

//! XML into a small tree, for the documents that describe a guest ([`crate::libvirt`], [`crate::ovf`]). Pure.
//!
//! Names lose their prefix: the producers of these documents agree on local names, not on prefixes. A DTD is ignored
//! and its entities are unknown, so nothing expands and nothing outside is read. Not for writing XML, and not for
//! large documents: the tree is bounded, and what is more than that is refused.

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

use crate::json::one_line;

/// Largest document, in bytes. An OVF with many disks and properties has some hundred KiB.
pub const MAX_BYTES: u64 = 8 << 20;
/// Also what bounds the recursion of a drop.
const MAX_DEPTH: usize = 64;
const MAX_ELEMENTS: usize = 100_000;
const MAX_ATTRIBUTES: usize = 100;

/// A text that is not the XML it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Not text.
    #[error("it is neither UTF-8 nor UTF-16 text; save it as UTF-8")]
    Encoding,
    /// Not XML.
    #[error("it is not well-formed XML at byte {at}: {said}")]
    Malformed {
        /// Where, about.
        at: u64,
        /// What is wrong.
        said: String,
    },
    /// It ends within an element, or has none.
    #[error("it ends too early: there is no end of <{0}>")]
    Unfinished(String),
    /// Nothing in it.
    #[error("there is no XML element in it")]
    Empty,
    /// More than a description of one machine needs.
    #[error(
        "it has more than {MAX_ELEMENTS} elements, {MAX_DEPTH} levels, or {MAX_ATTRIBUTES} attributes in one element"
    )]
    TooLarge,
}

/// One element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Without prefix.
    pub name: String,
    /// Names without prefix, in their order.
    pub attributes: Vec<(String, String)>,
    /// In their order.
    pub children: Vec<Element>,
    /// All text directly in it, trimmed.
    pub text: String,
}

impl Element {
    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The first element at this way down.
    pub fn at(&self, way: &[&str]) -> Option<&Element> {
        way.iter().try_fold(self, |element, name| element.child(name))
    }

    /// The text of the first child of this name, if it has some.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str()).filter(|text| !text.is_empty())
    }
}

/// The text of a document: UTF-8 or UTF-16, byte order mark removed.
pub fn decode(bytes: &[u8]) -> Result<String, XmlError> {
    let wide = |order: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().skip(1).map(|pair| order(*pair)).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty()).ok_or(XmlError::Encoding)
    };
    match bytes {
        [0xff, 0xfe, ..] => wide(u16::from_le_bytes),
        [0xfe, 0xff, ..] => wide(u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => {
            std::str::from_utf8(rest).map(str::to_owned).map_err(|_| XmlError::Encoding)
        }
    }
}

/// The root element of a document.
pub fn parse(text: &str) -> Result<Element, XmlError> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut elements = 0_usize;
    loop {
        let at = reader.buffer_position();
        let malformed = |said: String| XmlError::Malformed { at, said: one_line(&said, 200) };
        let event = reader.read_event().map_err(|error| malformed(error.to_string()))?;
        match event {
            Event::Start(ref start) | Event::Empty(ref start) => {
                elements += 1;
                if elements > MAX_ELEMENTS || open.len() >= MAX_DEPTH {
                    return Err(XmlError::TooLarge);
                }
                if root.is_some() {
                    return Err(malformed("a second root element".to_owned()));
                }
                let element = element(start, at)?;
                if matches!(event, Event::Start(_)) {
                    open.push(element);
                } else {
                    close(element, &mut open, &mut root);
                }
            }
            Event::End(_) => {
                // The reader has compared the names.
                let element = open.pop().ok_or_else(|| malformed("an end without a start".to_owned()))?;
                close(element, &mut open, &mut root);
            }
            Event::Text(text) => add_text(&mut open, &text),
            Event::CData(text) => add_text(&mut open, &text),
            Event::GeneralRef(reference) => {
                let resolved = reference.resolve_char_ref().map_err(|error| malformed(error.to_string()))?;
                let character = resolved
                    .or_else(|| predefined(&reference))
                    .ok_or_else(|| malformed(format!("the entity &{};, which is unknown", &*reference)))?;
                add_text(&mut open, character.encode_utf8(&mut [0; 4]));
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            Event::Eof => break,
        }
    }
    match open.pop() {
        Some(unfinished) => Err(XmlError::Unfinished(one_line(&unfinished.name, 100))),
        None => root.ok_or(XmlError::Empty),
    }
}

fn element(start: &BytesStart<'_>, at: u64) -> Result<Element, XmlError> {
    let malformed = |said: String| XmlError::Malformed { at, said: one_line(&said, 200) };
    let mut attributes = Vec::new();
    // Its own search for duplicates is quadratic.
    for attribute in start.attributes().with_checks(false) {
        if attributes.len() >= MAX_ATTRIBUTES {
            return Err(XmlError::TooLarge);
        }
        let attribute = attribute.map_err(|error| malformed(error.to_string()))?;
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(|error| malformed(error.to_string()))?;
        attributes.push((attribute.key.local_name().as_ref().to_owned(), value.into_owned()));
    }
    Ok(Element { name: start.local_name().as_ref().to_owned(), attributes, ..Element::default() })
}

fn close(mut element: Element, open: &mut [Element], root: &mut Option<Element>) {
    let trimmed = element.text.trim();
    if trimmed.len() != element.text.len() {
        element.text = trimmed.to_owned();
    }
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None => *root = Some(element),
    }
}

fn add_text(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn predefined(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_document_becomes_a_tree_without_prefixes() {
        let text = "<?xml version='1.0'?><!-- c --><o:a xmlns:o='u' o:x='1 &amp; &#x41;'>\n t<b/>&lt;<![CDATA[&]]> \
                    <o:b y=\"&quot;\">in</o:b></o:a>\n";
        let root = parse(text).unwrap();
        assert_eq!((root.name.as_str(), root.attribute("x")), ("a", Some("1 & A")));
        assert_eq!(root.text, "t<&");
        assert_eq!(root.all("b").count(), 2);
        assert_eq!(root.children[1].attribute("y"), Some("\""));
        assert_eq!((root.text_of("b"), root.at(&["b", "c"])), (None, None));
        assert_eq!(root.children[1].text, "in");
    }

    #[test]
    fn what_is_no_document_is_told() {
        let deep = "<a>".repeat(MAX_DEPTH + 1);
        let many = format!("<a>{}</a>", "<b/>".repeat(MAX_ELEMENTS));
        let wide = format!("<a {}/>", "b='1' ".repeat(MAX_ATTRIBUTES + 1));
        for text in [&deep, &many, &wide] {
            assert_eq!(parse(text), Err(XmlError::TooLarge));
        }
        assert_eq!(parse(" "), Err(XmlError::Empty));
        assert_eq!(parse("<a><b></b>"), Err(XmlError::Unfinished("a".to_owned())));
        for text in
            ["<a/><b/>", "<a></b>", "</a>", "<a b=>", "<a b='&e;'/>", "<a>&e;</a>", "<a>&#xffffff;</a>"]
        {
            assert!(matches!(parse(text), Err(XmlError::Malformed { .. })), "{text}: {:?}", parse(text));
        }
        let bomb = "<!DOCTYPE a [<!ENTITY e 'x'><!ENTITY f '&e;&e;'>]><a>&f;</a>";
        assert!(matches!(parse(bomb), Err(XmlError::Malformed { .. })), "a DTD's entities are not expanded");
    }

    #[test]
    fn a_text_may_be_utf_16() {
        let wide =
            |order: fn(u16) -> [u8; 2]| "\u{feff}<ä/>".encode_utf16().flat_map(order).collect::<Vec<u8>>();
        for bytes in [wide(u16::to_le_bytes), wide(u16::to_be_bytes), "\u{feff}<ä/>".into(), "<ä/>".into()]
        {
            assert_eq!(decode(&bytes).unwrap(), "<ä/>");
        }
        for bytes in [&b"<\xe4/>"[..], &[0xff, 0xfe, 0x41], &[0xff, 0xfe, 0, 0xd8]] {
            assert_eq!(decode(bytes), Err(XmlError::Encoding));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text in "[<>/&;a-c='\"! \\[\\]?-]{0,60}") {
            drop(decode(&bytes).map(|text| parse(&text)));
            drop(parse(&text));
        }
    }
}

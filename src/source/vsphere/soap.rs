//! SOAP as vSphere speaks it (`urn:vim25`, 5.5 to 9): a call as text out, an answer's text in as a tree. Pure.
//!
//! Not here: HTTP and sessions (`client`), which methods there are (whoever calls them), what a property means
//! (`properties`, `hardware`). Any bytes may come: the tree is bounded in depth and in size, documents with a DTD are
//! refused, and nothing panics.

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::escape::escape;
use quick_xml::events::{BytesStart, Event};
use zeroize::Zeroizing;

use crate::json::one_line;

mod fault;

pub use fault::Fault;

/// Elements of one answer. A machine's hardware has a few thousand, a page of names a few hundred.
pub const MOST_ELEMENTS: usize = 200_000;
/// Nesting. vSphere's deepest, a tree of snapshots, has three levels for each snapshot, and 32 of them at most.
pub const MOST_DEPTH: usize = 160;

const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
    <soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
    xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>";
const FOOT: &str = "</soapenv:Body></soapenv:Envelope>";

/// Why bytes are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SoapError {
    /// Not XML, or not all of it.
    #[error("it is not XML: {reason}; it begins with {beginning:?}")]
    NotXml {
        /// The parser's words.
        reason: String,
        /// The first characters.
        beginning: String,
    },
    /// XML, but no SOAP envelope with one answer in it.
    #[error("it is no SOAP answer; it begins with {beginning:?}")]
    NotSoap {
        /// The first characters.
        beginning: String,
    },
    /// More than anybody needs.
    #[error("it is larger than {MOST_ELEMENTS} elements or deeper than {MOST_DEPTH} levels")]
    TooLarge,
}

/// A managed object: its kind and its id, e.g. `VirtualMachine` and `vm-62`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Kind, e.g. `VirtualMachine`.
    pub kind: String,
    /// Id, e.g. `vm-62`.
    pub value: String,
}

impl Reference {
    /// A reference to an object.
    pub fn new(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

/// A method with its arguments. The arguments may hold a password: they are wiped, and not shown by `Debug`.
pub struct Call {
    method: &'static str,
    arguments: Zeroizing<String>,
}

impl Call {
    /// Calls `method` of `this`. Arguments follow in the order of VMware's reference.
    pub fn new(method: &'static str, this: &Reference) -> Self {
        // Room for a login: a text that grows leaves copies of itself behind.
        Self { method, arguments: Zeroizing::new(String::with_capacity(2048)) }.reference("_this", this)
    }

    /// Name of the method.
    pub fn method(&self) -> &'static str {
        self.method
    }

    /// Adds a text, a number or a truth value.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.open(name, None);
        self.arguments.push_str(&Zeroizing::new(written(value)));
        self.close(name)
    }

    /// Adds a reference to an object.
    pub fn reference(mut self, name: &str, to: &Reference) -> Self {
        self.arguments.push_str(&format!("<{name} type=\"{}\">{}", written(&to.kind), written(&to.value)));
        self.close(name)
    }

    /// Adds a structure; `inside` adds its members.
    pub fn nested(mut self, name: &str, inside: impl FnOnce(Self) -> Self) -> Self {
        self.open(name, None);
        inside(self).close(name)
    }

    /// The same for a member whose declared type is a base of `kind`.
    pub fn nested_as(mut self, name: &str, kind: &str, inside: impl FnOnce(Self) -> Self) -> Self {
        self.open(name, Some(kind));
        inside(self).close(name)
    }

    /// The whole request.
    pub fn envelope(&self) -> Zeroizing<String> {
        let Self { method, arguments } = self;
        let arguments = arguments.as_str();
        let length = HEAD.len() + FOOT.len() + 2 * method.len() + 32 + arguments.len();
        let mut envelope = Zeroizing::new(String::with_capacity(length));
        for part in [HEAD, "<", method, " xmlns=\"urn:vim25\">", arguments, "</", method, ">", FOOT] {
            envelope.push_str(part);
        }
        envelope
    }

    fn open(&mut self, name: &str, kind: Option<&str>) {
        match kind {
            Some(kind) => self.arguments.push_str(&format!("<{name} xsi:type=\"{kind}\">")),
            None => self.arguments.extend(["<", name, ">"]),
        }
    }

    fn close(mut self, name: &str) -> Self {
        self.arguments.extend(["</", name, ">"]);
        self
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("method", &self.method).finish_non_exhaustive()
    }
}

/// Escaped for XML. Characters that XML 1.0 cannot hold become U+FFFD: then the server says that there is no such thing.
fn written(text: &str) -> String {
    let legal = |character: char| {
        matches!(character, '\t' | '\n' | '\r' | ' '..) && !matches!(character, '\u{fffe}' | '\u{ffff}')
    };
    let text: Zeroizing<String> =
        Zeroizing::new(text.chars().map(|c| if legal(c) { c } else { '\u{fffd}' }).collect());
    escape(text.as_str()).into_owned()
}

/// One element of an answer. Namespaces are dropped: all of it is `urn:vim25`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Local name.
    pub name: String,
    /// `xsi:type` without its prefix, e.g. `VirtualVmxnet3`.
    pub kind: Option<String>,
    /// The attribute `type` of a reference, e.g. `VirtualMachine`.
    pub target: Option<String>,
    /// Its text; empty where it has children.
    pub text: String,
    /// Elements in it.
    pub children: Vec<Element>,
}

impl Element {
    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Down a path of names.
    pub fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// Text of a child, if it has some.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str()).filter(|text| !text.is_empty())
    }

    /// Number in a child; `None` where it is not one.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text_of(name)?.trim().parse().ok()
    }

    /// Truth value of a child; absent counts as false.
    pub fn flag(&self, name: &str) -> bool {
        self.child(name).is_some_and(Element::is_true)
    }

    /// Is its text true?
    pub fn is_true(&self) -> bool {
        matches!(self.text.trim(), "true" | "1")
    }

    /// The object it refers to.
    pub fn reference(&self) -> Option<Reference> {
        let kind = self.target.as_deref().filter(|_| !self.text.is_empty())?;
        Some(Reference::new(kind, &self.text))
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The response element of the method, with a `returnval` in it where the method has a result.
    Response(Element),
    /// It refused.
    Fault(Fault),
}

/// Reads an answer.
pub fn parse(bytes: &[u8]) -> Result<Answer, SoapError> {
    let beginning = || one_line(&String::from_utf8_lossy(&bytes[..bytes.len().min(400)]), 100);
    let text = std::str::from_utf8(bytes)
        .map_err(|error| SoapError::NotXml { reason: error.to_string(), beginning: beginning() })?;
    let root = tree(text).map_err(|problem| match problem {
        Problem::Xml(reason) => SoapError::NotXml { reason: one_line(&reason, 200), beginning: beginning() },
        Problem::TooLarge => SoapError::TooLarge,
    })?;
    let body = Some(root).filter(|root| root.name == "Envelope");
    let body = body.and_then(|root| root.children.into_iter().find(|child| child.name == "Body"));
    let Some(content) = body.and_then(|body| body.children.into_iter().next()) else {
        return Err(SoapError::NotSoap { beginning: beginning() });
    };
    if content.name != "Fault" {
        return Ok(Answer::Response(content));
    }
    let detail = content.child("detail").and_then(|detail| detail.children.first());
    let kind = detail.map_or("", |detail| match &detail.kind {
        Some(kind) => kind,
        None => detail.name.strip_suffix("Fault").unwrap_or(&detail.name),
    });
    Ok(Answer::Fault(Fault::of(kind, content.text_of("faultstring").unwrap_or_default(), detail)))
}

enum Problem {
    Xml(String),
    TooLarge,
}

impl<E: Into<quick_xml::Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        Problem::Xml(error.into().to_string())
    }
}

fn tree(text: &str) -> Result<Element, Problem> {
    let mut reader = Reader::from_str(text);
    // A stack of our own: the nesting is the server's choice.
    let mut open: Vec<Element> = Vec::new();
    let mut count = 0;
    loop {
        let event = reader.read_event()?;
        let begun = match &event {
            Event::Start(start) | Event::Empty(start) => {
                count += 1;
                if count > MOST_ELEMENTS || open.len() >= MOST_DEPTH {
                    return Err(Problem::TooLarge);
                }
                Some(element(start)?)
            }
            _ => None,
        };
        let ended = match (event, begun) {
            (Event::Start(_), Some(element)) => {
                open.push(element);
                None
            }
            (Event::Empty(_), Some(element)) => Some(element),
            (Event::End(_), _) => open.pop(),
            (Event::Text(text), _) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text.xml10_content());
                } else if !text.trim().is_empty() {
                    return Err(Problem::Xml("text outside of the document".to_owned()));
                }
                None
            }
            (Event::CData(text), _) => {
                open.last_mut().into_iter().for_each(|element| element.text.push_str(&text.xml10_content()));
                None
            }
            (Event::GeneralRef(reference), _) => {
                let character = match reference.resolve_char_ref()? {
                    Some(character) => character,
                    None => predefined(&reference)
                        .ok_or_else(|| Problem::Xml(format!("unknown entity &{};", &*reference)))?,
                };
                open.last_mut().into_iter().for_each(|element| element.text.push(character));
                None
            }
            // Nobody who means well sends one, and entities of its own may be endless.
            (Event::DocType(_), _) => return Err(Problem::Xml("it has a DTD".to_owned())),
            (Event::Eof, _) => return Err(Problem::Xml("its end is missing".to_owned())),
            _ => None,
        };
        if let Some(mut element) = ended {
            // Between the children there is only layout.
            if !element.children.is_empty() {
                element.text = String::new();
            }
            match open.last_mut() {
                Some(parent) => parent.children.push(element),
                None => return Ok(element),
            }
        }
    }
}

fn predefined(entity: &str) -> Option<char> {
    Some(match entity {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return None,
    })
}

fn element(start: &BytesStart<'_>) -> Result<Element, Problem> {
    let mut element = Element { name: start.local_name().as_ref().to_owned(), ..Element::default() };
    for attribute in start.attributes() {
        let attribute = attribute.map_err(quick_xml::Error::from)?;
        if attribute.key.local_name().as_ref() != "type" {
            continue;
        }
        let value = attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned();
        // `xsi:type="VirtualDisk"`, in some versions `"vim25:VirtualDisk"`; `type="VirtualMachine"` of a reference.
        match attribute.key.prefix() {
            Some(_) => {
                element.kind = Some(value.rsplit(':').next().unwrap_or_default().to_owned());
            }
            None => element.target = Some(value),
        }
    }
    Ok(element)
}

#[cfg(test)]
mod tests;

//! vSphere's PropertyCollector: which properties of which objects, as a call, and a page of its answer as values. Pure.
//!
//! The client walks the pages. An object may lack a property because it is unset, or because the user may not see it:
//! the answer tells these apart, and so does [`Object`].

use std::collections::BTreeMap;

use super::soap::{Call, Element, Fault, Reference};

/// Most objects in one page; servers may give less. A page of names is 300 KB.
const PAGE: &str = "1000";

/// Objects to ask about.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    /// These.
    Objects(&'a [Reference]),
    /// All that a container view holds.
    View(&'a Reference),
}

/// `RetrievePropertiesEx`: of every object, the properties listed for its kind (or for a base of its kind).
pub fn retrieve(collector: &Reference, of: Of<'_>, wanted: &[(&str, &[&str])]) -> Call {
    Call::new("RetrievePropertiesEx", collector)
        .nested("specSet", |mut call| {
            for (kind, paths) in wanted {
                call = call.nested("propSet", |call| {
                    let call = call.text("type", kind).text("all", "false");
                    paths.iter().fold(call, |call, path| call.text("pathSet", path))
                });
            }
            match of {
                Of::Objects(objects) => {
                    for object in objects {
                        call = call.nested("objectSet", |call| call.reference("obj", object));
                    }
                    // An object that is gone is missing in the answer; without this all of it fails.
                    call.text("reportMissingObjectsInResults", "true")
                }
                Of::View(view) => call.nested("objectSet", |call| {
                    let call = call.reference("obj", view).text("skip", "true");
                    call.nested_as("selectSet", "TraversalSpec", |call| {
                        call.text("name", "view").text("type", &view.kind).text("path", "view")
                    })
                }),
            }
        })
        .nested("options", |call| call.text("maxObjects", PAGE))
}

/// `ContinueRetrievePropertiesEx`: the next page.
pub fn next(collector: &Reference, token: &str) -> Call {
    Call::new("ContinueRetrievePropertiesEx", collector).text("token", token)
}

/// One page of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Its objects.
    pub objects: Vec<Object>,
    /// With which the next page is asked for; `None` in the last one.
    pub token: Option<String>,
}

/// An object with the properties that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Which.
    pub reference: Reference,
    values: BTreeMap<String, Element>,
    /// What could not be told, and why.
    pub missing: Vec<(String, Fault)>,
}

impl Object {
    /// A property that is set.
    pub fn get(&self, path: &str) -> Option<&Element> {
        self.values.get(path)
    }

    /// Its text; `None` when it is unset or empty.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.get(path).map(|value| value.text.as_str()).filter(|text| !text.is_empty())
    }

    /// Why a property is missing, if the server said it.
    pub fn why_missing(&self, path: &str) -> Option<&Fault> {
        self.missing.iter().find(|(missing, _)| missing == path).map(|(_, fault)| fault)
    }
}

/// Reads the response of either call. An empty response is a page without objects.
pub fn page(response: &Element) -> Page {
    let Some(result) = response.child("returnval") else { return Page::default() };
    let objects = result.all("objects").filter_map(object).collect();
    Page { objects, token: result.text_of("token").map(str::to_owned) }
}

fn object(element: &Element) -> Option<Object> {
    let reference = element.child("obj")?.reference()?;
    let mut values = BTreeMap::new();
    for property in element.all("propSet") {
        if let (Some(name), Some(value)) = (property.text_of("name"), property.child("val")) {
            values.insert(name.to_owned(), value.clone());
        }
    }
    let missing = element
        .all("missingSet")
        .filter_map(|missing| {
            Some((missing.text_of("path")?.to_owned(), Fault::localized(missing.child("fault")?)))
        })
        .collect();
    Some(Object { reference, values, missing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::vsphere::soap::{Answer, parse};

    fn collector() -> Reference {
        Reference::new("PropertyCollector", "propertyCollector")
    }

    /// The order of elements is part of VMware's schema: servers refuse another one.
    #[test]
    fn a_call_lists_properties_before_objects_and_options_last() {
        let view = Reference::new("ContainerView", "session[52]x");
        let call = retrieve(&collector(), Of::View(&view), &[("VirtualMachine", &["name", "parent"])]);
        let envelope = call.envelope();
        let body =
            envelope.split("</_this>").nth(1).unwrap().split("</RetrievePropertiesEx>").next().unwrap();
        assert_eq!(
            body,
            "<specSet><propSet><type>VirtualMachine</type><all>false</all><pathSet>name</pathSet>\
             <pathSet>parent</pathSet></propSet><objectSet><obj type=\"ContainerView\">session[52]x</obj>\
             <skip>true</skip><selectSet xsi:type=\"TraversalSpec\"><name>view</name><type>ContainerView</type>\
             <path>view</path></selectSet></objectSet></specSet><options><maxObjects>1000</maxObjects></options>"
        );
    }

    #[test]
    fn a_page_has_objects_values_and_reasons() {
        let answer = br#"<?xml version="1.0"?><s:Envelope xmlns:s="x" xmlns:xsi="y"><s:Body>
          <RetrievePropertiesExResponse xmlns="urn:vim25"><returnval><token>t&amp;1</token>
          <objects><obj type="VirtualMachine">vm-1</obj><propSet><name>name</name><val xsi:type="xsd:string">a &lt;b&gt;</val></propSet>
          <missingSet><path>config</path><fault><fault xsi:type="NoPermission"><object type="Folder">g</object></fault>
          <localizedMessage>Permission to perform this operation was denied.</localizedMessage></fault></missingSet></objects>
          <objects><obj type="VirtualMachine">vm-2</obj></objects>
          </returnval></RetrievePropertiesExResponse></s:Body></s:Envelope>"#;
        let Answer::Response(response) = parse(answer).unwrap() else { panic!("a fault") };
        let page = page(&response);
        assert_eq!(page.token.as_deref(), Some("t&1"));
        let [first, second] = page.objects.as_slice() else { panic!("{page:?}") };
        assert_eq!(first.text("name"), Some("a <b>"));
        let why = first.why_missing("config").unwrap().to_string();
        assert_eq!(why, "Permission to perform this operation was denied (NoPermission)");
        assert_eq!((second.reference.value.as_str(), second.text("name")), ("vm-2", None));
    }

    #[test]
    fn nothing_found_is_an_empty_page() {
        let answer = b"<E:Envelope xmlns:E='x'><E:Body><RetrievePropertiesExResponse/></E:Body></E:Envelope>";
        let Answer::Response(response) = parse(answer).unwrap().clone() else { panic!("a fault") };
        assert_eq!(page(&response), Page::default());
    }
}

use proptest::prelude::*;

use super::*;

fn fault(detail: &str) -> Fault {
    let text = format!(
        "<s:Envelope xmlns:s='e' xmlns:xsi='x'><s:Body><s:Fault><faultcode>c</faultcode>{detail}</s:Fault></s:Body></s:Envelope>"
    );
    match parse(text.as_bytes()).unwrap() {
        Answer::Fault(fault) => fault,
        response => panic!("{response:?}"),
    }
}

/// Names may hold anything: what a server reads is what was meant.
#[test]
fn a_call_is_escaped_and_its_password_is_not_shown() {
    let call = Call::new("Login", &Reference::new("SessionManager", "a\"<b"))
        .text("userName", "DOM\\me & \"you\"")
        .text("password", "p<w>'&]]>\u{1}");
    let envelope = call.envelope();
    assert!(envelope.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope "));
    assert!(envelope.contains(
        "<soapenv:Body><Login xmlns=\"urn:vim25\"><_this type=\"SessionManager\">a&quot;&lt;b</_this>\
         <userName>DOM\\me &amp; &quot;you&quot;</userName><password>p&lt;w&gt;&apos;&amp;]]&gt;\u{fffd}</password></Login>"
    ));
    assert_eq!(format!("{call:?}"), "Call { method: \"Login\", .. }");
    // Our own reader understands it, so it is XML.
    let Answer::Response(read) = parse(envelope.as_bytes()).unwrap() else { panic!("a fault") };
    assert_eq!(read.text_of("password"), Some("p<w>'&]]>\u{fffd}"));
    assert_eq!(read.child("_this").unwrap().reference(), Some(Reference::new("SessionManager", "a\"<b")));
}

#[test]
fn a_fault_has_its_kind_and_its_words() {
    let login = include_bytes!("../../../../fixtures/vsphere/invalid-login.xml");
    let Answer::Fault(fault_of_login) = parse(login).unwrap() else { panic!("no fault") };
    assert_eq!(
        fault_of_login.to_string(),
        "Cannot complete login due to an incorrect user name or password (InvalidLogin)"
    );
    for (detail, kind, shown) in [
        (
            "<faultstring>The session is not authenticated.</faultstring><detail><NotAuthenticatedFault \
             xsi:type='NotAuthenticated'><privilegeId>System.View</privilegeId></NotAuthenticatedFault></detail>",
            "NotAuthenticated",
            "The session is not authenticated (NotAuthenticated)",
        ),
        // No words: the kind is all there is.
        (
            "<faultstring/><detail><NoPermissionFault xmlns='urn:vim25'/></detail>",
            "NoPermission",
            "NoPermission",
        ),
        (
            "<faultstring>Failed.</faultstring><detail><F xsi:type='vim25:GenericVmConfigFault'><faultMessage><key>k\
             </key><message>The disk is &quot;locked&quot;.</message></faultMessage></F></detail>",
            "GenericVmConfigFault",
            "Failed. The disk is \"locked\" (GenericVmConfigFault)",
        ),
        ("<faultstring>\nXML document\tis bad</faultstring>", "", "XML document\\tis bad"),
        ("", "", "a fault without words"),
    ] {
        let fault = fault(detail);
        assert_eq!((fault.kind.as_str(), fault.to_string().as_str()), (kind, shown));
    }
}

#[test]
fn text_is_put_together_from_all_its_parts() {
    let answer = parse(
        b"<E:Envelope xmlns:E='e'><E:Body><r><a>x&amp;&#228;<![CDATA[<y>]]>\n</a></r></E:Body></E:Envelope>",
    );
    let Answer::Response(response) = answer.unwrap() else { panic!("a fault") };
    assert_eq!(response.text_of("a"), Some("x&\u{e4}<y>\n"));
}

/// Each with a sentence that shows what it was: a proxy's page, half an answer, an attack.
#[test]
fn what_is_no_answer_is_refused() {
    let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
    let many = format!("<Envelope><Body><r>{}</r></Body></Envelope>", "<a/>".repeat(MOST_ELEMENTS));
    for (bytes, part) in [
        (&b""[..], "not XML"),
        (b"503 Service Unavailable", "503 Service Unavailable"),
        (b"<html><body>Welcome</body></html>", "no SOAP answer"),
        (b"<s:Envelope xmlns:s='x'><s:Body/></s:Envelope>", "no SOAP answer"),
        (b"<s:Envelope xmlns:s='x'><s:Body><r>", "not XML"),
        (b"<s:Envelope><s:Body><r></s:Body></s:Envelope>", "not XML"),
        (b"\xff\xfe<", "not XML"),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]><Envelope><Body><r>&a;</r></Body></Envelope>", "it has a DTD"),
        (b"<Envelope><Body><r>&a;</r></Body></Envelope>", "unknown entity &a;"),
        (deep.as_bytes(), "deeper than"),
        (many.as_bytes(), "larger than"),
    ] {
        let error = parse(bytes).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
        assert!(error.len() < 500, "{error}");
    }
}

proptest! {
    /// Bytes of any kind are an answer or an error.
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        parse(&bytes).ok();
    }

    /// The same for what looks like XML.
    #[test]
    fn no_xml_panics(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("<Envelope>"), Just("</Envelope>"), Just("<Body>"), Just("</Body>"), Just("<Fault>"), Just("</Fault>"),
                Just("<a xsi:type='b:c' type=\"d\">"), Just("</a>"), Just("<returnval><objects><obj type='x'>1</obj>"),
                Just("</objects></returnval>"), Just("<propSet><name>n</name><val>"), Just("</val></propSet>"),
                Just("&lt;"), Just("&#0;"), Just("&#x110000;"), Just("&nope;"), Just("<![CDATA["), Just("]]>"), Just("<!--"),
                Just("-->"), Just("<?x?>"), Just("<!DOCTYPE a"), Just(" "), Just("é"), Just("<"), Just(">"), Just("'"),
            ],
            0..40,
        )
    ) {
        if let Ok(Answer::Response(response)) = parse(parts.concat().as_bytes()) {
            crate::source::vsphere::properties::page(&response);
        }
    }

    /// Every text comes through, but for the characters that XML cannot hold.
    #[test]
    fn a_text_is_read_as_it_was_written(text in any::<String>()) {
        let call = Call::new("X", &Reference::new("T", "v")).text("a", &text);
        let Answer::Response(read) = parse(call.envelope().as_bytes()).unwrap() else { panic!("a fault") };
        let read = read.child("a").unwrap().text.clone();
        let same = |character: char| character >= ' ' && character != '\u{fffe}' && character != '\u{ffff}';
        if text.chars().all(same) {
            prop_assert_eq!(read, text);
        }
    }
}

//! Any bytes as a vSphere's answer: a tree of bounded depth and size, a fault or an error, never a panic. What is read out
//! of the tree (a page of properties, snapshots) takes any tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virt_v2v_wrapper::source::vsphere::properties::page;
use virt_v2v_wrapper::source::vsphere::snapshot::found;
use virt_v2v_wrapper::source::vsphere::soap::{Answer, Element, MOST_DEPTH, MOST_ELEMENTS, parse};

fuzz_target!(|bytes: &[u8]| {
    match parse(bytes) {
        Ok(Answer::Response(response)) => {
            let (mut elements, mut open) = (0, vec![(&response, 1)]);
            while let Some((element, depth)) = open.pop() {
                elements += 1;
                assert!(elements <= MOST_ELEMENTS && depth <= MOST_DEPTH);
                open.extend(element.children.iter().map(|child: &Element| (child, depth + 1)));
            }
            for object in page(&response).objects {
                object.get("snapshot").map(found);
            }
            found(&response);
        }
        // What it says goes into one line of the log.
        Ok(Answer::Fault(fault)) => assert!(!fault.to_string().contains('\n')),
        Err(error) => assert!(error.to_string().len() < 4096),
    }
});

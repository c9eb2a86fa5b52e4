use super::*;

#[test]
fn the_servers_own_sentence_is_found_wherever_it_is() {
    for (body, expected) in [
        (r#"{"badRequest": {"code": 400, "message": "Invalid volume"}}"#, "Invalid volume"),
        (r#"{"NeutronError": {"type": "X", "message": "No more IPs", "detail": ""}}"#, "No more IPs"),
        (r#"{"reason": "Operation Failed", "detail": "[Cannot add Disk.]"}"#, "[Cannot add Disk.]"),
        (r#"{"fault": {"reason": "Not Found", "detail": "no such vm"}}"#, "no such vm"),
        (
            r#"{"error_code": "access_denied", "error": "Cannot authenticate user"}"#,
            "Cannot authenticate user",
        ),
        ("<html>\n<h1>Bad Gateway</h1>", "<html> <h1>Bad Gateway</h1>"),
        ("", "it says no more"),
    ] {
        assert_eq!(said(body.as_bytes()), expected);
    }
}

#[test]
fn any_name_is_a_segment_of_a_url() {
    assert_eq!(encoded("My \"VM\"*/é?"), "My%20%22VM%22%2A%2F%C3%A9%3F");
}

//! The words of a server's refusal, wherever it puts them. Pure.

use serde_json::Value;

use crate::json::one_line;

/// The words for a server that has none.
pub const NOTHING_SAID: &str = "it says no more";

/// The server's own sentence, wherever OpenStack and oVirt put one.
pub(super) fn said(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(value) => sentence(&value).unwrap_or_else(|| value.to_string()),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = one_line(&text.split_whitespace().collect::<Vec<_>>().join(" "), 500);
    if text.is_empty() { NOTHING_SAID.to_owned() } else { text }
}

fn sentence(value: &Value) -> Option<String> {
    // oVirt: {"reason": "Operation Failed", "detail": "[Cannot add Disk. ...]"}; also below "fault".
    if let Some(detail) = value.get("detail").and_then(Value::as_str).filter(|detail| !detail.is_empty()) {
        return Some(detail.to_owned());
    }
    // OpenStack: {"badRequest": {"message": "..."}}, {"NeutronError": {"message": "..."}}, {"error": {"message": "..."}}.
    if let Some(message) = value.get("message").and_then(Value::as_str) {
        return Some(message.to_owned());
    }
    if let Some(words) = ["error_description", "error", "NeutronError", "reason"]
        .iter()
        .find_map(|key| value.get(key).and_then(Value::as_str))
    {
        return Some(words.to_owned());
    }
    value.as_object()?.values().filter(|inner| inner.is_object()).find_map(sentence)
}

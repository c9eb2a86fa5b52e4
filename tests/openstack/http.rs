//! HTTP/1.1 as far as an OpenStack in tests needs it: one request a connection, JSON in and out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// What the real services may take when they have just been started on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A request as a server reads it.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Without its query.
    pub fn plain(&self) -> &str {
        self.path.split('?').next().unwrap()
    }

    /// A value of the query, decoded.
    pub fn query(&self, key: &str) -> Option<String> {
        let query = self.path.split_once('?')?.1;
        let value = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
        Some(decoded(value))
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Answer {
    pub fn new(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    /// Nothing in it.
    pub fn empty(status: u16) -> Self {
        Self::new(status, Value::Null)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let body = if self.body.is_null() { String::new() } else { self.body.to_string() };
        let more: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!(
            "HTTP/1.1 {} Said\r\n{more}Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.status,
            body.len()
        )
        .into_bytes()
    }
}

/// `%41` is `A`.
pub fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&hex, 16).expect("percent encoding"));
        } else {
            bytes.push(if byte == b'+' { b' ' } else { byte });
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// First line, headers, body.
type Message = (String, Vec<(String, String)>, Value);

/// Reads up to the end of a message whose length its headers say; its first line, headers and body.
fn read(stream: &mut impl Read) -> std::io::Result<Message> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16384];
    let end = |bytes: &[u8]| bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let at = loop {
        if let Some(at) = end(&bytes) {
            break at;
        }
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
    let mut body = bytes.split_off(at + 4);
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: Option<usize> = length.and_then(|(_, value)| value.parse().ok());
    let is_answer = first.starts_with("HTTP/");
    while length.map_or(is_answer, |length| body.len() < length) {
        match stream.read(&mut buffer)? {
            0 => break,
            count => body.extend_from_slice(&buffer[..count]),
        }
    }
    Ok((first, headers, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// Reads a request.
pub fn request(stream: &mut impl Read) -> std::io::Result<Request> {
    let (first, headers, body) = read(stream)?;
    let mut words = first.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    Ok(Request { method: word(), path: word(), headers, body })
}

/// Asks `http://127.0.0.1:<port>/...`.
pub fn ask(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> std::io::Result<Answer> {
    let (host, path) = url.strip_prefix("http://").expect("http").split_once('/').expect("a path");
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.map_or(0, <[u8]>::len);
    let kind = if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        ""
    } else {
        "Content-Type: application/json\r\n"
    };
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{more}{kind}Accept: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.unwrap_or_default())?;
    let (first, headers, body) = read(&mut stream)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer { status: status.ok_or(std::io::ErrorKind::InvalidData)?, headers, body })
}

//! The little that must be known of URIs clients send: is a password in it, what is the guest called. Pure.
//!
//! Not a parser: `vmware_uri` and `rhv_url` reach virt-v2v as they were given (percent escapes included), because
//! virt-v2v and libvirt read them with rules of their own.

/// A URI that may not be used as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// A password with `/`, `?` or `#` in it that was not escaped: the rest of it would count as path.
    #[error("what stands before the first / is not a host; leave the password out of the URI")]
    Authority,
    /// Text with `@` in it that is no URI: what stands before the `@` may be a password.
    #[error("not a URI: there is no :// in it")]
    NoScheme,
}

/// Takes the password out of `user:password@`. Gives the URI without it, and the password as it stood there.
pub fn without_password(uri: &str) -> Result<(String, Option<String>), UriError> {
    let Some(start) = uri.find("://").map(|at| at + 3) else {
        return if uri.contains('@') { Err(UriError::NoScheme) } else { Ok((uri.to_owned(), None)) };
    };
    let end = uri[start..].find(['/', '?', '#']).map_or(uri.len(), |at| start + at);
    let authority = &uri[start..end];
    let Some(at) = authority.rfind('@') else {
        let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
        let bracketed = authority.starts_with('[') && authority.ends_with(']');
        if !bracketed && !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(UriError::Authority);
        }
        return Ok((uri.to_owned(), None));
    };
    let Some((user, password)) = authority[..at].split_once(':') else {
        return Ok((uri.to_owned(), None));
    };
    let rest = &uri[start + at..];
    Ok((format!("{}{user}{rest}", &uri[..start]), Some(password.to_owned())))
}

/// What stands in `ssh://user@host:port/path`, escapes undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// Without a password.
    pub user: Option<String>,
    /// Without brackets.
    pub host: String,
    /// If given.
    pub port: Option<u16>,
    /// Absolute.
    pub path: String,
}

/// Takes an `ssh://` URI apart. `None` when there is no host or file in it, or something that is neither.
pub fn ssh(uri: &str) -> Option<Ssh> {
    let rest = uri.strip_prefix("ssh://")?;
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (authority, path) = rest.split_at(rest.find('/')?);
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority),
    };
    let user = user.map(|user| user.split_once(':').map_or(user, |(user, _)| user));
    let (host, port) = match place.strip_prefix('[') {
        Some(bracketed) => {
            let (host, behind) = bracketed.split_once(']')?;
            (host, behind.strip_prefix(':').or(behind.is_empty().then_some(""))?)
        }
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let port = if port.is_empty() { None } else { Some(port.parse().ok().filter(|port| *port > 0)?) };
    let path = percent_decode(path).filter(|path| path.len() > 1 && !path.contains('\0'))?;
    let user = match user.filter(|user| !user.is_empty()) {
        Some(user) => Some(percent_decode(user).filter(|user| !user.contains('\0'))?),
        None => None,
    };
    let host = percent_decode(host).filter(|host| !host.is_empty() && !host.contains(char::is_control))?;
    Some(Ssh { user, host, port, path })
}

/// The guest's plain name: the last part of the path, unescaped, without `.vmx`. `None` when there is none.
pub fn vmx_name(uri: &str) -> Option<String> {
    let path = uri.split(['?', '#']).next().unwrap_or(uri);
    let (above, last) = path.rsplit_once('/')?;
    // `ssh://host` has no path at all.
    if above.ends_with(":/") || above.ends_with(':') {
        return None;
    }
    let name = percent_decode(last)?;
    let stem = match name.len().checked_sub(4) {
        Some(cut) if name.is_char_boundary(cut) && name[cut..].eq_ignore_ascii_case(".vmx") => &name[..cut],
        _ => &name,
    };
    (!stem.is_empty()).then(|| stem.to_owned())
}

/// Undoes percent escapes; `None` when the bytes are no text. A `%` that escapes nothing stays.
pub fn percent_decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escape = (bytes[index] == b'%').then(|| bytes.get(index + 1..index + 3)).flatten();
        let value = escape
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                decoded.push(value);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_leaves_the_uri() {
        for (uri, without, password) in [
            ("esx://root@1.2.3.4?no_verify=1", "esx://root@1.2.3.4?no_verify=1", None),
            ("esx://root:pw@1.2.3.4?no_verify=1", "esx://root@1.2.3.4?no_verify=1", Some("pw")),
            ("vpx://d%5Cu:a:b@c@vc:443/dc/h", "vpx://d%5Cu@vc:443/dc/h", Some("a:b@c")),
            ("https://[::1]:443/api", "https://[::1]:443/api", None),
            ("https://[fe80::1]/api", "https://[fe80::1]/api", None),
            ("https://:pw@h/api", "https://@h/api", Some("pw")),
            ("My Virtual", "My Virtual", None),
        ] {
            assert_eq!(without_password(uri), Ok((without.to_owned(), password.map(str::to_owned))), "{uri}");
        }
        assert_eq!(without_password("ssh://root:p/w@h/x.vmx"), Err(UriError::Authority));
        assert_eq!(without_password("root:pw@h:/x.vmx"), Err(UriError::NoScheme));
    }

    #[test]
    fn an_ssh_uri_is_taken_apart() {
        let ssh = |uri: &str| ssh(uri).map(|Ssh { user, host, port, path }| (user, host, port, path));
        let parts = |user: Option<&str>, host: &str, port, path: &str| {
            Some((user.map(str::to_owned), host.to_owned(), port, path.to_owned()))
        };
        for (uri, expected) in [
            ("ssh://root@esx/vmfs/a%20b/c.vmx", parts(Some("root"), "esx", None, "/vmfs/a b/c.vmx")),
            ("ssh://esx:2222/c.vmx?x=/y#z", parts(None, "esx", Some(2222), "/c.vmx")),
            ("ssh://d%5Cu:pw@[::1]:22/%e4%b8%ad'.vmx", parts(Some("d\\u"), "::1", Some(22), "/中'.vmx")),
            ("ssh://u@[fe80::1]/c", parts(Some("u"), "fe80::1", None, "/c")),
            ("ssh://@h:/c", parts(None, "h", None, "/c")),
            ("ssh://h", None),
            ("ssh://h/", None),
            ("ssh:///c", None),
            ("ssh://h:0/c", None),
            ("ssh://h:ssh/c", None),
            ("ssh://[::1/c", None),
            ("ssh://[::1]x/c", None),
            ("ssh://h/a%00b", None),
            ("ssh://h/%ff", None),
            ("https://h/c", None),
        ] {
            assert_eq!(ssh(uri), expected, "{uri}");
        }
    }

    #[test]
    fn the_name_is_the_vmx_base_name() {
        for (uri, name) in [
            ("ssh://root@h/vmfs/volumes/ds/a/a.vmx", Some("a")),
            ("ssh://root@h/vmfs/volumes/ds/My%20VM/My%20VM.VMX?x=/y.vmx", Some("My VM")),
            ("ssh://root@h/vmfs/a%2Fb.vmx", Some("a/b")),
            ("ssh://root@h/vmfs/100%.vmx", Some("100%")),
            ("ssh://root@h/vmfs/plain", Some("plain")),
            ("ssh://root@h/%ff.vmx", None),
            ("ssh://root@h/.vmx", None),
            ("ssh://root@h/", None),
            ("ssh://root@h", None),
        ] {
            assert_eq!(vmx_name(uri).as_deref(), name, "{uri}");
        }
    }
}

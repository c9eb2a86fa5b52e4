//! Where a vSphere is and who logs in, from `vmware_uri` (contract.md 6.1). Pure.
//!
//! The URI is libvirt's: `vpx://user@vcenter/Datacenter/cluster/host?no_verify=1` or `esx://root@host?no_verify=1`. Its
//! path is libvirt's business: machines are looked for in the whole inventory.

use url::{Host, Url};

use crate::uri::percent_decode;

/// Users of a URI that names none.
const VCENTER_USER: &str = "administrator@vsphere.local";
const HOST_USER: &str = "root";
/// Port of the SDK.
const HTTPS: u16 = 443;

/// The URI cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not a URI with a host.
    #[error(
        "vmware_uri {uri} names no host: {reason}; write vpx://user@vcenter/datacenter/host or esx://root@host"
    )]
    NoHost {
        /// The URI.
        uri: String,
        /// Why.
        reason: String,
    },
    /// Another hypervisor's.
    #[error("vmware_uri {uri} must begin with vpx:// (a vCenter) or esx:// (a host)")]
    Scheme {
        /// The URI.
        uri: String,
    },
    /// The user is no text.
    #[error("the user in vmware_uri {uri} is not UTF-8 when its percent escapes are undone")]
    User {
        /// The URI.
        uri: String,
    },
    /// Given twice. The contract's words.
    #[error("Multiple values for \"no_verify\"")]
    ManyNoVerify,
    /// Neither 0 nor 1. The contract's words.
    #[error("Invalid value for \"no_verify\"")]
    NoVerify,
}

/// What is at the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A vCenter, `vpx://`: it passes disks on for its hosts.
    Vcenter,
    /// A host, `esx://`.
    Host,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// What is there.
    pub kind: Kind,
    /// Host name or IP address, without brackets.
    pub host: String,
    /// Port of the SDK.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// `no_verify=1`: the certificate need not be signed by an authority.
    pub no_verify: bool,
}

impl Address {
    /// Reads a `vmware_uri`.
    pub fn parse(uri: &str) -> Result<Self, AddressError> {
        let no_host = |reason: &str| AddressError::NoHost { uri: uri.to_owned(), reason: reason.to_owned() };
        let parsed = Url::parse(uri).map_err(|error| no_host(&error.to_string()))?;
        let kind = match parsed.scheme() {
            "vpx" => Kind::Vcenter,
            "esx" => Kind::Host,
            _ => return Err(AddressError::Scheme { uri: uri.to_owned() }),
        };
        let host = match parsed.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            _ => return Err(no_host("there is none after ://")),
        };
        let user = match parsed.username() {
            "" if kind == Kind::Vcenter => VCENTER_USER.to_owned(),
            "" => HOST_USER.to_owned(),
            user => percent_decode(user).ok_or_else(|| AddressError::User { uri: uri.to_owned() })?,
        };
        let mut given = parsed.query_pairs().filter(|(key, _)| key == "no_verify").map(|(_, value)| value);
        let no_verify = match (given.next(), given.next()) {
            (_, Some(_)) => return Err(AddressError::ManyNoVerify),
            (None, _) => false,
            // What Python's int() took.
            (Some(value), _) => match value.trim().parse() {
                Ok(0_i64) => false,
                Ok(1) => true,
                _ => return Err(AddressError::NoVerify),
            },
        };
        Ok(Self { kind, host, port: parsed.port().unwrap_or(HTTPS), user, no_verify })
    }

    /// URL of the SDK.
    pub fn sdk(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == HTTPS {
            format!("https://{host}/sdk")
        } else {
            format!("https://{host}:{}/sdk", self.port)
        }
    }

    /// The port where it is not the usual one.
    pub fn unusual_port(&self) -> Option<u16> {
        (self.port != HTTPS).then_some(self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(kind: Kind, host: &str, port: u16, user: &str, no_verify: bool) -> Address {
        Address { kind, host: host.to_owned(), port, user: user.to_owned(), no_verify }
    }

    /// contract.md 6.1: 443, and a user by the kind of server, unless the URI says otherwise.
    #[test]
    fn what_the_uri_leaves_out_has_a_default() {
        use Kind::{Host, Vcenter};
        for (uri, expected) in [
            ("vpx://vc.example.com/DC/cl/h", address(Vcenter, "vc.example.com", 443, VCENTER_USER, false)),
            ("esx://10.0.0.1?no_verify=1", address(Host, "10.0.0.1", 443, "root", true)),
            ("esx://10.0.0.1/?no_verify=0", address(Host, "10.0.0.1", 443, "root", false)),
            ("esx://me@h:8443", address(Host, "h", 8443, "me", false)),
            ("vpx://a%40b.c@vc:443/My DC/h", address(Vcenter, "vc", 443, "a@b.c", false)),
            ("vpx://a@b.c@vc/DC", address(Vcenter, "vc", 443, "a@b.c", false)),
            ("vpx://DOM%5cme@vc/DC", address(Vcenter, "vc", 443, "DOM\\me", false)),
            ("vpx://DOM\\me@vc/DC", address(Vcenter, "vc", 443, "DOM\\me", false)),
            ("vpx://[fe80::1]:444/DC?a=b&no_verify=1", address(Vcenter, "fe80::1", 444, VCENTER_USER, true)),
        ] {
            assert_eq!(Address::parse(uri), Ok(expected), "{uri}");
        }
    }

    #[test]
    fn the_sdk_is_always_https() {
        for (uri, sdk) in [
            ("vpx://vc/DC", "https://vc/sdk"),
            ("vpx://vc:8989/DC", "https://vc:8989/sdk"),
            ("esx://[::1]", "https://[::1]/sdk"),
        ] {
            assert_eq!(Address::parse(uri).unwrap().sdk(), sdk);
        }
    }

    #[test]
    fn no_verify_is_said_once_and_is_0_or_1() {
        for (query, expected) in [
            ("no_verify=1&no_verify=1", AddressError::ManyNoVerify),
            ("no_verify=yes", AddressError::NoVerify),
            ("no_verify=", AddressError::NoVerify),
            ("no_verify=2", AddressError::NoVerify),
            ("no_verify=-1", AddressError::NoVerify),
        ] {
            assert_eq!(Address::parse(&format!("esx://h?{query}")), Err(expected), "{query}");
        }
    }

    #[test]
    fn other_uris_are_refused_with_what_to_write() {
        for uri in ["qemu:///system", "ssh://root@h/x.vmx", "https://vc/sdk"] {
            assert!(matches!(Address::parse(uri), Err(AddressError::Scheme { .. })), "{uri}");
        }
        for uri in ["", "vc.example.com", "vpx://", "esx:///", "esx:h"] {
            let error = Address::parse(uri).unwrap_err();
            assert!(error.to_string().contains("names no host"), "{uri}: {error}");
        }
        assert!(matches!(Address::parse("esx://%ff@h"), Err(AddressError::User { .. })));
    }
}

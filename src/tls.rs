//! Whom a server's certificate is believed: a pinned fingerprint, the site's authorities, or anybody.
//!
//! Self-signed certificates of appliances are often authority and leaf in one, which webpki refuses even as a root of
//! their own: the pin is the real answer (crates.md 3.12), and one that stands in the bundle itself is believed, too, as
//! OpenSSL does. A pin is compared at every handshake, so a certificate that
//! changes in the middle of a job is refused too (peers.md 6.3, row 28). Used by vSphere's client and [`crate::http`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Bundles of the distributions, for a site that names none.
const BUNDLES: [&str; 2] = ["/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt"];

/// Trust cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Neither kind of fingerprint.
    #[error(
        "vmware_fingerprint {given} is no fingerprint: 20 bytes (SHA-1) or 32 bytes (SHA-256) in hexadecimal digits, \
         with or without colons"
    )]
    Fingerprint {
        /// What was given.
        given: String,
    },
    /// The authorities cannot be read.
    #[error("cannot read the authorities in {path}: {reason}; set ca_bundle in the site configuration")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up")]
    Library(#[from] Error),
}

/// Fingerprint of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fingerprint {
    /// The form of VDDK and of libvirt.
    Sha1([u8; 20]),
    /// The form of newer tools.
    Sha256([u8; 32]),
}

impl Fingerprint {
    /// Reads either form: colons or not, any case.
    pub fn parse(given: &str) -> Result<Self, TlsError> {
        let error = || TlsError::Fingerprint { given: crate::json::one_line(given, 100) };
        let mut bytes = Vec::new();
        let mut high = None;
        for character in given.trim().chars().filter(|&character| character != ':') {
            let digit = character.to_digit(16).ok_or_else(error)? as u8;
            match high.take() {
                None => high = Some(digit),
                Some(high) => bytes.push(high << 4 | digit),
            }
        }
        if high.is_some() {
            return Err(error());
        }
        if let Ok(sha1) = bytes.as_slice().try_into() {
            return Ok(Self::Sha1(sha1));
        }
        bytes.as_slice().try_into().map(Self::Sha256).map_err(|_| error())
    }

    /// SHA-1 of a certificate.
    pub fn sha1(certificate: &[u8]) -> Self {
        let mut bytes = [0; 20];
        bytes.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate).as_ref());
        Self::Sha1(bytes)
    }

    /// SHA-256 of a certificate.
    pub fn sha256(certificate: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self::Sha256(bytes)
    }

    /// The same algorithm over another certificate.
    fn like(&self, certificate: &[u8]) -> Self {
        match self {
            Self::Sha1(_) => Self::sha1(certificate),
            Self::Sha256(_) => Self::sha256(certificate),
        }
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes: &[u8] = match self {
            Self::Sha1(bytes) => bytes,
            Self::Sha256(bytes) => bytes,
        };
        for (index, byte) in bytes.iter().enumerate() {
            if index > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

/// Whom to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// This certificate only, whoever signed it and whatever it is valid for.
    Pinned(Fingerprint),
    /// Certificates for the host that an authority in this bundle signed.
    Authorities(PathBuf),
    /// Anybody: `no_verify=1` without a fingerprint.
    Anybody,
}

impl Trust {
    /// A fingerprint is pinned even with `no_verify`; without both, the authorities of `bundle` or of the distribution
    /// decide.
    pub fn new(fingerprint: Option<&str>, no_verify: bool, bundle: Option<&Path>) -> Result<Self, TlsError> {
        match fingerprint.filter(|fingerprint| !fingerprint.is_empty()) {
            Some(fingerprint) => Fingerprint::parse(fingerprint).map(Self::Pinned),
            None if no_verify => Ok(Self::Anybody),
            None => {
                let first = BUNDLES.iter().map(Path::new).find(|path| path.exists());
                let bundle = bundle.or(first).unwrap_or(Path::new(BUNDLES[0]));
                Ok(Self::Authorities(bundle.to_owned()))
            }
        }
    }
}

/// What handshakes have shown. Shared by the client and the verifier inside its TLS.
#[derive(Debug, Default)]
pub struct Seen {
    last: Mutex<Last>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Last {
    accepted: Option<Fingerprint>,
    refused: Option<Fingerprint>,
}

impl Seen {
    /// SHA-1 of the certificate that was believed: the thumbprint that VDDK wants. `None` before a handshake.
    pub fn thumbprint(&self) -> Option<String> {
        self.get().accepted.map(|fingerprint| fingerprint.to_string())
    }

    /// The fingerprint that was shown where another one is pinned, in the algorithm of the pin.
    pub fn refused(&self) -> Option<Fingerprint> {
        self.get().refused
    }

    fn get(&self) -> Last {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, last: Last) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }
}

/// The TLS that believes `trust` and tells `seen`.
pub fn config(trust: &Trust, seen: Arc<Seen>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let rule = match trust {
        Trust::Pinned(fingerprint) => Rule::Pinned(*fingerprint),
        Trust::Authorities(bundle) => {
            let (verifier, listed) = authorities(bundle, provider.clone())?;
            Rule::Authorities(verifier, listed)
        }
        Trust::Anybody => Rule::Anybody,
    };
    let verifier = Arc::new(Verifier { rule, provider: provider.clone(), seen });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // A resumed session shows no certificate, and every connection is to be checked.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The verifier of a bundle, and the certificates in it.
fn authorities(
    bundle: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>), TlsError> {
    let error = |reason: String| TlsError::Bundle { path: bundle.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    let mut listed = Vec::new();
    let certificates = CertificateDer::pem_file_iter(bundle).map_err(|problem| error(problem.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|problem| error(problem.to_string()))?;
        listed.push(certificate.clone());
        // Bundles hold old certificates that webpki cannot read; the others count.
        if let Err(problem) = roots.add(certificate) {
            tracing::debug!("an authority in {} is left out: {problem}", bundle.display());
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok((verifier.map_err(|problem| error(problem.to_string()))?, listed))
}

/// Is this the refusal of a certificate that is good but for being an authority's, too?
fn is_only_an_authority(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(why)) if format!("{why:?}").contains("CaUsedAsEndEntity"))
}

#[derive(Debug)]
enum Rule {
    Pinned(Fingerprint),
    Authorities(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>),
    Anybody,
}

#[derive(Debug)]
struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
    seen: Arc<Seen>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.rule {
            Rule::Pinned(expected) => {
                let shown = expected.like(leaf);
                if shown != *expected {
                    self.seen.note(Last { accepted: None, refused: Some(shown) });
                    return Err(CertificateError::ApplicationVerificationFailure.into());
                }
            }
            Rule::Authorities(verifier, listed) => {
                match verifier.verify_server_cert(leaf, intermediates, name, ocsp, now) {
                    // An appliance's own certificate, signed by itself and put into the bundle by hand.
                    Err(error)
                        if is_only_an_authority(&error) && listed.iter().any(|known| known == leaf) =>
                    {
                        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
                    }
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
            }
            Rule::Anybody => {}
        }
        self.seen.note(Last { accepted: Some(Fingerprint::sha1(leaf)), refused: None });
        Ok(ServerCertVerified::assertion())
    }

    // Whoever shows the certificate must hold its key, whatever is believed of it.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both forms, however they are written.
    #[test]
    fn a_fingerprint_may_be_written_in_any_way() {
        // openssl x509 -fingerprint writes colons and capitals, sha1sum neither.
        let sha1 = Fingerprint::sha1(b"abc");
        let sha256 = Fingerprint::sha256(b"abc");
        assert_eq!(sha1.to_string(), "A9:99:3E:36:47:06:81:6A:BA:3E:25:71:78:50:C2:6C:9C:D0:D8:9D");
        for known in [sha1, sha256] {
            let shown = known.to_string();
            for written in [
                shown.clone(),
                shown.to_lowercase(),
                shown.replace(':', ""),
                format!(" {} ", shown.replace(':', "").to_lowercase()),
            ] {
                assert_eq!(Fingerprint::parse(&written).unwrap(), known, "{written}");
            }
        }
    }

    #[test]
    fn what_is_no_fingerprint_is_refused_with_what_one_looks_like() {
        let whole = Fingerprint::sha1(b"abc").to_string();
        for wrong in ["", "xyz", &whole[..57], &format!("{whole}:0"), &format!("{whole}:00"), "é"] {
            let error = Fingerprint::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("SHA-1") && error.contains("SHA-256"), "{wrong}: {error}");
        }
    }

    /// contract.md 6.1: a fingerprint counts even where certificates are not verified.
    #[test]
    fn a_fingerprint_is_pinned_whatever_else_is_said() {
        let print = Fingerprint::sha256(b"x");
        for no_verify in [true, false] {
            let trust = Trust::new(Some(&print.to_string()), no_verify, Some(Path::new("/ca"))).unwrap();
            assert_eq!(trust, Trust::Pinned(print));
        }
        assert_eq!(Trust::new(None, true, None).unwrap(), Trust::Anybody);
        assert_eq!(Trust::new(Some(""), true, None).unwrap(), Trust::Anybody);
        let bundle = Path::new("/ca");
        assert_eq!(Trust::new(None, false, Some(bundle)).unwrap(), Trust::Authorities(bundle.to_owned()));
    }

    #[test]
    fn a_bundle_that_cannot_be_read_is_named() {
        let trust = Trust::Authorities("/nowhere/ca.pem".into());
        let error = config(&trust, Arc::default()).unwrap_err().to_string();
        assert!(error.contains("/nowhere/ca.pem"), "{error}");
    }
}

//! Certificates for the servers of this suite, made by openssl when they are needed: no key is in the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exports::site::run;

/// A certificate and its key, as PEM files.
pub struct Certificate {
    pub file: PathBuf,
    pub key: PathBuf,
}

/// For `127.0.0.1`, signed by itself.
pub fn self_signed(directory: &Path, name: &str) -> Certificate {
    self_signed_for(directory, name, "127.0.0.1")
}

/// For `host`, signed by itself.
pub fn self_signed_for(directory: &Path, name: &str, host: &str) -> Certificate {
    make(directory, name, host, &[])
}

/// For `host`, signed by `authority`.
pub fn signed_by(directory: &Path, authority: &Certificate, name: &str, host: &str) -> Certificate {
    let signer = ["-CA".as_ref(), authority.file.as_path(), "-CAkey".as_ref(), authority.key.as_path()];
    make(directory, name, host, &signer)
}

fn make(directory: &Path, name: &str, host: &str, signer: &[&Path]) -> Certificate {
    let (file, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    // A leaf that is no authority: rustls takes no other one for a leaf.
    let constraint = if signer.is_empty() { "CA:TRUE" } else { "CA:FALSE" };
    let subject = format!("/CN={name}");
    let address = format!("subjectAltName=IP:{host}");
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "30", "-subj", &subject, "-addext", &address])
        .args(["-addext", &format!("basicConstraints=critical,{constraint}"), "-keyout"])
        .args([&key, Path::new("-out"), &file])
        .args(signer));
    Certificate { file, key }
}

impl Certificate {
    /// What openssl says of it; `algorithm` is `sha1` or `sha256`.
    pub fn fingerprint(&self, algorithm: &str) -> String {
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-noout", "-fingerprint", &format!("-{algorithm}"), "-in"]).arg(&self.file);
        let printed = String::from_utf8(run(&mut openssl)).unwrap();
        printed.trim().rsplit('=').next().unwrap().to_owned()
    }

    pub fn pem(&self) -> (Vec<u8>, Vec<u8>) {
        (fs::read(&self.file).unwrap(), fs::read(&self.key).unwrap())
    }
}

//! Certificates made by openssl, not by the libraries that the product verifies them with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::peers::skip;

/// A folder of certificates.
pub(crate) struct Pki(PathBuf);

impl Pki {
    /// In this folder; nothing, loudly, where there is no openssl.
    pub(crate) fn new(folder: &Path) -> Option<Pki> {
        let found = Command::new("openssl").arg("version").stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return skip("certificates need openssl");
        }
        std::fs::create_dir_all(folder).expect("the folder is writable");
        Some(Pki(folder.to_owned()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn openssl(&self, arguments: &[&str]) -> String {
        let output = Command::new("openssl").args(arguments).current_dir(&self.0).output().expect("openssl");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// NAME.pem and NAME.key of an authority.
    pub(crate) fn authority(&self, name: &str) {
        let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        self.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "365",
            "-subj",
            &subject,
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-keyout",
            &key,
            "-out",
            &pem,
        ]);
    }

    /// NAME.pem and NAME.key, signed by an authority, for these names (`DNS:localhost,IP:127.0.0.1`).
    pub(crate) fn certificate(&self, name: &str, authority: &str, names: &str, days: i32) {
        let (key, pem, csr) = (format!("{name}.key"), format!("{name}.pem"), format!("{name}.csr"));
        let (ca, ca_key) = (format!("{authority}.pem"), format!("{authority}.key"));
        let subject = format!("/CN={name}");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &key,
            "-out",
            &csr,
        ]);
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={names}\n"
        );
        std::fs::write(self.path("extensions"), extensions).expect("the folder is writable");
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            &days.to_string(),
            "-extfile",
            "extensions",
            "-out",
            &pem,
        ]);
    }

    /// `sha256:…` of a certificate, as `pin` takes it.
    pub(crate) fn pin(&self, name: &str) -> String {
        let pem = format!("{name}.pem");
        let said = self.openssl(&["x509", "-in", &pem, "-noout", "-fingerprint", "-sha256"]);
        format!("sha256:{}", said.split('=').nth(1).expect("a fingerprint").trim())
    }

    /// Puts a certificate (with its key, where it has one) in the place of another.
    pub(crate) fn replace(&self, name: &str, by: &str) {
        for suffix in ["pem", "key"] {
            std::fs::copy(self.path(&format!("{by}.{suffix}")), self.path(&format!("{name}.{suffix}")))
                .expect("a file");
        }
    }
}

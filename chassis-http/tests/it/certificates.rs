//! Certificates for tests, by an authority that a test makes for itself. Tests of adapters use the file too.
#![allow(dead_code)] // not every binary needs all of it
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority, whose files are in one folder.
pub(crate) struct Authority {
    folder: PathBuf,
    /// Its certificate.
    pub(crate) ca: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

// === impl Authority ===

impl Authority {
    /// Writes `<name>.pem` into `folder`.
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key is made");
        let ca = folder.join(format!("{name}.pem"));
        write(&ca, &params.self_signed(&key).expect("an authority signs itself").pem());
        Authority { folder: folder.to_owned(), ca, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `localhost` and 127.0.0.1, for both ends of a connection.
    pub(crate) fn server(&self, name: &str) -> Identity {
        self.sign(name, CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]), &[])
    }

    /// A certificate for another name.
    pub(crate) fn server_called(&self, name: &str, host: &str) -> Identity {
        self.sign(name, CertificateParams::new([host.to_owned()]), &[])
    }

    /// A certificate that was valid once.
    pub(crate) fn expired(&self, name: &str) -> Identity {
        let mut params =
            CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("good names");
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(name, Ok(params), &[])
    }

    /// A certificate of a client, with the common name `name` and these organizations.
    pub(crate) fn client(&self, name: &str, organizations: &[&str]) -> Identity {
        self.sign(name, Ok(CertificateParams::default()), organizations)
    }

    fn sign(
        &self,
        name: &str,
        params: Result<CertificateParams, rcgen::Error>,
        organizations: &[&str],
    ) -> Identity {
        let mut params = params.expect("the names are good");
        params.distinguished_name.push(DnType::CommonName, name);
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let key = KeyPair::generate().expect("a key is made");
        let cert = params.signed_by(&key, &self.issuer).expect("an authority signs");
        let file = |kind: &str| self.folder.join(format!("{name}.{kind}"));
        let identity = Identity { cert: file("crt"), key: file("key") };
        write(&identity.cert, &cert.pem());
        write(&identity.key, &key.serialize_pem());
        identity
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the folder of a test takes files");
}

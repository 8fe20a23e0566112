//! Certificates and keys as they are now.

use crate::error::{Error, Result};
use crate::options::{Identity, Source, TlsOptions};

/// What a library needs to know beside the peer's name. Two connectors of the same material do the
/// same.
#[derive(PartialEq)]
pub(super) struct Material {
    pub(super) authorities: Vec<Text>,
    pub(super) identity: Option<Own>,
    pub(super) accepts_any_certificate: bool,
    pub(super) accepts_any_name: bool,
}

/// The content of a source, and the words for it in errors.
#[derive(PartialEq)]
pub(super) struct Text {
    pub(super) what: String,
    pub(super) bytes: Vec<u8>,
}

/// The client's certificate and key.
#[derive(PartialEq)]
pub(super) enum Own {
    Pkcs12 { archive: Text, password: String },
    Pem { certificates: Text, key: Text },
}

/// The format of a key, as its text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyFormat {
    Pkcs8,
    Pkcs1,
    Sec1,
    Encrypted,
    NoKey,
    NoPem,
}

impl Material {
    /// Reads all files that the options name.
    pub(super) fn read(options: &TlsOptions) -> Result<Self> {
        let authorities = options.ca_certificates.iter();
        let authorities = authorities.map(|it| Text::read(it, "CA certificates"));
        Ok(Self {
            authorities: authorities.collect::<Result<_>>()?,
            identity: options.identity.as_ref().map(Own::read).transpose()?,
            accepts_any_certificate: options.danger_accept_invalid_certs,
            accepts_any_name: options.danger_accept_invalid_hostnames
                || options.danger_accept_invalid_certs,
        })
    }
}

impl Text {
    fn read(source: &Source, what: &str) -> Result<Self> {
        let bytes = match source {
            Source::Bytes(bytes) => bytes.clone(),
            Source::File(path) => std::fs::read(path).map_err(|error| {
                let text = format!("cannot read {what} from {}: {error}", path.display());
                Error::invalid(text)
            })?,
        };
        let what = format!("{what} in {source:?}");
        Ok(Self { what, bytes })
    }

    pub(super) fn unusable(&self, why: &str) -> Error {
        Error::invalid(format!("unusable {}: {why}", self.what))
    }

    /// The error for a text without a certificate.
    pub(super) fn is_empty(&self) -> Error {
        let text = format!(
            "there is no certificate among the {} (PEM is expected)",
            self.what
        );
        Error::invalid(text)
    }

    /// A key's PEM text from its first line on: `openssl` writes other text before it.
    pub(super) fn key(&self) -> (KeyFormat, &[u8]) {
        const BEGIN: &[u8] = b"-----BEGIN ";
        for at in begins(&self.bytes, BEGIN) {
            let pem = self.bytes.get(at..).unwrap_or_default();
            let format = match pem.get(BEGIN.len()..).unwrap_or_default() {
                it if it.starts_with(b"PRIVATE KEY-----") => KeyFormat::Pkcs8,
                it if it.starts_with(b"RSA PRIVATE KEY-----") && is_encrypted(it) => {
                    KeyFormat::Encrypted
                }
                it if it.starts_with(b"EC PRIVATE KEY-----") && is_encrypted(it) => {
                    KeyFormat::Encrypted
                }
                it if it.starts_with(b"RSA PRIVATE KEY-----") => KeyFormat::Pkcs1,
                it if it.starts_with(b"EC PRIVATE KEY-----") => KeyFormat::Sec1,
                it if it.starts_with(b"ENCRYPTED PRIVATE KEY-----") => KeyFormat::Encrypted,
                _ => continue,
            };
            return (format, pem);
        }
        match begins(&self.bytes, BEGIN).next() {
            Some(_) => (KeyFormat::NoKey, &[]),
            None => (KeyFormat::NoPem, &[]),
        }
    }

    /// The error for a key in a format that the library does not read. It never shows the key.
    pub(super) fn key_refused(&self, format: KeyFormat) -> Error {
        let is = match format {
            KeyFormat::Pkcs8 => "is in PKCS#8",
            KeyFormat::Pkcs1 => "is in PKCS#1",
            KeyFormat::Sec1 => "is in SEC1",
            KeyFormat::Encrypted => "is encrypted",
            KeyFormat::NoKey => "is no private key",
            KeyFormat::NoPem => "is not in PEM",
        };
        Error::invalid(format!(
            "the {} {is}, and PKCS#8 in PEM (BEGIN PRIVATE KEY) is needed: \
             openssl pkcs8 -topk8 -nocrypt converts it",
            self.what
        ))
    }
}

impl Own {
    fn read(identity: &Identity) -> Result<Self> {
        Ok(match identity {
            Identity::Pkcs12 { archive, password } => Self::Pkcs12 {
                archive: Text::read(archive, "client's PKCS#12 archive")?,
                password: password.clone(),
            },
            Identity::Pem { certificates, key } => Self::Pem {
                certificates: Text::read(certificates, "client's certificates")?,
                key: Text::read(key, "client's key")?,
            },
        })
    }

    /// The error for a certificate and a key that cannot be used together.
    pub(super) fn unusable(&self, why: &str) -> Error {
        let what = match self {
            Self::Pkcs12 { archive, .. } => archive.what.clone(),
            Self::Pem { certificates, key } => {
                format!("{}, with the {}", certificates.what, key.what)
            }
        };
        Error::invalid(format!(
            "unusable client certificate and key: {what}: {why}"
        ))
    }
}

/// Where `what` begins in a text.
fn begins<'a>(text: &'a [u8], what: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let windows = text.windows(what.len()).enumerate();
    windows.filter_map(move |(at, it)| (it == what).then_some(at))
}

/// Whether the header lines of a key, in the format before PKCS#8, say that it is encrypted.
fn is_encrypted(pem: &[u8]) -> bool {
    let mut lines = pem.split(|it| *it == b'\n').skip(1);
    lines.next().is_some_and(|it| it.starts_with(b"Proc-Type:"))
}

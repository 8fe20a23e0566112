//! Options for TLS.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Source of a certificate or a key. Files are read at each connect, so that renewed files take
/// effect.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::File(path) => path.fmt(f),
        }
    }
}

/// The client's certificate and key.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "native-tls"), allow(dead_code))]
pub(crate) enum Identity {
    Pkcs12 { archive: Source, password: String },
    Pem { certificates: Source, key: Source },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pkcs12 { archive, .. } => write!(f, "PKCS#12 in {archive:?}"),
            Self::Pem { certificates, key } => {
                write!(f, "PEM in {certificates:?} and {key:?}")
            }
        }
    }
}

/// TLS for a connection: trusted certificates and the client's own certificate.
///
/// The default trusts the certificates that the system trusts, and checks that the broker's
/// certificate matches the host.
///
/// ```no_run
/// use leveret::{Connection, ConnectionOptions, TlsOptions};
///
/// let tls = TlsOptions::default()
///     .ca_certificate_file("/etc/ssl/rabbitmq/ca.pem")
///     .identity_files("/etc/ssl/rabbitmq/client.pem", "/etc/ssl/rabbitmq/client.key");
/// let options = ConnectionOptions::default().host("rabbitmq.example.com").tls(tls);
/// let connection = Connection::open_with(&options)?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// Needs this crate's feature `native-tls`, which is on by default, and the system's TLS: OpenSSL
/// on Linux, SChannel on Windows, Secure Transport on macOS.
///
/// See <https://www.rabbitmq.com/docs/ssl>.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsOptions {
    pub(crate) ca_certificates: Vec<Source>,
    pub(crate) identity: Option<Identity>,
    pub(crate) server_name: Option<String>,
    pub(crate) danger_accept_invalid_certs: bool,
    pub(crate) danger_accept_invalid_hostnames: bool,
}

impl TlsOptions {
    /// Sets the name that is sent to the broker (SNI) and that the broker's certificate must match.
    /// Default: the host.
    #[must_use]
    pub fn server_name(mut self, server_name: impl Into<String>) -> Self {
        self.server_name = Some(server_name.into());
        self
    }

    setters! {
        /// Whether to accept any certificate, even if it is expired, from an unknown authority, or
        /// for another host. An attacker on the network can then read and change everything,
        /// including passwords. Default: false.
        danger_accept_invalid_certs: bool;
        /// Whether to accept a certificate for any host. An attacker with a valid certificate for
        /// any host can then pose as the broker. Default: false.
        danger_accept_invalid_hostnames: bool;
    }

    /// Trusts these PEM certificates of authorities, in addition to those that the system trusts.
    /// Each call adds certificates.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificates.push(Source::Bytes(pem.into()));
        self
    }

    /// Trusts the certificates of a file, as [`ca_certificate`](Self::ca_certificate) does. The
    /// file is read at each connect.
    #[must_use]
    pub fn ca_certificate_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_certificates.push(Source::File(path.into()));
        self
    }

    /// Sets the client certificate and its key from a PKCS#12 archive (`.p12`, `.pfx`).
    #[must_use]
    pub fn identity_pkcs12(
        mut self,
        archive: impl Into<Vec<u8>>,
        password: impl Into<String>,
    ) -> Self {
        self.identity = Some(Identity::Pkcs12 {
            archive: Source::Bytes(archive.into()),
            password: password.into(),
        });
        self
    }

    /// Sets the client certificate from a PKCS#12 file, as
    /// [`identity_pkcs12`](Self::identity_pkcs12) does. The file is read at each connect.
    #[must_use]
    pub fn identity_pkcs12_file(
        mut self,
        path: impl Into<PathBuf>,
        password: impl Into<String>,
    ) -> Self {
        self.identity = Some(Identity::Pkcs12 {
            archive: Source::File(path.into()),
            password: password.into(),
        });
        self
    }

    /// Sets the client certificate, with its intermediate certificates, and its key, both in PEM.
    ///
    /// The key must be in PKCS#8 (`BEGIN PRIVATE KEY`) without a password; `openssl pkcs8 -topk8
    /// -nocrypt` converts it.
    #[must_use]
    pub fn identity_pem(
        mut self,
        certificates: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.identity = Some(Identity::Pem {
            certificates: Source::Bytes(certificates.into()),
            key: Source::Bytes(key.into()),
        });
        self
    }

    /// Sets the client certificate and key from PEM files, as [`identity_pem`](Self::identity_pem)
    /// does. The files are read at each connect.
    #[must_use]
    pub fn identity_files(
        mut self,
        certificates: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some(Identity::Pem {
            certificates: Source::File(certificates.into()),
            key: Source::File(key.into()),
        });
        self
    }
}

/// Whether this build has TLS at all.
pub(crate) fn check_tls() -> Result<()> {
    if cfg!(feature = "native-tls") {
        return Ok(());
    }
    Err(Error::invalid(
        "TLS (amqps) needs the feature \"native-tls\" of the crate leveret, which is switched off",
    ))
}

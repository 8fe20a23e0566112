//! Options for TLS.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;

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
/// # Libraries
///
/// The crate's feature `native-tls`, which is on by default, uses the system's TLS: OpenSSL on
/// Linux, SChannel on Windows, Secure Transport on macOS. The feature `rustls` uses [rustls] and
/// takes precedence if both are on. It needs no library of the system, which suits static builds:
///
/// ```toml
/// leveret = { version = "0.1", default-features = false, features = ["rustls"] }
/// ```
///
/// | | `native-tls` | `rustls` |
/// | --- | --- | --- |
/// | keys in PEM | PKCS#8 | PKCS#8, PKCS#1, SEC1 |
/// | keys with a password | in a PKCS#12 archive | no |
/// | PKCS#12 archives | yes | no |
/// | a self-signed server certificate, trusted | yes | without `CA:TRUE` |
/// | protocol versions | what the system allows | TLS 1.2 and 1.3 |
///
/// An error for an unusable key or archive names the command of `openssl` that converts it.
///
/// # Renewed certificates
///
/// Files are read at each connect, also after a lost connection, so a renewed certificate is used
/// without a restart. The certificates that the system trusts are read at the first connect, at the
/// next one after a failed TLS handshake, and again after an hour: reading them takes a tenth of a
/// second. Options and their clones share what was read.
///
/// See <https://www.rabbitmq.com/docs/ssl>.
///
/// [rustls]: https://docs.rs/rustls
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsOptions {
    pub(crate) ca_certificates: Vec<Source>,
    pub(crate) identity: Option<Identity>,
    pub(crate) server_name: Option<String>,
    pub(crate) danger_accept_invalid_certs: bool,
    pub(crate) danger_accept_invalid_hostnames: bool,
    pub(crate) prepared: Prepared,
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

    /// Sets the client certificate and its key from a PKCS#12 archive (`.p12`, `.pfx`). The feature
    /// `rustls` cannot read archives.
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
    /// -nocrypt` converts others. The feature `rustls` also reads PKCS#1 and SEC1 (`BEGIN RSA
    /// PRIVATE KEY`, `BEGIN EC PRIVATE KEY`).
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

/// What the IO thread has made of the options, for the next connection. Clones of the options share
/// it, and it is no part of what they say.
///
/// The mutex is the standard library's: options can be used in `catch_unwind`.
#[derive(Clone, Default)]
pub(crate) struct Prepared(Arc<Mutex<Slot>>);

type Slot = Option<Arc<dyn Any + Send + Sync>>;

impl Prepared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::downcast(self.lock().clone()?).ok()
    }

    pub(crate) fn set<T: Any + Send + Sync>(&self, prepared: Arc<T>) {
        *self.lock() = Some(prepared);
    }

    pub(crate) fn clear(&self) {
        *self.lock() = None;
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl PartialEq for Prepared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Prepared {}

/// Whether this build has TLS at all.
pub(crate) const IS_BUILT: bool = cfg!(any(feature = "native-tls", feature = "rustls"));

pub(crate) fn no_tls() -> Error {
    Error::invalid(
        "TLS (amqps) needs a feature of the crate leveret, \"native-tls\" or \"rustls\", and both \
         are switched off",
    )
}

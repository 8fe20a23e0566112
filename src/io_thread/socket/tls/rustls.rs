//! TLS with rustls.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{ring, CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct,
    RootCertStore, SignatureScheme,
};

use super::buffered::Buffered;
use super::material::{KeyFormat, Material, Own, Text};
use super::{Refused, Session};
use crate::error::{Error, Result};

pub(super) struct Connector(Arc<ClientConfig>);

impl Connector {
    pub(super) fn new(material: &Material) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let unusable = |error: rustls::Error| {
            Error::invalid(format!("unusable TLS options: {}", words(&error)))
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(material, &provider)?));
        let mut config = match &material.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = load(identity, &provider)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| identity.unusable(&words(&error)))?
            }
        };
        // A resumed session would not ask for a client certificate that has changed meanwhile.
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn connect(
        &self,
        name: &str,
        socket: Buffered,
    ) -> std::result::Result<Box<dyn Session>, Refused> {
        let no_name = |_| Refused::Failed(format!("{name:?} is not a name of a server"));
        let name = ServerName::try_from(name.to_owned()).map_err(no_name)?;
        let connection = ClientConnection::new(Arc::clone(&self.0), name)
            .map_err(|error| Refused::Failed(words(&error)))?;
        let mut stream = Stream {
            connection,
            socket,
            failure: None,
        };
        stream.shake_hands().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Refused::TimedOut,
            _ => Refused::Failed(error.to_string()),
        })?;
        Ok(Box::new(stream))
    }
}

#[derive(Debug)]
struct Stream {
    connection: ClientConnection,
    socket: Buffered,
    /// The next read fails with this error, after all decrypted bytes are read.
    failure: Option<io::Error>,
}

impl Stream {
    fn shake_hands(&mut self) -> io::Result<()> {
        while self.connection.is_handshaking() {
            self.encrypt()?;
            self.socket.flush()?;
            if self.connection.wants_read() && self.decrypt()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.encrypt()?;
        self.socket.flush()
    }

    /// Moves all records that are to be sent to the buffer.
    fn encrypt(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Reads some bytes, and decrypts the records that are complete. Returns the number of bytes.
    fn decrypt(&mut self) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut self.socket)?;
        let processed = self.connection.process_new_packets();
        // An alert for the peer.
        self.encrypt()?;
        match processed {
            Ok(_) => Ok(count),
            Err(error) => {
                let _ = self.socket.flush();
                Err(io::Error::other(words(&error)))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            match self.decrypt() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
                Err(error) => self.failure = Some(error),
                Ok(_) => {}
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.connection.writer().write(bytes)?;
        self.encrypt()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl Session for Stream {
    fn buffered(&mut self) -> &mut Buffered {
        &mut self.socket
    }

    fn close_notify(&mut self) {
        self.connection.send_close_notify();
        let _ = self.encrypt();
    }

    fn failure(&self, error: &io::Error) -> Option<String> {
        (error.kind() == ErrorKind::Other).then(|| error.to_string())
    }
}

/// Checks the server's certificate as far as the options ask for it.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// None if any certificate will do.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    accepts_any_name: bool,
}

impl Verifier {
    fn new(material: &Material, provider: &Arc<CryptoProvider>) -> Result<Self> {
        // Read them anyway, so that an unusable file is found.
        let mut own = RootCertStore::empty();
        for text in &material.authorities {
            for certificate in certificates(text)? {
                own.add(certificate)
                    .map_err(|error| text.unusable(&words(&error)))?;
            }
        }
        let authorities = match material.accepts_any_certificate {
            true => None,
            false => Some(Self::authorities(own, provider)?),
        };
        Ok(Self {
            provider: Arc::clone(provider),
            authorities,
            accepts_any_name: material.accepts_any_name,
        })
    }

    /// Adds those that the system trusts.
    fn authorities(
        mut roots: RootCertStore,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<WebPkiServerVerifier>> {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        let errors = system.errors;
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        built.build().map_err(|error| {
            let text = format!("no certificates of authorities: {error}; the system's: {errors:?}");
            Error::invalid(text)
        })
    }

    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // The name is checked last.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.accepts_any_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// Reads all certificates of a PEM text.
fn certificates(text: &Text) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&text.bytes).collect();
    let found = found.map_err(|error| text.unusable(&error.to_string()))?;
    if found.is_empty() {
        return Err(text.is_empty());
    }
    Ok(found)
}

fn load(
    identity: &Own,
    provider: &CryptoProvider,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    match identity {
        Own::Pkcs12 { .. } => Err(identity.unusable(
            "rustls reads no PKCS#12 archives: openssl pkcs12 -nodes converts them to PEM",
        )),
        Own::Pem {
            certificates: chain,
            key,
        } => {
            let chain = certificates(chain)?;
            match key.key() {
                (KeyFormat::Pkcs8 | KeyFormat::Pkcs1 | KeyFormat::Sec1, pem) => {
                    let loaded = PrivateKeyDer::from_pem_slice(pem);
                    let loaded = loaded.map_err(|error| key.unusable(&error.to_string()))?;
                    // A later failure is not the key's alone.
                    let tried = provider.key_provider.load_private_key(loaded.clone_key());
                    tried.map_err(|error| key.unusable(&words(&error)))?;
                    Ok((chain, loaded))
                }
                (format, _) => Err(key.key_refused(format)),
            }
        }
    }
}

/// The error in OpenSSL's words where it has some: users see the same with both libraries.
fn words(error: &rustls::Error) -> String {
    let reason = match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "certificate is not yet valid"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "hostname mismatch"
            }
            CertificateError::UnknownIssuer => "unknown issuer",
            CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
                "the server's own certificate is that of an authority (CA:TRUE)"
            }
            other => return format!("certificate verify failed: {other:?}"),
        },
        rustls::Error::AlertReceived(alert) => return format!("alert {}", alert_words(*alert)),
        rustls::Error::InvalidMessage(_) => return "the server does not speak TLS".to_owned(),
        other => return other.to_string(),
    };
    format!("certificate verify failed: {reason}")
}

fn alert_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "certificate required".to_owned(),
        AlertDescription::CertificateExpired => "certificate expired".to_owned(),
        AlertDescription::UnknownCA => "unknown ca".to_owned(),
        AlertDescription::BadCertificate => "bad certificate".to_owned(),
        AlertDescription::HandshakeFailure => "handshake failure".to_owned(),
        AlertDescription::ProtocolVersion => "protocol version".to_owned(),
        other => format!("{other:?}"),
    }
}

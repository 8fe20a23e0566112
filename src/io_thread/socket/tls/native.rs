//! TLS with the system's library.

use std::io;

use native_tls::{Certificate, HandshakeError, TlsConnector, TlsStream};

use super::buffered::Buffered;
use super::material::{KeyFormat, Material, Own, Text};
use super::{Refused, Session};
use crate::error::{Error, Result};

pub(super) struct Connector(TlsConnector);

impl Connector {
    pub(super) fn new(material: &Material) -> Result<Self> {
        let mut builder = TlsConnector::builder();
        for text in &material.authorities {
            for certificate in certificates(text)? {
                builder.add_root_certificate(certificate);
            }
        }
        if let Some(identity) = &material.identity {
            builder.identity(load(identity)?);
        }
        builder
            .danger_accept_invalid_certs(material.accepts_any_certificate)
            .danger_accept_invalid_hostnames(material.accepts_any_name);
        let built = builder.build().map_err(|error| match &material.identity {
            // For example, a key that does not match the certificate.
            Some(identity) => identity.unusable(&words(&error)),
            None => Error::invalid(format!("unusable TLS options: {}", words(&error))),
        });
        built.map(Self)
    }

    pub(super) fn connect(
        &self,
        name: &str,
        socket: Buffered,
    ) -> std::result::Result<Box<dyn Session>, Refused> {
        match self.0.connect(name, socket) {
            Ok(stream) => Ok(Box::new(stream)),
            Err(HandshakeError::WouldBlock(_)) => Err(Refused::TimedOut),
            Err(HandshakeError::Failure(error)) => Err(Refused::Failed(words(&error))),
        }
    }
}

impl Session for TlsStream<Buffered> {
    fn buffered(&mut self) -> &mut Buffered {
        self.get_mut()
    }

    fn close_notify(&mut self) {
        let _ = self.shutdown();
    }

    fn failure(&self, error: &io::Error) -> Option<String> {
        (error.kind() == io::ErrorKind::Other).then(|| readable(&error.to_string()))
    }
}

/// Reads all certificates of a PEM text.
fn certificates(text: &Text) -> Result<Vec<Certificate>> {
    let found = Certificate::stack_from_pem(&text.bytes);
    let found = found.map_err(|error| text.unusable(&words(&error)))?;
    if found.is_empty() {
        return Err(text.is_empty());
    }
    Ok(found)
}

fn load(identity: &Own) -> Result<native_tls::Identity> {
    match identity {
        Own::Pkcs12 { archive, password } => {
            let loaded = native_tls::Identity::from_pkcs12(&archive.bytes, password);
            loaded.map_err(|error| identity.unusable(&words(&error)))
        }
        Own::Pem {
            certificates: chain,
            key,
        } => {
            // Check the certificates first, so that a later failure is the key's fault.
            certificates(chain)?;
            match key.key() {
                (KeyFormat::Pkcs8, pem) => native_tls::Identity::from_pkcs8(&chain.bytes, pem)
                    .map_err(|error| key.unusable(&words(&error))),
                (format, _) => Err(key.key_refused(format)),
            }
        }
    }
}

fn words(error: &native_tls::Error) -> String {
    readable(&error.to_string())
}

/// Extracts the reason from an error of OpenSSL, which looks like this:
/// `error:code:library:function:reason:file:line:data: (verification)`.
/// Other TLS libraries' errors stay as they are.
fn readable(text: &str) -> String {
    let Some((_, openssl)) = text.split_once("error:") else {
        return text.to_owned();
    };
    let reason = openssl.split(':').nth(3).unwrap_or(openssl);
    let verification = text
        .rsplit_once('(')
        .and_then(|(_, end)| end.strip_suffix(')'));
    match verification {
        Some(verification) => format!("{reason}: {verification}"),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn openssl_errors_become_readable() {
        let verify = "error:0A000086:SSL routines:tls_post_process_server_certificate:\
                      certificate verify failed:../ssl/statem/statem_clnt.c:1889:: \
                      (certificate has expired)";
        assert_eq!(
            readable(verify),
            "certificate verify failed: certificate has expired"
        );
        let version =
            "error:0A00010B:SSL routines:ssl3_get_record:wrong version number:../ssl/record.c:354:";
        assert_eq!(readable(version), "wrong version number");
        assert_eq!(
            readable("The certificate was not trusted."),
            "The certificate was not trusted."
        );
    }
}

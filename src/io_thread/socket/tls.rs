//! The TLS handshake over a TCP socket.

use super::transport::{Socket, Transport};
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::options::TlsOptions;

#[cfg(not(feature = "native-tls"))]
pub(crate) fn handshake(socket: Socket, _: &TlsOptions, _: &str, _: Deadline) -> Result<Transport> {
    // Not reached: without the feature, the check of the options refuses TLS.
    crate::options::check_tls().map(|()| Transport::Tcp(socket))
}

/// Does the TLS handshake on a blocking socket. The peer's certificate must be for `host`, unless
/// the options say otherwise.
#[cfg(feature = "native-tls")]
pub(crate) fn handshake(
    socket: Socket,
    options: &TlsOptions,
    host: &str,
    deadline: Deadline,
) -> Result<Transport> {
    let connector = native::connector(options)?;
    let name = options.server_name.as_deref().unwrap_or(host);
    let first_words = socket.first_words();
    let error = match connector.connect(name, socket) {
        Ok(transport) => return Ok(Transport::Tls(Box::new(transport))),
        Err(error) => error,
    };
    if deadline.remaining().is_zero() {
        return Err(Error::timed_out(deadline.duration()).doing("waiting for the TLS handshake"));
    }
    Err(match error {
        _ if first_words.are_amqp() => {
            Error::tls("the server speaks AMQP without TLS at this port")
        }
        native_tls::HandshakeError::WouldBlock(_) => {
            Error::timed_out(deadline.duration()).doing("waiting for the TLS handshake")
        }
        native_tls::HandshakeError::Failure(error) => Error::tls(readable(&error.to_string())),
    })
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

/// The TLS error that made a read fail, if one did. A peer can refuse our certificate after the
/// handshake has ended on our side.
pub(crate) fn failure_of(transport: &Transport, error: &std::io::Error) -> Option<Error> {
    let says_tls = transport.is_tls() && error.kind() == std::io::ErrorKind::Other;
    says_tls.then(|| Error::tls(readable(&error.to_string())))
}

#[cfg(feature = "native-tls")]
mod native {
    use std::borrow::Cow;

    use native_tls::{Certificate, TlsConnector};

    use crate::error::{Error, Result};
    use crate::options::{Identity, Source, TlsOptions};

    pub(super) fn connector(options: &TlsOptions) -> Result<TlsConnector> {
        let mut builder = TlsConnector::builder();
        for source in &options.ca_certificates {
            let pem = read(source, "CA certificates")?;
            for certificate in certificates(&pem, source, "CA certificates")? {
                builder.add_root_certificate(certificate);
            }
        }
        if let Some(identity) = &options.identity {
            builder.identity(load(identity)?);
        }
        builder
            .danger_accept_invalid_certs(options.danger_accept_invalid_certs)
            .danger_accept_invalid_hostnames(
                options.danger_accept_invalid_hostnames || options.danger_accept_invalid_certs,
            );
        builder.build().map_err(|error| match &options.identity {
            // For example, a key that does not match the certificate.
            Some(identity) => unusable(
                &format!("client certificate and key ({identity:?})"),
                &error,
            ),
            None => unusable("TLS options", &error),
        })
    }

    fn read<'a>(source: &'a Source, what: &str) -> Result<Cow<'a, [u8]>> {
        match source {
            Source::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Source::File(path) => std::fs::read(path).map(Cow::Owned).map_err(|error| {
                let text = format!("cannot read {what} from {}: {error}", path.display());
                Error::invalid(text)
            }),
        }
    }

    /// Reads all certificates of a PEM text.
    fn certificates(pem: &[u8], source: &Source, what: &str) -> Result<Vec<Certificate>> {
        let found = Certificate::stack_from_pem(pem)
            .map_err(|error| unusable(&format!("{what} in {source:?}"), &error))?;
        if found.is_empty() {
            let text = format!("{what}: there is no certificate in {source:?} (PEM is expected)");
            return Err(Error::invalid(text));
        }
        Ok(found)
    }

    /// Returns a PEM text from the first line of its key on: `openssl` writes other text before it,
    /// which the system's TLS refuses. On failure, the error says what the text holds instead, but
    /// never shows its content.
    fn pkcs8(text: &[u8]) -> Result<&[u8], String> {
        const BEGIN: &[u8] = b"-----BEGIN PRIVATE KEY-----";
        let begin = text.windows(BEGIN.len()).position(|it| it == BEGIN);
        if let Some(key) = begin.and_then(|at| text.get(at..)) {
            return Ok(key);
        }
        let needed = "PKCS#8 in PEM (BEGIN PRIVATE KEY) is needed: \
                      openssl pkcs8 -topk8 -nocrypt converts it";
        let text = String::from_utf8_lossy(text);
        let is = match text {
            text if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") => "is encrypted",
            text if text.contains("-----BEGIN RSA PRIVATE KEY-----") => "is in PKCS#1",
            text if text.contains("-----BEGIN EC PRIVATE KEY-----") => "is in SEC1",
            text if text.contains("-----BEGIN ") => "is no private key",
            _ => "is not in PEM",
        };
        Err(format!("{is}, and {needed}"))
    }

    fn load(identity: &Identity) -> Result<native_tls::Identity> {
        let loaded = match identity {
            Identity::Pkcs12 { archive, password } => {
                let archive = read(archive, "the client's PKCS#12 archive")?;
                native_tls::Identity::from_pkcs12(&archive, password)
            }
            Identity::Pem { certificates, key } => {
                let chain = read(certificates, "the client's certificates")?;
                // Check the certificates first, so that a later failure is the key's fault.
                self::certificates(&chain, certificates, "the client's certificates")?;
                let text = read(key, "the client's key")?;
                let pem = pkcs8(&text)
                    .map_err(|why| Error::invalid(format!("the client's key in {key:?} {why}")))?;
                let loaded = native_tls::Identity::from_pkcs8(&chain, pem);
                return loaded
                    .map_err(|error| unusable(&format!("client's key in {key:?}"), &error));
            }
        };
        loaded.map_err(|error| {
            unusable(
                &format!("client certificate and key ({identity:?})"),
                &error,
            )
        })
    }

    fn unusable(what: &str, error: &native_tls::Error) -> Error {
        Error::invalid(format!(
            "unusable {what}: {}",
            super::readable(&error.to_string())
        ))
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

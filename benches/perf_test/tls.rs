//! TLS for the sink and for the limit.

use std::error::Error;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::Path;

use native_tls::{Identity, TlsAcceptor, TlsStream};

use crate::client::CA;
use crate::sink::{Sink, Stream};

impl Stream for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }
}

/// Starts a sink with a certificate and its key, both in PEM, the key in PKCS#8.
pub(crate) fn start(certificate: &Path, key: &Path) -> Result<Sink, Box<dyn Error>> {
    let identity = Identity::from_pkcs8(&fs::read(certificate)?, &fs::read(key)?)?;
    let acceptor = TlsAcceptor::new(identity)?;
    let accept = move |stream| acceptor.accept(stream).map_err(io::Error::other);
    Ok(Sink::start_with("amqps", accept)?)
}

/// The PEM file that clients trust.
fn authority() -> io::Result<Vec<u8>> {
    let path = std::env::var_os(CA).ok_or_else(|| io::Error::other(format!("{CA} is not set")))?;
    fs::read(path)
}

/// Connects to the sink at 127.0.0.1 with the library that the client uses.
#[cfg(not(feature = "rustls"))]
pub(crate) fn connect(stream: TcpStream) -> io::Result<Box<dyn Stream>> {
    let mut builder = native_tls::TlsConnector::builder();
    let trusted = native_tls::Certificate::from_pem(&authority()?).map_err(io::Error::other)?;
    let connector = builder.add_root_certificate(trusted).build();
    let connector = connector.map_err(io::Error::other)?;
    let connected = connector.connect("127.0.0.1", stream);
    Ok(Box::new(connected.map_err(io::Error::other)?))
}

#[cfg(feature = "rustls")]
pub(crate) fn connect(stream: TcpStream) -> io::Result<Box<dyn Stream>> {
    use rustls::pki_types::{pem::PemObject, CertificateDer, ServerName};

    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&authority()?) {
        let certificate = certificate.map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
    }
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").map_err(io::Error::other)?;
    let connection = rustls::ClientConnection::new(config.into(), name);
    let connection = connection.map_err(io::Error::other)?;
    Ok(Box::new(rustls::StreamOwned::new(connection, stream)))
}

#[cfg(feature = "rustls")]
impl Stream for rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }
}

//! Runs the sink over TLS.

use std::error::Error;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::Path;

use native_tls::{Identity, TlsAcceptor, TlsStream};

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

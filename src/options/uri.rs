//! AMQP URIs, after <https://www.rabbitmq.com/docs/uri-spec>.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{percent_decode_str, utf8_percent_encode, AsciiSet, NON_ALPHANUMERIC};

use super::{ConnectionOptions, Endpoint, LoginMethod, TlsOptions};
use crate::error::{Error, ErrorKind, Result};

/// What is encoded in a host. IPv6 addresses keep their colons, since they are in brackets.
const NOT_IN_HOST: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

impl ConnectionOptions {
    /// Reads options from a URI. Options that the URI omits keep their defaults.
    ///
    /// Commas separate several hosts: the second host and those after it are added as with
    /// [`endpoint`](Self::endpoint). The query can set:
    ///
    /// - `heartbeat` (seconds), `connection_timeout` (milliseconds), `channel_max`, `frame_max`
    /// - `auth_mechanism`: `plain`, `amqplain` or `external`
    /// - with `amqps` only: `cacertfile`, `certfile` and `keyfile` (paths of PEM files), `verify`
    ///   (`verify_peer` or `verify_none`) and `server_name_indication`
    ///
    /// ```
    /// use leveret::ConnectionOptions;
    ///
    /// let uri = "amqps://me:secret@rabbit.example.com/prod?cacertfile=ca.pem";
    /// let options = ConnectionOptions::from_uri(uri)?;
    /// assert_eq!(options.to_string(), "amqps://me@rabbit.example.com:5671/prod");
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUri`] names the invalid part, never the
    /// password.
    ///
    /// See <https://www.rabbitmq.com/docs/uri-spec> and
    /// <https://www.rabbitmq.com/docs/uri-query-parameters>.
    pub fn from_uri(uri: &str) -> Result<Self> {
        parse(uri)
    }
}

/// Reads options from a URI: see [`from_uri`](ConnectionOptions::from_uri).
impl FromStr for ConnectionOptions {
    type Err = Error;

    fn from_str(uri: &str) -> Result<Self> {
        parse(uri)
    }
}

/// Reads options from a URI: see [`from_uri`](ConnectionOptions::from_uri).
impl TryFrom<&str> for ConnectionOptions {
    type Error = Error;

    fn try_from(uri: &str) -> Result<Self> {
        parse(uri)
    }
}

/// Reads options from a URI: see [`from_uri`](ConnectionOptions::from_uri).
impl TryFrom<String> for ConnectionOptions {
    type Error = Error;

    fn try_from(uri: String) -> Result<Self> {
        parse(&uri)
    }
}

/// Formats the options as a URI without the password.
impl fmt::Display for ConnectionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self, f)
    }
}

/// Parses `amqp://user:password@host:port/vhost?query`. Missing parts keep their defaults.
fn parse(uri: &str) -> Result<ConnectionOptions> {
    let mut options = ConnectionOptions::default();
    let rest = match uri.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("amqp") => rest,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("amqps") => {
            options.tls = Some(TlsOptions::default());
            rest
        }
        // The error does not repeat the text, which may be a password.
        _ => return Err(invalid("it must begin with amqp:// or amqps://")),
    };
    if rest.contains(char::is_control) {
        return Err(invalid(
            "it must have no control character, such as a line break at the end",
        ));
    }
    if rest.contains('#') {
        return Err(invalid("it must have no fragment (#)"));
    }
    // Checked first: otherwise a part of the password would be taken for the port or virtual host,
    // and shown.
    if let Some((_, after)) = rest.split_once(['/', '?']) {
        if after.contains('@') {
            return Err(invalid(
                "an @ follows the first / or ?; in user name and password, write @, / and ? as %40, %2f \
                 and %3f",
            ));
        }
    }
    let (rest, query) = split_before(rest, '?');
    let (authority, path) = split_before(rest, '/');
    read_authority(authority, &mut options)?;
    if let Some(vhost) = path {
        if vhost.contains('/') {
            return Err(invalid(
                "a slash inside the virtual host must be written as %2f",
            ));
        }
        options.vhost = decode(vhost, "the virtual host")?;
    }
    read_query(query.unwrap_or_default(), &mut options)?;
    Ok(options)
}

/// Writes the options as a URI that [`parse`] can read, without the password.
fn write(options: &ConnectionOptions, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let scheme = if options.tls.is_some() {
        "amqps"
    } else {
        "amqp"
    };
    write!(f, "{scheme}://{}@", encode(&options.username))?;
    for (at, endpoint) in options.endpoints().iter().enumerate() {
        let separator = if at == 0 { "" } else { "," };
        let host = utf8_percent_encode(&endpoint.host, NOT_IN_HOST).to_string();
        let port = endpoint.port;
        write!(f, "{separator}{}", Endpoint { host, port })?;
    }
    write!(f, "/{}", encode(&options.vhost))
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidUri(text.into()))
}

/// Splits at the separator. `None`: the text has no separator.
fn split_before(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn decode(text: &str, what: &str) -> Result<String> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        let hex = after.as_bytes().get(..2).unwrap_or_default();
        if hex.len() != 2 || !hex.iter().all(u8::is_ascii_hexdigit) {
            return Err(invalid(format!(
                "{what} has a % that is not followed by two hexadecimal digits"
            )));
        }
        rest = after;
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| invalid(format!("{what} is not UTF-8")))?;
    Ok(decoded.into_owned())
}

fn read_authority(authority: &str, options: &mut ConnectionOptions) -> Result<()> {
    let (login, endpoints) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    };
    if let Some(login) = login {
        let (user, password) = split_before(login, ':');
        options.username = decode(user, "the user name")?;
        if let Some(password) = password {
            options.password = decode(password, "the password")?;
        }
    }
    let mut endpoints = endpoints.split(',');
    let (host, port) = read_endpoint(endpoints.next().unwrap_or_default())?;
    if let Some(host) = host {
        options.host = host;
    }
    options.port = port;
    for endpoint in endpoints {
        let (host, port) = read_endpoint(endpoint)?;
        let host = host.ok_or_else(|| invalid("a host is missing between commas"))?;
        let port = port.unwrap_or_else(|| options.default_port());
        options.more_endpoints.push(Endpoint { host, port });
    }
    Ok(())
}

/// The host and the port, if the text has them.
fn read_endpoint(text: &str) -> Result<(Option<String>, Option<u16>)> {
    let (host, port) = split_host(text)?;
    let host = match host {
        "" => None,
        host => Some(decode(host, "the host")?),
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => {
            let number = port.parse().ok().filter(|&number| number != 0);
            Some(number.ok_or_else(|| invalid("the port must be a number from 1 to 65535"))?)
        }
    };
    Ok((host, port))
}

/// An IPv6 address is in brackets, because it contains colons.
fn split_host(text: &str) -> Result<(&str, Option<&str>)> {
    let Some(rest) = text.strip_prefix('[') else {
        return Ok(split_before(text, ':'));
    };
    let Some((address, after)) = rest.split_once(']') else {
        return Err(invalid("the [ of the IPv6 address is not closed"));
    };
    match (after.is_empty(), after.strip_prefix(':')) {
        (true, _) => Ok((address, None)),
        (false, Some(port)) => Ok((address, Some(port))),
        (false, None) => Err(invalid("only a port can follow an IPv6 address")),
    }
}

/// Files of the client's certificate and its key. One needs the other.
#[derive(Default)]
struct IdentityFiles {
    certificates: Option<PathBuf>,
    key: Option<PathBuf>,
}

fn read_query(query: &str, options: &mut ConnectionOptions) -> Result<()> {
    let mut files = IdentityFiles::default();
    for pair in query.split('&').filter(|it| !it.is_empty()) {
        read_parameter(pair, options, &mut files)?;
    }
    match (files.certificates, files.key) {
        (None, None) => Ok(()),
        (Some(certificates), Some(key)) => change_tls("certfile", options, |tls| {
            tls.identity_files(certificates, key)
        }),
        _ => Err(invalid("certfile and keyfile must both be set")),
    }
}

fn change_tls(
    name: &str,
    options: &mut ConnectionOptions,
    change: impl FnOnce(TlsOptions) -> TlsOptions,
) -> Result<()> {
    let Some(tls) = options.tls.take() else {
        return Err(invalid(format!("{name} is for amqps:// only")));
    };
    options.tls = Some(change(tls));
    Ok(())
}

fn login_method(value: &str) -> Result<LoginMethod> {
    match value.to_ascii_lowercase().as_str() {
        "plain" => Ok(LoginMethod::Plain),
        "amqplain" => Ok(LoginMethod::AmqPlain),
        "external" => Ok(LoginMethod::External),
        _ => Err(invalid(
            "auth_mechanism must be plain, amqplain or external",
        )),
    }
}

fn read_parameter(
    pair: &str,
    options: &mut ConnectionOptions,
    files: &mut IdentityFiles,
) -> Result<()> {
    let (name, value) = split_before(pair, '=');
    let value = decode(value.unwrap_or_default(), name)?;
    match name {
        "auth_mechanism" => options.login_method = login_method(&value)?,
        "heartbeat" => options.heartbeat = Duration::from_secs(number::<u16>(name, &value)?.into()),
        "connection_timeout" => {
            options.connect_timeout = Duration::from_millis(number(name, &value)?);
        }
        "channel_max" => options.channel_max = number(name, &value)?,
        "frame_max" => options.frame_max = number(name, &value)?,
        "cacertfile" => change_tls(name, options, |tls| tls.ca_certificate_file(value))?,
        "certfile" | "keyfile" => {
            let path = Some(value.into());
            match name {
                "certfile" => files.certificates = path,
                _ => files.key = path,
            }
        }
        "server_name_indication" => change_tls(name, options, |tls| tls.server_name(value))?,
        "verify" => match value.as_str() {
            "verify_peer" => change_tls(name, options, |tls| tls)?,
            "verify_none" => {
                change_tls(name, options, |tls| tls.danger_accept_invalid_certs(true))?;
            }
            _ => return Err(invalid("verify must be verify_peer or verify_none")),
        },
        // RabbitMQ's own clients accept and ignore these settings of servers.
        "depth" | "fail_if_no_peer_cert" => {}
        unknown => return Err(invalid(format!("unknown query parameter {unknown:?}"))),
    }
    Ok(())
}

fn number<N: FromStr>(name: &str, value: &str) -> Result<N> {
    let parsed = value.parse();
    parsed.map_err(|_| invalid(format!("{name} must be a number in the valid range")))
}

#[cfg(test)]
mod tests {
    use super::{parse, ConnectionOptions, LoginMethod};
    use std::time::Duration;

    /// (URI, user, password, host, port, vhost): the appendix of RabbitMQ's URI specification, with
    /// our defaults for missing parts.
    const EXAMPLES: [(&str, &str, &str, &str, u16, &str); 20] = [
        (
            "amqp://user:pass@host:10000/vhost",
            "user",
            "pass",
            "host",
            10000,
            "vhost",
        ),
        (
            "amqp://user%61:%61pass@ho%61st:10000/v%2fhost",
            "usera",
            "apass",
            "hoast",
            10000,
            "v/host",
        ),
        ("amqp://", "guest", "guest", "localhost", 5672, "/"),
        ("amqp://:@/", "", "", "localhost", 5672, ""),
        ("amqp://user@", "user", "guest", "localhost", 5672, "/"),
        ("amqp://user:pass@", "user", "pass", "localhost", 5672, "/"),
        ("amqp://host", "guest", "guest", "host", 5672, "/"),
        ("amqp://:10000", "guest", "guest", "localhost", 10000, "/"),
        (
            "amqp:///vhost",
            "guest",
            "guest",
            "localhost",
            5672,
            "vhost",
        ),
        ("amqp://host/", "guest", "guest", "host", 5672, ""),
        ("amqp://host/%2F", "guest", "guest", "host", 5672, "/"),
        ("amqp://[::1]", "guest", "guest", "::1", 5672, "/"),
        ("amqp://[::1]:10000/v", "guest", "guest", "::1", 10000, "v"),
        ("AMQP://host:5672", "guest", "guest", "host", 5672, "/"),
        ("amqp://u:p%40ss%3a%2F@h", "u", "p@ss:/", "h", 5672, "/"),
        ("amqp://u:p:q@h", "u", "p:q", "h", 5672, "/"),
        (
            "amqp://guest:guest@localhost:5672/%2f",
            "guest",
            "guest",
            "localhost",
            5672,
            "/",
        ),
        ("amqp://h:/v", "guest", "guest", "h", 5672, "v"),
        ("amqp://h/caf%C3%A9", "guest", "guest", "h", 5672, "café"),
        ("amqp://h?heartbeat=7", "guest", "guest", "h", 5672, "/"),
    ];

    #[test]
    fn reads_the_examples_of_the_specification() {
        for (uri, username, password, host, port, vhost) in EXAMPLES {
            let options = parse(uri).unwrap();
            assert_eq!(
                (
                    options.username.as_str(),
                    options.password.as_str(),
                    options.host.as_str(),
                    options.endpoints()[0].port,
                    options.vhost.as_str()
                ),
                (username, password, host, port, vhost),
                "{uri}"
            );
        }
    }

    #[test]
    fn reads_query_parameters() {
        let options =
            parse("amqp://h/v?heartbeat=7&connection_timeout=1500&channel_max=9&frame_max=8192")
                .unwrap();
        assert_eq!(options.heartbeat, Duration::from_secs(7));
        assert_eq!(options.connect_timeout, Duration::from_millis(1500));
        assert_eq!((options.channel_max, options.frame_max), (9, 8192));
    }

    #[test]
    fn reads_what_concerns_tls_and_login() {
        let uri = "amqps://h/v?cacertfile=/ca%20dir/ca.pem&certfile=c.pem&keyfile=k.pem&verify=verify_none\
                   &server_name_indication=other&auth_mechanism=EXTERNAL&depth=3";
        let options = parse(uri).unwrap();
        assert!(matches!(options.login_method, LoginMethod::External));
        assert_eq!(options.endpoints()[0].port, 5671);
        let tls = options.tls.unwrap();
        assert!(tls.danger_accept_invalid_certs);
        assert_eq!(tls.server_name.as_deref(), Some("other"));
        let shown = format!("{:?} {:?}", tls.ca_certificates, tls.identity);
        assert!(
            shown.contains("/ca dir/ca.pem") && shown.contains("c.pem"),
            "{shown}"
        );
        assert!(
            !parse("amqps://h?verify=verify_peer")
                .unwrap()
                .tls
                .unwrap()
                .danger_accept_invalid_certs
        );
        assert!(parse("amqp://h").unwrap().tls.is_none());
    }

    #[test]
    fn reads_and_writes_several_endpoints() {
        for uri in [
            "amqp://guest@a:5672,b:5673,[::1]:5674/%2F",
            "amqps://guest@a:5671,b:5671/v",
        ] {
            assert_eq!(parse(uri).unwrap().to_string(), uri);
        }
        let options = parse("amqp://a,b").unwrap();
        let ports: Vec<_> = options.endpoints().iter().map(|it| it.port).collect();
        assert_eq!(ports, [5672, 5672]);
    }

    #[test]
    fn writes_any_host_so_that_it_can_be_read() {
        for host in [
            "fe80::1%eth0",
            "a/b",
            "a@b",
            "a,b",
            "my-host_1.local",
            "höst",
        ] {
            let options = ConnectionOptions::default().host(host).endpoint(host, 1);
            let read = parse(&options.to_string()).unwrap();
            assert_eq!(read.endpoints(), options.endpoints(), "{options}");
        }
    }

    #[test]
    fn names_what_is_wrong_and_never_the_password() {
        let table = [
            ("localhost", "it must begin with amqp:// or amqps://"),
            ("http://u:secret@h", "it must begin with amqp://"),
            ("amqp://u:secret@h,,i", "a host is missing"),
            ("amqp://u:secret@h:0", "the port must be a number"),
            ("amqp://u:secret@h:70000", "the port must be a number"),
            ("amqp://u:secret@h:1x", "the port must be a number"),
            ("amqp://u:secret", "the port must be a number"),
            ("amqp://u:secret/x@h/v", "an @ follows the first"),
            ("amqp://u:5672?heartbeat=secret@h", "an @ follows the first"),
            ("amqp://u:5672/secret@h", "an @ follows the first"),
            ("amqp://u:secret@h/a/b", "a slash inside the virtual host"),
            ("amqp://u:secret%zz@h", "the password has a %"),
            ("amqp://u:secret%ff@h", "the password is not UTF-8"),
            ("amqp://u:secret@[::1", "the [ of the IPv6 address"),
            ("amqp://u:secret@[::1]x", "only a port can follow"),
            (
                "amqp://u:secret@h?heartbeat=often",
                "heartbeat must be a number",
            ),
            (
                "amqp://u:secret@h?heartbeet=1",
                "unknown query parameter \"heartbeet\"",
            ),
            ("amqp://u:secret@h#f", "it must have no fragment"),
            ("amqp://u:secret@h/v\n", "it must have no control character"),
            (
                "amqp://u:secret@h?cacertfile=x",
                "cacertfile is for amqps:// only",
            ),
            (
                "amqps://u:secret@h?certfile=x",
                "certfile and keyfile must both be set",
            ),
            ("amqps://u:secret@h?verify=maybe", "verify must be"),
            (
                "amqp://u:secret@h?auth_mechanism=magic",
                "auth_mechanism must be",
            ),
        ];
        for (uri, expected) in table {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(expected), "{uri}: {error}");
            assert!(!error.contains("secret"), "{uri}: {error}");
        }
    }
}

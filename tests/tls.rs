//! TLS connections, and the login methods that need TLS, against a RabbitMQ with certificates made
//! for it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use leveret::{
    Connection, ConnectionEvent, ConnectionOptions, ConsumeOptions, Error, ErrorKind, FieldTable,
    LoginMethod, QueueDeclareOptions, SaslConversation, SaslMechanism, TlsOptions,
};

use crate::recovery::recovered;
use crate::support::certificates::Certificates;
use crate::support::proxy::{Direction, Fault, Plan, Proxy};
use crate::support::{
    at, content_frames, eventually, exclusive_queue, method_frame, short, Node, Program, Script,
    SOON,
};

/// Whether the connections use rustls instead of the system's TLS.
const RUSTLS: bool = cfg!(feature = "rustls");

/// A free port for the node's configuration. It is not one of those that the system gives to
/// connecting clients: another connection could take such a port meanwhile.
fn free_port() -> u16 {
    let begin = 12_000 + (std::process::id() % 8_000) as u16;
    let mut ports = begin..20_000;
    ports
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .unwrap()
}

/// A broker with a TLS port and a plain one.
struct Secured {
    node: Node,
    port: u16,
    certificates: Certificates,
}

impl Secured {
    fn start() -> Self {
        let certificates = Certificates::make();
        let port = free_port();
        let node = Node::start_with(&certificates.listener(port), "rabbitmq_auth_mechanism_ssl");
        eventually("the node listens on the TLS port", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            node,
            port,
            certificates,
        }
    }

    fn trusting(&self) -> TlsOptions {
        TlsOptions::default().ca_certificate_file(self.certificates.path("ca.pem"))
    }

    fn identified(&self, tls: TlsOptions) -> TlsOptions {
        let path = |name| self.certificates.path(name);
        tls.identity_files(path("client.pem"), path("client.key"))
    }

    fn options(&self, tls: TlsOptions) -> ConnectionOptions {
        ConnectionOptions::default()
            .host("localhost")
            .port(self.port)
            .tls(tls)
            .connect_timeout(2 * SOON)
    }

    /// Options that the broker accepts.
    fn good(&self) -> ConnectionOptions {
        self.options(self.identified(self.trusting()))
    }
}

/// Opens a connection that must fail before any timeout, and returns the error.
#[track_caller]
fn refused(options: &ConnectionOptions) -> Error {
    let begin = Instant::now();
    let error = Connection::open_with(options).unwrap_err();
    assert!(begin.elapsed() < SOON, "{error}");
    assert!(!error.is_timeout(), "{error}");
    error
}

#[track_caller]
fn assert_tls_says(expected: &str, options: &ConnectionOptions) {
    let error = refused(options);
    let ErrorKind::TlsFailed { text } = error.kind() else {
        panic!("{error}");
    };
    assert!(text.to_lowercase().contains(expected), "{text}");
}

#[track_caller]
fn assert_invalid(options: &ConnectionOptions, expected: &str) {
    let error = refused(options);
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains("wr0ng"), "{text}");
}

#[track_caller]
fn opens(options: &ConnectionOptions) {
    Connection::open_with(options).unwrap().close().unwrap();
}

#[test]
fn tls_connections_work_and_each_mistake_has_its_own_error() {
    let broker = Secured::start();
    carries_both_ways_under_load(&broker);
    takes_certificates_from_files_and_memory(&broker);
    takes_keys_in_the_formats_that_the_library_reads(&broker);
    notices_changed_files_at_the_next_connect(&broker);
    each_mistake_has_its_own_error(&broker);
    logs_in_with_a_certificate_and_with_challenges(&broker);
    is_known_to_the_broker_by_its_name(&broker);
    comes_back_when_it_is_lost(&broker);
}

fn comes_back_when_it_is_lost(broker: &Secured) {
    let proxy = Proxy::start(&format!("amqps://guest@127.0.0.1:{}", broker.port));
    let options = proxy.options().tls(broker.identified(broker.trusting()));
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = queue.consume().unwrap();
    let publisher = channel.publisher().unwrap();
    for round in 1..=3 {
        // Also cut the connection in the middle of a handshake.
        let (fault, direction) = (Fault::Cut, Direction::ToClient);
        let after = 500 * round;
        proxy.plan(Plan {
            fault,
            direction,
            after,
        });
        proxy.cut();
        let told = recovered(&events);
        assert!(matches!(told[0], ConnectionEvent::Lost { .. }), "{told:?}");
        let body = vec![round as u8; 100_000];
        let confirm = publisher.publish("", queue.name(), &body).unwrap();
        confirm.wait_timeout(SOON).unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert!(delivery.body() == body, "{round}");
        delivery.ack().unwrap();
    }
    connection.close().unwrap();
}

fn is_known_to_the_broker_by_its_name(broker: &Secured) {
    let own = FieldTable::new().with("team", "billing");
    let named = broker
        .good()
        .connection_name("invoices")
        .client_properties(own);
    let connection = Connection::open_with(&named).unwrap();
    let seen = broker
        .node
        .ctl(&["list_connections", "user", "client_properties"]);
    let seen = seen.trim().lines().last().unwrap();
    for property in [
        "{\"product\",\"leveret\"}",
        "{\"platform\",\"Rust\"}",
        "{\"version\",",
        "{\"information\",",
        "{\"team\",\"billing\"}",
        "{\"connection_name\",\"invoices\"}",
        "{\"publisher_confirms\",true}",
        "{\"consumer_cancel_notify\",true}",
        "{\"exchange_exchange_bindings\",true}",
        "{\"basic.nack\",true}",
        "{\"connection.blocked\",true}",
        "{\"authentication_failure_close\",true}",
    ] {
        assert!(seen.contains(property), "{property} in {seen}");
    }
    connection.close().unwrap();
}

fn carries_both_ways_under_load(broker: &Secured) {
    const COUNT: usize = 4000;
    let connection = Connection::open_with(broker.good()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let body = |number: usize| vec![number as u8; number * 7919 % 60_000];
    let consumer = queue.consume().unwrap();
    let publishing = thread::spawn(move || {
        let publisher = queue.channel().publisher().unwrap();
        for number in 0..COUNT {
            publisher.publish("", queue.name(), body(number)).unwrap();
        }
        publisher.wait_for_confirms().unwrap();
    });
    for number in 0..COUNT {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert!(delivery.body() == body(number), "message {number}");
        delivery.ack().unwrap();
    }
    publishing.join().unwrap();
    connection.close().unwrap();
}

fn takes_certificates_from_files_and_memory(broker: &Secured) {
    let read = |name| broker.certificates.read(name);
    let path = |name| broker.certificates.path(name);
    let memory = TlsOptions::default().ca_certificate(read("ca.pem"));
    // A file with several certificate authorities.
    let several = [read("other.pem"), read("ca.pem")].concat();
    let several = TlsOptions::default().ca_certificate(several);
    let archive = read("client.p12");
    let (certificate, key) = (read("client.pem"), read("client.key"));
    opens(&broker.options(memory.clone().identity_pem(&*certificate, &*key)));
    opens(&broker.options(several.clone().identity_pem(certificate, key)));
    for tls in [
        memory.clone().identity_pkcs12(archive.clone(), "secret"),
        several.identity_pkcs12_file(path("client.p12"), "secret"),
    ] {
        assert!(!format!("{tls:?}").contains("secret"));
        let options = broker.options(tls);
        match RUSTLS {
            false => opens(&options),
            true => assert_invalid(&options, "openssl pkcs12 -nodes converts"),
        }
    }
    let query = [
        "cacertfile=ca.pem",
        "certfile=client.pem",
        "keyfile=client.key",
    ]
    .map(|it| it.replace('=', &format!("={}/", path("").display())));
    let uri = format!(
        "amqps://guest:guest@localhost:{}/%2f?verify=verify_peer&{}",
        broker.port,
        query.join("&")
    );
    opens(&ConnectionOptions::from_uri(&uri).unwrap());
    for (tls, expected) in [
        (
            memory.clone().identity_pkcs12(archive, "wr0ng"),
            "client certificate",
        ),
        (
            memory.identity_files(path("client.pem"), path("missing")),
            "missing",
        ),
        (
            TlsOptions::default().ca_certificate("no PEM"),
            "no certificate",
        ),
        (
            TlsOptions::default().ca_certificate_file(path("missing")),
            "missing",
        ),
    ] {
        assert_invalid(&broker.options(tls), expected);
    }
}

fn takes_keys_in_the_formats_that_the_library_reads(broker: &Secured) {
    let path = |name: &str| broker.certificates.path(name);
    let with = |certificate: &str, key: &str| {
        let tls = broker.trusting();
        broker.options(tls.identity_files(path(certificate), path(key)))
    };
    const COMMAND: [&str; 2] = ["-topk8", "-nocrypt"];
    let command = format!("openssl pkcs8 {}", COMMAND.join(" "));
    for (certificate, key) in [("client.pem", "sec1"), ("rsa.pem", "pkcs1")] {
        let options = with(certificate, &format!("{key}.key"));
        match RUSTLS {
            true => opens(&options),
            false => assert_invalid(&options, &command),
        }
        // The command in the error helps.
        broker
            .certificates
            .convert("pkcs8", key, "converted", &COMMAND);
        opens(&with(certificate, "converted.key"));
    }
    assert_invalid(&with("client.pem", "encrypted.key"), &command);
}

/// The same options connect again and again, as in a recovery.
fn notices_changed_files_at_the_next_connect(broker: &Secured) {
    let path = |name: &str| broker.certificates.path(name);
    let copy = |from: &str, to: &str| {
        std::fs::copy(path(from), path(to)).unwrap();
    };
    copy("ca.pem", "trusted.pem");
    copy("client.pem", "own.pem");
    copy("client.key", "own.key");
    let tls = TlsOptions::default()
        .ca_certificate_file(path("trusted.pem"))
        .identity_files(path("own.pem"), path("own.key"));
    let options = broker.options(tls);
    opens(&options);
    copy("other.pem", "trusted.pem");
    assert_tls_says("verify failed", &options);
    copy("ca.pem", "trusted.pem");
    opens(&options);
    copy("server.key", "own.key");
    assert_invalid(&options, "client certificate and key");
    copy("rsa.key", "own.key");
    copy("rsa.pem", "own.pem");
    opens(&options);
}

fn each_mistake_has_its_own_error(broker: &Secured) {
    let path = |name: &str| broker.certificates.path(name);
    let options = |tls| broker.options(tls);
    let other = TlsOptions::default().ca_certificate_file(path("other.pem"));
    let other = broker.identified(other);
    let untrusting = broker.identified(TlsOptions::default());
    let named = broker.identified(broker.trusting());
    let named = named.server_name("rabbit.example.com".to_owned());
    let unknown = match RUSTLS {
        true => "verify failed: unknown issuer",
        false => "verify failed: self-signed",
    };
    assert_tls_says(unknown, &options(other.clone()));
    assert_tls_says(unknown, &options(untrusting));
    assert_tls_says("hostname mismatch", &options(named.clone()));
    assert_tls_says("certificate required", &options(broker.trusting()));
    // Only the options with "danger" in their names allow these.
    opens(&options(other.danger_accept_invalid_certs(true)));
    opens(&options(named.danger_accept_invalid_hostnames(true)));

    // Each protocol on the port of the other.
    let error = refused(&ConnectionOptions::default().port(broker.port));
    assert!(error.to_string().contains("TLS (amqps)"), "{error}");
    let plain = broker.node.options();
    assert_tls_says("amqp without tls", &plain.tls(broker.trusting()));

    // The broker rereads its certificate when its cache is empty.
    let show = |name: &str| {
        for kind in ["pem", "key"] {
            let server = path(&format!("server.{kind}"));
            std::fs::copy(path(&format!("{name}.{kind}")), server).unwrap();
        }
        broker.node.ctl(&["eval", "ssl:clear_pem_cache()."]);
    };
    for kind in ["pem", "key"] {
        let good = path(&format!("good.{kind}"));
        std::fs::copy(path(&format!("server.{kind}")), good).unwrap();
    }
    show("expired");
    assert_tls_says("expired", &broker.good());
    show("good");
    opens(&broker.good());
}

/// RabbitMQ's demonstration mechanism for challenge and response.
struct Demo(&'static str);

impl SaslMechanism for Demo {
    fn name(&self) -> &str {
        "RABBIT-CR-DEMO"
    }

    fn begin(&self) -> SaslConversation {
        let password = self.0;
        SaslConversation::new(move |challenge| match challenge {
            b"" => Ok(b"guest".to_vec()),
            b"Please tell me your password" => Ok(format!("My password is {password}").into()),
            other => Err(format!("unexpected: {}", String::from_utf8_lossy(other)).into()),
        })
    }
}

fn logs_in_with_a_certificate_and_with_challenges(broker: &Secured) {
    let node = &broker.node;
    node.ctl(&["add_user", "worker", "unused"]);
    node.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]);
    let external = broker.good().login_method(LoginMethod::External);
    let connection = Connection::open_with(&external).unwrap();
    let seen = node.ctl(&["list_connections", "user", "auth_mechanism", "ssl"]);
    assert_eq!(seen.trim().lines().last(), Some("worker\tEXTERNAL\ttrue"));
    connection.close().unwrap();

    let demo = |password| {
        let mechanism = Arc::new(Demo(password));
        node.options().login_method(LoginMethod::Sasl(mechanism))
    };
    let connection = Connection::open_with(demo("guest")).unwrap();
    let channel = connection.open_channel().unwrap();
    let options = QueueDeclareOptions::temporary();
    channel.queue_declare("", options).unwrap();
    connection.close().unwrap();
    let error = refused(&demo("wr0ng"));
    let ErrorKind::LoginRefused { mechanism, .. } = error.kind() else {
        panic!("{error}");
    };
    assert_eq!(mechanism, "RABBIT-CR-DEMO");
    assert!(!error.to_string().contains("wr0ng"), "{error}");

    // This broker is configured not to offer AMQPLAIN.
    let error = refused(&node.options().login_method(LoginMethod::AmqPlain));
    let ErrorKind::MechanismNotOffered { offered, .. } = error.kind() else {
        panic!("{error}");
    };
    assert!(offered.contains("RABBIT-CR-DEMO"), "{offered}");
}

/// The server's side of a TLS connection.
fn acceptor(certificates: &Certificates) -> native_tls::TlsAcceptor {
    let (certificate, key) = (
        certificates.read("server.pem"),
        certificates.read("server.key"),
    );
    let identity = native_tls::Identity::from_pkcs8(&certificate, &key).unwrap();
    native_tls::TlsAcceptor::new(identity).unwrap()
}

#[test]
fn a_clean_tls_close_is_distinguished_from_a_cut() {
    let certificates = Certificates::make();
    let acceptor = acceptor(&certificates);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        for says_goodbye in [true, false] {
            let (socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            let raw = socket.try_clone().unwrap();
            let mut script = Script::over(acceptor.accept(socket).unwrap());
            script.handshake(0);
            let mut stream = script.into_socket();
            if says_goodbye {
                stream.shutdown().unwrap();
            }
            raw.shutdown(Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let tls = TlsOptions::default().ca_certificate(certificates.read("ca.pem"));
    let options = at(address).tls(tls);
    for kind in [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::ConnectionAborted,
    ] {
        let connection = Connection::open_with(&options).unwrap();
        connection.wait_closed(SOON).unwrap();
        let cause = connection.close_cause().unwrap();
        assert_eq!(*cause.kind(), ErrorKind::SocketClosed { kind });
    }
    server.join().unwrap();
}

/// A socket that can hold back what is written.
#[derive(Debug)]
struct Corked {
    socket: TcpStream,
    held: Option<Vec<u8>>,
}

impl Read for Corked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Corked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.held {
            Some(held) => held.write(bytes),
            None => self.socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn messages_before_a_tls_failure_arrive_and_the_failure_ends_the_connection() {
    const SIZES: [usize; 4] = [60, 12_000, 40_000, 200_000];
    let certificates = Certificates::make();
    let acceptor = acceptor(&certificates);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        for size in SIZES {
            let (socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            let held = None;
            let mut script = Script::over(acceptor.accept(Corked { socket, held }).unwrap());
            script.handshake(0);
            script.open_channel();
            script.expect(60, 20);
            let mut stream = script.into_socket();
            // All of this comes at once, the last record damaged.
            stream.get_mut().held = Some(Vec::new());
            let consume_ok = method_frame(1, 60, 21, &short("c"));
            let deliver = [&short("c")[..], &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]].concat();
            let deliver = method_frame(1, 60, 60, &deliver);
            let frames = [consume_ok, deliver, content_frames(1, &vec![7; size])].concat();
            stream.write_all(&frames).unwrap();
            let corked = stream.get_mut();
            let mut bytes = corked.held.take().unwrap();
            bytes.extend([23, 3, 3, 0, 40]);
            bytes.extend([0; 40]);
            corked.socket.write_all(&bytes).unwrap();
            // The client leaves.
            let _ = corked.socket.read_to_end(&mut Vec::new());
        }
    });
    let tls = TlsOptions::default().ca_certificate(certificates.read("ca.pem"));
    let options = at(address).tls(tls);
    for size in SIZES {
        let connection = Connection::open_with(&options).unwrap();
        let channel = connection.open_channel().unwrap();
        let options = ConsumeOptions::default().consumer_tag("c").no_ack(true);
        let consumer = channel.basic_consume("q", options).unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert!(delivery.body() == vec![7; size], "{size}");
        connection.wait_closed(SOON).unwrap();
        let cause = connection.close_cause().unwrap();
        let ErrorKind::SocketClosed { kind } = cause.kind() else {
            panic!("{cause}");
        };
        assert_ne!(*kind, io::ErrorKind::UnexpectedEof, "that is a clean end");
        assert!(consumer.recv().is_err());
    }
    server.join().unwrap();
}

#[test]
fn a_signal_does_not_fail_the_tls_handshake() {
    let certificates = Certificates::make();
    let acceptor = acceptor(&certificates);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (waits, waiting) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel();
    let server = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.peek(&mut [0]).unwrap();
        waits.send(()).unwrap();
        goes_on.recv().unwrap();
        let mut script = Script::over(acceptor.accept(socket).unwrap());
        script.handshake(0);
        script.open_channel();
        script.expect(50, 10);
        let declared = [&short("hello")[..], &[0; 8]].concat();
        script.send_method(1, 50, 11, &declared);
        script.expect(60, 40);
        script.expect(10, 50);
        script.send_method(0, 10, 51, &[]);
    });
    let authority = certificates.path("ca.pem");
    let uri = format!("amqps://{address}?cacertfile={}", authority.display());
    let mut program = Program::start("tutorial_1_send", &[], &uri);
    waiting.recv().unwrap();
    // The client has sent its hello and is waiting for the answer, or will do so soon.
    thread::sleep(Duration::from_millis(100));
    // SIGSTOP interrupts a read with a timeout like a signal with a handler, but needs no handler.
    program.signal("STOP");
    program.signal("CONT");
    thread::sleep(Duration::from_millis(100));
    go_on.send(()).unwrap();
    program.expect(" [x] Sent 'Hello World!'");
    assert!(program.wait().success());
    server.join().unwrap();
}

#[test]
fn the_error_names_an_unusable_key_and_the_needed_format() {
    let certificates = Certificates::make();
    let path = |name: &str| certificates.path(name);
    let key = certificates.read("client.key");
    let with_text = [&b"Bag Attributes: <No Attributes>\n"[..], &key].concat();
    let files = [
        (
            "traditional.key",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
        ),
        ("binary.key", "\0\u{1}0\u{82}"),
        (
            "broken.key",
            "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        ),
        ("empty.pem", ""),
    ];
    for (name, text) in files {
        std::fs::write(path(name), text).unwrap();
    }
    std::fs::write(path("text.key"), with_text).unwrap();
    // The listener accepts connections and sends nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = |certificate: &str, key: &str| {
        let tls = TlsOptions::default().ca_certificate_file(path("ca.pem"));
        at(listener.local_addr().unwrap())
            .tls(tls.identity_files(path(certificate), path(key)))
            .connect_timeout(Duration::from_secs(2))
    };
    let needed = "PKCS#8 in PEM (BEGIN PRIVATE KEY) is needed";
    for (certificate, key, texts) in [
        ("client.pem", "encrypted.key", ["is encrypted", needed]),
        ("client.pem", "traditional.key", ["is encrypted", needed]),
        ("client.pem", "binary.key", ["is not in PEM", needed]),
        ("client.pem", "client.pem", ["is no private key", needed]),
        ("client.pem", "broken.key", ["unusable client's key", ""]),
        (
            "client.pem",
            "server.key",
            ["unusable client certificate and key", "client.pem"],
        ),
        (
            "empty.pem",
            "client.key",
            ["there is no certificate", "empty.pem"],
        ),
    ] {
        let error = Connection::open_with(options(certificate, key)).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
        let error = error.to_string();
        let named = if certificate == "empty.pem" {
            certificate
        } else {
            key
        };
        for text in texts.into_iter().chain([named]) {
            assert!(error.contains(text), "{key}: {error}");
        }
        assert!(!error.contains("c2VjcmV0"), "{error}");
    }
    let error = Connection::open_with(options("client.pem", "text.key")).unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

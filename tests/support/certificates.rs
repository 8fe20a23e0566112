//! Certificates for a test, made with the command `openssl`.

use std::path::PathBuf;
use std::process::Command;

/// A directory with a certificate authority (`ca.pem`) and its certificates (`NAME.pem`), each with
/// its key (`NAME.key`):
///
/// - `server`, for localhost and 127.0.0.1
/// - `expired`, the same but expired
/// - `client`, for the user "worker", also as `client.p12` with the password "secret"; its key in
///   SEC1 is `sec1.key`, and with that password `encrypted.key`
/// - `rsa`, the same with an RSA key, which is in PKCS#1 `pkcs1.key`
///
/// `other.pem` is another authority.
pub(crate) struct Certificates {
    directory: PathBuf,
}

const EC: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
const RSA: &[&str] = &["rsa:2048"];

impl Certificates {
    pub(crate) fn make() -> Self {
        let name = super::unique("leveret-certificates");
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let made = Self { directory };
        made.authority("ca");
        made.authority("other");
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        std::fs::write(made.path("names"), names).unwrap();
        made.certificate("server", "localhost", "2", EC);
        made.certificate("expired", "localhost", "-1", EC);
        made.certificate("client", "worker", "2", EC);
        made.certificate("rsa", "worker", "2", RSA);
        made.convert("ec", "client", "sec1", &[]);
        made.convert("rsa", "rsa", "pkcs1", &["-traditional"]);
        made.convert(
            "pkcs8",
            "client",
            "encrypted",
            &["-topk8", "-passout", "pass:secret"],
        );
        made.openssl(&[
            "pkcs12",
            "-export",
            "-in",
            "client.pem",
            "-inkey",
            "client.key",
            "-out",
            "client.p12",
            "-passout",
            "pass:secret",
        ]);
        made
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Configures RabbitMQ to listen on this port and to demand client certificates.
    pub(crate) fn listener(&self, port: u16) -> String {
        let directory = self.directory.display();
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {directory}/ca.pem\n\
             ssl_options.certfile = {directory}/server.pem\n\
             ssl_options.keyfile = {directory}/server.key\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\n\
             ssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = PLAIN\n\
             auth_mechanisms.2 = EXTERNAL\n\
             auth_mechanisms.3 = RABBIT-CR-DEMO\n"
        )
    }

    fn authority(&self, name: &str) {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let subject = format!("/CN=leveret test {name}");
        let files = ["-nodes", "-keyout", &key, "-out", &certificate];
        let what = ["-subj", &subject, "-days", "2"];
        self.openssl(&[&["req", "-x509", "-newkey"][..], EC, &files, &what].concat());
    }

    /// Writes the key of one file to another, with a command of `openssl`.
    pub(crate) fn convert(&self, command: &str, from: &str, to: &str, how: &[&str]) {
        let (from, to) = (format!("{from}.key"), format!("{to}.key"));
        self.openssl(&[&[command, "-in", &from, "-out", &to], how].concat());
    }

    fn certificate(&self, name: &str, subject: &str, days: &str, kind: &[&str]) {
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        let certificate = format!("{name}.pem");
        let subject = format!("/CN={subject}");
        let files = ["-nodes", "-keyout", &key, "-out", &request];
        let what = ["-subj", &subject];
        self.openssl(&[&["req", "-newkey"][..], kind, &files, &what].concat());
        let authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        let what = ["-days", days, "-extfile", "names", "-out", &certificate];
        self.openssl(&[&["x509", "-req", "-in", &request][..], &authority, &what].concat());
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(&self.directory)
            .output()
            .unwrap();
        assert!(output.status.success(), "openssl {arguments:?}: {output:?}");
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

//! The benchmark program `perf_test`: checks its results, not its speed.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use crate::support::program::{perf_test, printed};
use crate::support::{connect, unique, url, Program};

/// A comparison here takes some seconds at most.
const A_WHILE: Duration = Duration::from_secs(120);

/// The value of a key in a line of JSON.
fn number(line: &str, key: &str) -> f64 {
    let (_, rest) = line.split_once(&format!("\"{key}\":")).unwrap();
    let end = rest.find([',', '}']).unwrap();
    rest[..end].parse().unwrap()
}

/// Starts a server for the measured clients, and returns it with its URI.
fn sink(arguments: &[&str]) -> (Program, String) {
    let mut command = perf_test();
    command.arg("sink").args(arguments);
    let server = Program::spawn(command);
    let uri = server.line();
    (server, uri)
}

/// Runs `perf_test`, which must succeed, and returns its output.
fn run(arguments: &[&str]) -> String {
    let mut command = perf_test();
    command.args(arguments);
    printed(command)
}

/// Runs a command and waits until all of its processes have ended: they share its standard error.
#[track_caller]
fn output(mut command: Command) -> Output {
    let (sender, output) = crossbeam_channel::bounded(1);
    thread::spawn(move || sender.send(command.output()));
    output.recv_timeout(A_WHILE).unwrap().unwrap()
}

/// Runs a comparison, checks its title, and returns the cells of its table.
#[track_caller]
fn compare(arguments: &[&str]) -> Vec<Vec<String>> {
    compare_trusting("", arguments)
}

#[track_caller]
fn compare_trusting(authority: &str, arguments: &[&str]) -> Vec<Vec<String>> {
    let mut command = perf_test();
    command.env("PERF_TEST_CA", authority);
    command
        .args(["compare", "--scale", "0.001"])
        .args(arguments);
    let output = output(command);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let title = concat!("leveret ", env!("CARGO_PKG_VERSION"), ", ");
    assert!(text.starts_with(title), "{text}");
    let cells = |line: &str| line.split('|').map(|it| it.trim().to_owned()).collect();
    let table = text.lines().filter_map(|line| line.strip_prefix('|'));
    table
        .map(|line| cells(line.trim_end_matches('|')))
        .collect()
}

/// The number at the beginning of a cell.
#[track_caller]
fn first_number(cell: &str) -> f64 {
    let end = cell.find([' ', '–']).unwrap_or(cell.len());
    cell[..end].parse().unwrap_or_else(|_| panic!("{cell:?}"))
}

#[test]
fn each_mode_prints_a_line_of_json() {
    let (_server, uri) = sink(&[]);
    for client in ["bench", "limit"] {
        for mode in [
            "publish",
            "confirm",
            "publisher",
            "confirm1",
            "consume",
            "consume-ack",
            "rpc",
            "rpc-hand-over",
            "connect",
            "publish-in-turn",
            "rpc-busy",
            "consume-slow",
        ] {
            let threads = if client == "limit" { "1" } else { "2" };
            // Messages have several frames, and their number exceeds the prefetch.
            let arguments = [client, mode, &uri, "600", "150000", threads];
            let line = run(&arguments);
            let named = format!("\"mode\":\"{mode}\",\"size\":150000,\"threads\":{threads}");
            assert!(line.contains(&named), "{line}");
            assert_eq!(number(&line, "count"), 600.0, "{line}");
            assert!(number(&line, "msgs_per_s") > 0.0, "{line}");
            if matches!(
                mode,
                "confirm1" | "rpc" | "rpc-hand-over" | "rpc-busy" | "connect"
            ) {
                assert!(number(&line, "p99_us") >= number(&line, "p50_us"), "{line}");
                assert!(number(&line, "p50_us") > 1.0, "{line}");
            }
        }
    }
    for mode in ["channels", "connections"] {
        let line = run(&["bench", mode, &uri, "50", "0", "1"]);
        assert!(line.contains("rss_bytes_each") || cfg!(not(target_os = "linux")));
    }
}

#[test]
fn producers_and_consumers_accept_the_options_of_perftest() {
    let (uri, queue) = (url(), unique("perf"));
    let options = "-x 2 -X 2 -y 2 -C 500 -s 64 -c 50 -q 20 -A 5 -f persistent -f mandatory --json --shared-connection";
    let mut arguments: Vec<_> = options.split(' ').collect();
    let pid = std::process::id().to_string();
    arguments.extend(["--uri", &uri, "-u", &queue, "--server-pid", &pid]);
    let output = run(&arguments);
    let line = output.lines().last().unwrap();
    assert_eq!(number(line, "count"), 2000.0, "{output}");
    assert_eq!(number(line, "threads"), 6.0, "{output}");
    assert!(number(line, "p99_us") > 0.0, "{output}");
    let tells = line.contains("\"server_cpu_us_per_msg\":");
    assert!(tells || cfg!(not(target_os = "linux")), "{output}");
    assert!(output.contains("confirmed: ") && output.contains("unconfirmed: 0"));
    // A named queue is durable, so the test deletes it.
    let channel = connect().open_channel().unwrap();
    assert_eq!(channel.queue_delete(&queue, Default::default()).unwrap(), 0);
    let refused = ["--uri", "amqp://guest:wrong@127.0.0.1:1", "-z", "1"];
    let output = perf_test().args(refused).output().unwrap();
    assert!(!output.status.success() && !output.stderr.is_empty());
}

#[test]
fn compare_prints_a_table_of_clients() {
    let program = perf_test().get_program().to_owned();
    let itself = format!("self={}", program.to_str().unwrap());
    let json = std::env::temp_dir().join(unique("perf_test.json"));
    let peers = ["--peer", &itself, "--peer", "none=/no/such/program"];
    let peers = [&peers[..], &["--peer", "silent=true"]].concat();
    let only = ["--rounds", "2", "--only", "publish", "--only", "rpc"];
    let file = ["--json", json.to_str().unwrap()];
    let table = compare(&[&only[..], &peers, &file].concat());

    let titles =
        "mode size threads ours CPU spread limit CPU ours/limit self CPU none CPU silent CPU";
    assert_eq!(table[0].join(" "), titles);
    assert!(table[1].iter().all(|it| it == "---"), "{table:?}");
    let rows: Vec<_> = table[2..].iter().map(|row| row[..3].join(" ")).collect();
    let publish = [
        "16 B 1", "16 B 4", "16 B 16", "1 KiB 1", "64 KiB 1", "1 MiB 1", "0 B 1", "16 MiB 1",
    ];
    let is_publish = |row: &&String| row.starts_with("publish");
    let (published, called): (Vec<_>, Vec<_>) = rows.iter().partition(is_publish);
    assert_eq!(
        published,
        publish.map(|it| format!("publish {it}")).each_ref()
    );
    // The second row needs a system that can bind a program to a core.
    let pinned = ["rpc - 1", "rpc, one core - 1"];
    assert!(called == pinned[..1] || called == pinned, "{rows:?}");
    for row in &table[2..] {
        assert_eq!(row.len(), table[0].len());
        for cell in &row[3..11] {
            assert!(first_number(cell) > 0.0, "{row:?}");
        }
        assert_eq!(row[11..], ["-"; 4]);
    }

    let lines = std::fs::read_to_string(&json).unwrap();
    std::fs::remove_file(&json).unwrap();
    // Clients that fail print no line.
    assert_eq!(lines.lines().count(), rows.len() * 3 * 2);
    let of_limit = lines.lines().filter(|it| it.contains(r#""name":"limit""#));
    assert_eq!(of_limit.count(), rows.len() * 2);
}

#[test]
fn compare_kills_clients_that_take_too_long() {
    // The listener accepts connections and sends nothing.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("amqp://{}", server.local_addr().unwrap());
    let table = compare(&["--uri", &uri, "--timeout", "1", "--only", "connect"]);
    assert_eq!(table[2].join(" "), "connect - 1 - - - - - -");
    assert_eq!(table.len(), 3);
}

#[cfg(feature = "native-tls")]
#[test]
fn compare_prints_a_table_of_tls_and_tcp() {
    let made = crate::support::certificates::Certificates::make();
    let [certificate, key, authority] =
        ["server.pem", "server.key", "ca.pem"].map(|it| made.path(it).to_str().unwrap().to_owned());
    let files = ["--tls", &certificate, &key];

    // All messages of these modes go through TLS.
    let (server, uri) = sink(&files);
    assert!(uri.starts_with("amqps://"), "{uri}");
    for mode in ["publish", "confirm", "confirm1", "consume", "consume-ack"] {
        let mut command = perf_test();
        command.args(["bench", mode, &uri, "600", "150000", "2"]);
        command.env("PERF_TEST_CA", &authority);
        let output = output(command);
        assert!(output.status.success(), "{output:?}");
        let line = String::from_utf8(output.stdout).unwrap();
        assert_eq!(number(&line, "count"), 600.0, "{line}");
    }
    drop(server);

    let only = ["consume", "consume-ack", "rpc"].map(|it| ["--only", it]);
    let rounds = ["--rounds", "1"];
    let arguments = [&files[..], &rounds, &only.concat()].concat();
    let table = compare_trusting(&authority, &arguments);
    let titles = "mode size threads ours CPU spread limit CPU ours/limit TCP CPU ours/TCP";
    assert_eq!(table[0].join(" "), titles);
    let rows: Vec<_> = table[2..].iter().map(|row| row[..2].join(" ")).collect();
    assert_eq!(
        rows,
        [
            "consume 16 B",
            "consume 1 KiB",
            "consume 64 KiB",
            "consume-ack 16 B",
            "rpc -"
        ]
    );
    for cell in table[2..].iter().flat_map(|row| &row[3..]) {
        assert!(first_number(cell) > 0.0, "{table:?}");
    }
}

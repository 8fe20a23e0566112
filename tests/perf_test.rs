//! The example `perf_test`: that it does what it says, not how fast.

use crate::support::program::command;
use crate::support::{connect, unique, url, Program};

/// The value behind a key of a line of JSON.
fn number(line: &str, key: &str) -> f64 {
    let (_, rest) = line.split_once(&format!("\"{key}\":")).unwrap();
    let end = rest.find([',', '}']).unwrap();
    rest[..end].parse().unwrap()
}

#[test]
fn each_mode_gives_a_line_of_json_from_a_server_that_it_brings_along() {
    let server = Program::start("perf_test", &["sink"], "");
    let uri = server.line();
    for client in ["bench", "limit"] {
        for mode in [
            "publish",
            "confirm",
            "publisher",
            "confirm1",
            "consume",
            "consume-ack",
            "rpc",
            "connect",
            "publish-in-turn",
            "rpc-busy",
            "consume-slow",
        ] {
            let threads = if client == "limit" { "1" } else { "2" };
            // Messages of several frames, and more than a prefetch of them.
            let arguments = [client, mode, &uri, "600", "150000", threads];
            let line = Program::run("perf_test", &arguments, "");
            let named = format!("\"mode\":\"{mode}\",\"size\":150000,\"threads\":{threads}");
            assert!(line.contains(&named), "{line}");
            assert_eq!(number(&line, "count"), 600.0, "{line}");
            assert!(number(&line, "msgs_per_s") > 0.0, "{line}");
            if matches!(mode, "confirm1" | "rpc" | "rpc-busy" | "connect") {
                assert!(number(&line, "p99_us") >= number(&line, "p50_us"), "{line}");
                assert!(number(&line, "p50_us") > 1.0, "{line}");
            }
        }
    }
    for mode in ["channels", "connections"] {
        let line = Program::run("perf_test", &["bench", mode, &uri, "50", "0", "1"], "");
        assert!(line.contains("rss_bytes_each") || cfg!(not(target_os = "linux")));
    }
}

#[test]
fn producers_and_consumers_work_on_a_broker_with_the_options_of_perftest() {
    let (uri, queue) = (url(), unique("perf"));
    let options = "-x 2 -X 2 -y 2 -C 500 -s 64 -c 50 -q 20 -A 5 -f persistent -f mandatory --json --shared-connection";
    let mut arguments: Vec<_> = options.split(' ').collect();
    let pid = std::process::id().to_string();
    arguments.extend(["--uri", &uri, "-u", &queue, "--server-pid", &pid]);
    let output = Program::run("perf_test", &arguments, "");
    let line = output.lines().last().unwrap();
    assert_eq!(number(line, "count"), 2000.0, "{output}");
    assert_eq!(number(line, "threads"), 6.0, "{output}");
    assert!(number(line, "p99_us") > 0.0, "{output}");
    let tells = line.contains("\"server_cpu_us_per_msg\":");
    assert!(tells || cfg!(not(target_os = "linux")), "{output}");
    assert!(output.contains("confirmed: ") && output.contains("unconfirmed: 0"));
    // A queue with a name of its own is durable, and stays.
    let channel = connect().open_channel().unwrap();
    assert_eq!(channel.queue_delete(&queue, Default::default()).unwrap(), 0);
    let refused = ["--uri", "amqp://guest:wrong@127.0.0.1:1", "-z", "1"];
    let output = command("perf_test").args(refused).output().unwrap();
    assert!(!output.status.success() && !output.stderr.is_empty());
}

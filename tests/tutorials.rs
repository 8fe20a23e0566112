//! RabbitMQ's tutorials and other examples, run with the command lines that their pages show.

use std::io::{Read, Write};
use std::net::TcpStream;

use leveret::QueueDeleteOptions;

use crate::support::{connect, eventually, program, ready, unique, url, Program};

fn run(example: &str, arguments: &[&str]) -> String {
    Program::run(example, arguments, &url())
}

fn start(example: &str, arguments: &[&str], first_line: &str) -> Program {
    let program = Program::start(example, arguments, &url());
    program.expect(first_line);
    program
}

const WAITING: &str = " [*] Waiting for messages. To exit press CTRL+C";
const WAITING_FOR_LOGS: &str = " [*] Waiting for logs. To exit press CTRL+C";

#[test]
fn tutorial_1_hello_world() {
    assert_eq!(run("tutorial_1_send", &[]), " [x] Sent 'Hello World!'\n");
    let receiver = start("tutorial_1_receive", &[], WAITING);
    receiver.expect(" [x] Received 'Hello World!'");
    run("tutorial_1_send", &[]);
    receiver.expect(" [x] Received 'Hello World!'");
}

#[test]
fn tutorial_2_a_task_of_a_killed_worker_goes_to_another() {
    let connection = connect();
    let first = start("tutorial_2_worker", &[], WAITING);
    let sent = run("tutorial_2_new_task", &["A", "very", "hard", "task.."]);
    assert_eq!(sent, " [x] Sent 'A very hard task..'\n");
    first.expect(" [x] Received 'A very hard task..'");
    let second = start("tutorial_2_worker", &[], WAITING);
    first.signal("KILL");
    second.expect(" [x] Received 'A very hard task..'");
    second.expect(" [x] Done");
    run("tutorial_2_new_task", &[]);
    second.expect(" [x] Received 'Hello World!'");
    second.expect(" [x] Done");
    drop((first, second));
    eventually("the workers' connections are gone", || {
        // If the queue is in use, the broker closes this channel.
        let channel = connection.open_channel().unwrap();
        let options = QueueDeleteOptions::default().if_unused(true);
        channel.queue_delete("task_queue", options).is_ok()
    });
}

#[test]
fn tutorial_3_every_listener_gets_every_line() {
    let listeners = [(); 2].map(|()| start("tutorial_3_receive_logs", &[], WAITING_FOR_LOGS));
    let sent = run("tutorial_3_emit_log", &[]);
    assert_eq!(sent, " [x] Sent 'info: Hello World!'\n");
    run("tutorial_3_emit_log", &["warning:", "low", "battery"]);
    for listener in listeners {
        listener.expect(" [x] info: Hello World!");
        listener.expect(" [x] warning: low battery");
    }
}

#[test]
fn tutorial_4_listeners_choose_severities() {
    let example = "tutorial_4_receive_logs_direct";
    let some = start(example, &["warning", "error"], WAITING_FOR_LOGS);
    let all = start(example, &["info", "warning", "error"], WAITING_FOR_LOGS);
    let emit = "tutorial_4_emit_log_direct";
    assert_eq!(run(emit, &[]), " [x] Sent 'info':'Hello World!'\n");
    run(emit, &["error", "Run. Run. Or it will explode."]);
    some.expect(" [x] error:Run. Run. Or it will explode.");
    all.expect(" [x] info:Hello World!");
    all.expect(" [x] error:Run. Run. Or it will explode.");
    let usage = program::command(example).output().unwrap();
    assert_eq!(usage.status.code(), Some(1));
}

#[test]
fn tutorial_5_listeners_choose_patterns() {
    let example = "tutorial_5_receive_logs_topic";
    let all = start(example, &["#"], WAITING_FOR_LOGS);
    let some = start(example, &["kern.*", "*.critical"], WAITING_FOR_LOGS);
    let emit = "tutorial_5_emit_log_topic";
    assert_eq!(
        run(emit, &[]),
        " [x] Sent 'anonymous.info':'Hello World!'\n"
    );
    run(emit, &["kern.critical", "A critical kernel error"]);
    all.expect(" [x] anonymous.info:Hello World!");
    for listener in [all, some] {
        listener.expect(" [x] kern.critical:A critical kernel error");
    }
    let usage = program::command(example).output().unwrap();
    assert_eq!(usage.status.code(), Some(1));
}

#[test]
fn tutorial_6_client_gets_the_answer() {
    let server = start("tutorial_6_rpc_server", &[], " [x] Awaiting RPC requests");
    let asked = run("tutorial_6_rpc_client", &[]);
    assert_eq!(asked, " [x] Requesting fib(30)\n [.] Got 832040\n");
    server.expect(" [.] fib(30)");
    run("tutorial_6_rpc_client", &["0"]);
    server.expect(" [.] fib(0)");
    let mut wrong = program::command("tutorial_6_rpc_client");
    let failed = wrong.arg("41").env("AMQP_URL", url()).output().unwrap();
    let told = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success());
    assert!(told.contains("expected a number from 0 to 40"), "{told}");
}

#[test]
fn select_reads_several_queues_until_stopped() {
    let channel = connect().open_channel().unwrap();
    let names = [unique("first"), unique("second")];
    let arguments = names.each_ref().map(String::as_str);
    let first_line = "waiting for messages; to exit press Ctrl+C";
    let mut program = start("select", &arguments, first_line);
    for name in &names {
        channel.basic_publish("", name, "hello").unwrap();
    }
    let mut lines = Vec::new();
    while lines.len() < 2 {
        lines.extend(Some(program.line()).filter(|line| line.ends_with(": hello")));
    }
    lines.sort();
    assert_eq!(lines, names.each_ref().map(|name| format!("{name}: hello")));
    while program.line() != "2 messages so far" {}
    program.signal("INT");
    assert!(program.wait().success());
    assert_eq!(program.rest().last().unwrap(), "2 messages in all");
    for name in &names {
        assert_eq!(ready(&channel, name), 0);
        channel
            .queue_delete(name, QueueDeleteOptions::default())
            .unwrap();
    }
}

/// Asks an HTTP server, and returns the answer's status and body.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split_ascii_whitespace().nth(1).unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn metrics_and_the_health_of_workers_are_served_over_http() {
    let queue = unique("metrics");
    let program = Program::start("metrics", &["127.0.0.1:0", &queue], &url());
    let line = program.line();
    let address = line.strip_prefix("listening at ").unwrap();
    assert_eq!(
        get(address, "/health"),
        ("200".to_owned(), "healthy\n".to_owned())
    );
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    channel.basic_publish("", &queue, "text").unwrap();
    channel.basic_publish("", &queue, b"\xff").unwrap();
    program.expect("received \"text\"");
    eventually("the metrics count both messages", || {
        let (status, metrics) = get(address, "/metrics");
        let has = |name: &str, value: u32| {
            let line = format!("workers_{name}{{queue={queue:?}}} {value}");
            metrics.lines().any(|it| it == line)
        };
        let counts = has("messages_handled_total", 1) && has("messages_failed_total", 1);
        status == "200" && counts && has("messages_retried_total", 1) && has("threads", 2)
    });
    channel
        .queue_delete(&queue, QueueDeleteOptions::default())
        .unwrap();
    eventually("the workers are not healthy", || {
        let (status, body) = get(address, "/health");
        status == "503" && body.contains("restarting: 2")
    });
    assert_eq!(get(address, "/").0, "404");
    drop(program);
    for suffix in [".retry.1000", ".retry.10000", ".parked"] {
        let name = format!("{queue}{suffix}");
        channel
            .queue_delete(&name, QueueDeleteOptions::default())
            .unwrap();
    }
}

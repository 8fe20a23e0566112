//! Measures encoding and decoding of the frames that each message needs:
//! `cargo bench -p leveret-benches --bench wire`.

#![allow(clippy::unwrap_used, clippy::panic)]

// The wire layer is private, and needs nothing else of the crate, so this includes its source.
#[allow(
    dead_code,
    unexpected_cfgs,
    unreachable_pub,
    unnameable_types,
    unused_imports
)]
#[path = "../src/wire/mod.rs"]
mod wire;

use std::hint::black_box;

use criterion::Criterion;

use wire::codec::{Reader, Writer};
use wire::frame::{self, Cut};
use wire::method::{BasicAck, BasicDeliver, BasicPublish, Encode, Method};
use wire::properties::Properties;
use wire::value::{read_table, FieldTable};

const LIMIT: usize = 128 << 10;

fn publish() -> BasicPublish<'static> {
    BasicPublish {
        exchange: "logs".into(),
        routing_key: "host.service.level".into(),
        ..BasicPublish::default()
    }
}

fn properties() -> Properties {
    Properties::default()
        .persistent(true)
        .content_type("application/json")
        .message_id("0f8fad5b-d9cb-469f-a165-70867728950e")
}

fn table() -> FieldTable {
    let numbers = (0..8).map(|number| (format!("number-{number}"), number));
    let mut table = FieldTable::new()
        .with("text", "some words")
        .with("flag", true);
    for (name, number) in numbers {
        table.insert(name, i64::from(number));
    }
    table
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let mut buffer = Vec::with_capacity(LIMIT);
    let mut measure = |name: &str, write: &dyn Fn(&mut Vec<u8>)| {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                buffer.clear();
                write(black_box(&mut buffer));
            });
        });
    };
    let (publish, ack, properties, table) = (
        publish(),
        BasicAck {
            delivery_tag: 7,
            multiple: false,
        },
        properties(),
        table(),
    );
    measure("basic.publish", &|buffer| {
        frame::write_method(buffer, 1, &publish, LIMIT).unwrap();
    });
    measure("basic.ack", &|buffer| {
        frame::write_method(buffer, 1, &ack, LIMIT).unwrap();
    });
    measure("header and 16 bytes of body", &|buffer| {
        frame::write_content(buffer, 1, None, &[0; 16], LIMIT).unwrap();
    });
    measure("properties", &|buffer| properties.encode(buffer).unwrap());
    measure("table of 10", &|buffer| {
        Writer::new(buffer).table(&table, "table").unwrap();
    });
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let deliver = BasicDeliver {
        consumer_tag: "leveret-1.1".into(),
        delivery_tag: 7,
        exchange: "logs".into(),
        routing_key: "host.service.level".into(),
        ..BasicDeliver::default()
    };
    let ack = BasicAck {
        delivery_tag: 7,
        multiple: true,
    };
    let mut measure = |name: &str, bytes: Vec<u8>, read: &dyn Fn(&[u8])| {
        group.bench_function(name, |bencher| bencher.iter(|| read(black_box(&bytes))));
    };
    let method = |bytes: &[u8]| {
        let Ok(Cut::Frame(frame, _)) = frame::cut(bytes, LIMIT) else {
            panic!("no frame");
        };
        black_box(Method::decode(frame.payload).unwrap());
    };
    measure("basic.deliver", encoded(&deliver), &method);
    measure("basic.ack", encoded(&ack), &method);
    let mut bytes = Vec::new();
    properties().encode(&mut bytes).unwrap();
    measure("properties", bytes, &|bytes| {
        black_box(Properties::decode(bytes).unwrap());
    });
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).table(&table(), "table").unwrap();
    measure("table of 10", bytes, &|bytes| {
        black_box(read_table(&mut Reader::new(bytes), 0).unwrap());
    });
}

fn encoded(method: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_method(&mut bytes, 1, method, LIMIT).unwrap();
    bytes
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    encode(&mut criterion);
    decode(&mut criterion);
    criterion.final_summary();
}

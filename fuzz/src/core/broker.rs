//! Frames as a broker writes them, with channels, tags and numbers that the script chooses.

use super::handles::{CHANNELS, TAGS};
use super::script::{Script, Settings};
use crate::wire::frame::{self, BODY, HEADER, METHOD};
use crate::wire::method::*;

const LIMIT: usize = usize::MAX;

fn framed(channel: u16, method: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_method(&mut bytes, channel, method, LIMIT).unwrap();
    bytes
}

/// All that a broker sends in a handshake.
pub(super) fn handshake(settings: Settings) -> Vec<u8> {
    let start = ConnectionStart {
        version_minor: 9,
        mechanisms: LongString(b"PLAIN".as_slice().into()),
        ..ConnectionStart::default()
    };
    let tune = ConnectionTune {
        channel_max: 7,
        frame_max: if settings.has_small_frames() { 4096 } else { 0 },
        heartbeat: 60,
    };
    let open_ok = ConnectionOpenOk::default();
    [framed(0, &start), framed(0, &tune), framed(0, &open_ok)].concat()
}

pub(super) fn open_ok(channel: u16) -> Vec<u8> {
    framed(channel, &ChannelOpenOk::default())
}

pub(super) fn consume_ok(channel: u16, tag: &str) -> Vec<u8> {
    framed(
        channel,
        &BasicConsumeOk {
            consumer_tag: tag.into(),
        },
    )
}

pub(super) fn frames(kind: u8, script: &mut Script<'_>) -> Vec<u8> {
    let choice = script.byte();
    let channel = u16::from(choice) % CHANNELS;
    let choice = choice / CHANNELS as u8;
    match kind {
        1 => any_frame(channel, choice, script),
        2 => delivery(channel, script),
        3 => content(channel, choice, script),
        4 => about_channels(channel, choice, script),
        _ => reply(channel, choice, script),
    }
}

/// A frame whose payload is in the script.
fn any_frame(channel: u16, choice: u8, script: &mut Script<'_>) -> Vec<u8> {
    let kind = [METHOD, HEADER, BODY, 8][usize::from(choice % 4)];
    let count = script.byte();
    let payload = script.bytes(count.into());
    raw_frame(kind, channel, payload)
}

fn raw_frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.push(frame::END);
    bytes
}

fn delivery(channel: u16, script: &mut Script<'_>) -> Vec<u8> {
    let deliver = BasicDeliver {
        consumer_tag: tag(script).into(),
        delivery_tag: script.byte().into(),
        redelivered: false,
        exchange: "x".into(),
        routing_key: "key".into(),
    };
    let mut bytes = framed(channel, &deliver);
    bytes.extend(message(channel, script));
    bytes
}

fn tag(script: &mut Script<'_>) -> &'static str {
    TAGS[usize::from(script.byte()) % TAGS.len()]
}

/// A header and a body of at most 255 bytes.
fn message(channel: u16, script: &mut Script<'_>) -> Vec<u8> {
    let size = usize::from(script.byte());
    let mut bytes = Vec::new();
    frame::write_content(&mut bytes, channel, None, &vec![b'.'; size], 100).unwrap();
    bytes
}

fn content(channel: u16, choice: u8, script: &mut Script<'_>) -> Vec<u8> {
    // Up to sizes that no message has.
    let size = u64::from(script.byte()) << (choice / 4 * 4);
    match choice % 4 {
        0 => {
            let mut header = vec![0, 60, 0, 0];
            header.extend_from_slice(&size.to_be_bytes());
            header.extend_from_slice(&[0, 0]);
            raw_frame(HEADER, channel, &header)
        }
        1 => raw_frame(BODY, channel, &vec![b'.'; size as usize % 5000]),
        2 => message(channel, script),
        _ => {
            let returned = BasicReturn {
                reply_code: 312,
                reply_text: "NO_ROUTE".into(),
                exchange: "x".into(),
                routing_key: "key".into(),
            };
            framed(channel, &returned)
        }
    }
}

fn about_channels(channel: u16, choice: u8, script: &mut Script<'_>) -> Vec<u8> {
    let number = u64::from(script.byte());
    match choice % 8 {
        0 => open_ok(channel),
        1 => framed(channel, &ChannelCloseOk {}),
        2 => framed(
            channel,
            &ChannelClose {
                reply_code: 404,
                reply_text: "gone\n".into(),
                ..ChannelClose::default()
            },
        ),
        3 => framed(
            channel,
            &ChannelFlow {
                active: number != 0,
            },
        ),
        4 => framed(
            channel,
            &BasicAck {
                delivery_tag: number / 2,
                multiple: number % 2 == 1,
            },
        ),
        5 => framed(
            channel,
            &BasicNack {
                delivery_tag: number / 2,
                multiple: number % 2 == 1,
                requeue: false,
            },
        ),
        6 => framed(
            channel,
            &BasicCancel {
                consumer_tag: tag(script).into(),
                no_wait: number % 2 == 1,
            },
        ),
        _ => framed(
            0,
            &ConnectionClose {
                reply_code: 320,
                reply_text: "stop\n".into(),
                ..ConnectionClose::default()
            },
        ),
    }
}

fn reply(channel: u16, choice: u8, script: &mut Script<'_>) -> Vec<u8> {
    match choice % 12 {
        0 => consume_ok(channel, tag(script)),
        1 => framed(
            channel,
            &BasicCancelOk {
                consumer_tag: tag(script).into(),
            },
        ),
        2 => framed(channel, &QueueDeclareOk::default()),
        3 => framed(channel, &TxCommitOk {}),
        4 => framed(channel, &BasicGetEmpty::default()),
        5 => {
            let delivery_tag = script.byte().into();
            framed(
                channel,
                &BasicGetOk {
                    delivery_tag,
                    ..BasicGetOk::default()
                },
            )
        }
        6 => framed(channel, &BasicQosOk {}),
        7 => framed(0, &ConnectionCloseOk {}),
        8 => framed(
            0,
            &ConnectionBlocked {
                reason: "disk".into(),
            },
        ),
        9 => framed(0, &ConnectionUnblocked {}),
        10 => framed(0, &ConnectionUpdateSecretOk {}),
        _ => raw_frame(8, 0, &[]),
    }
}

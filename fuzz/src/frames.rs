//! Frames, and all that is in them.

use crate::wire::fast_deliver::WholeDelivery;
use crate::wire::frame::{self, ContentHeader, Cut, Frame, FrameKind, END, OVERHEAD};
use crate::wire::method::Method;
use crate::wire::properties::Properties;

/// The first byte is the limit of a payload, in units of 16 bytes.
pub(crate) fn run(input: &[u8]) {
    let Some((&limit, mut rest)) = input.split_first() else {
        return;
    };
    let limit = usize::from(limit) * 16;
    let whole = rest;
    while let Some(length) = cut(rest, limit) {
        delivery(rest, limit);
        rest = &rest[length..];
    }
    let frames = &whole[..whole.len() - rest.len()];
    assert_eq!(
        frame::whole(frames).map(|(_, it)| it.len()).sum::<usize>(),
        frames.len()
    );
    assert!(frame::fits(frames, limit));
    for limit in [1, 7, 64] {
        cut_smaller(frames, limit);
    }
}

/// Cuts the first frame out of `input`, decodes it, and returns its length.
fn cut(input: &[u8], limit: usize) -> Option<usize> {
    let (frame, length) = match frame::cut(input, limit) {
        Ok(Cut::Frame(frame, length)) => (frame, length),
        Ok(Cut::Incomplete) => {
            assert!(input.len() < limit + OVERHEAD, "a whole frame is not seen");
            return None;
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return None;
        }
    };
    assert_eq!(length, frame.payload.len() + OVERHEAD);
    assert!(frame.payload.len() <= limit, "the limit is {limit}");
    assert_eq!(input[length - 1], END);
    for end in [0, 1, 6, 7, length - 1] {
        let begun = frame::cut(&input[..end], limit);
        assert_eq!(begun, Ok(Cut::Incomplete), "at {end} of {length}");
    }
    decode(frame);
    Some(length)
}

fn decode(frame: Frame<'_>) {
    match frame.kind {
        FrameKind::Method => {
            let method = Method::decode(frame.payload);
            let shown = method.map_or_else(|it| it.to_string(), |it| it.id().to_string());
            assert!(!shown.is_empty());
        }
        FrameKind::Header => {
            if let Ok(header) = ContentHeader::decode(frame.payload) {
                assert_eq!(header.properties.len() + 12, frame.payload.len());
                let _ = Properties::decode(header.properties);
            }
        }
        FrameKind::Body | FrameKind::Heartbeat => {}
    }
}

/// The fast path must see in a delivery what the frames say.
fn delivery(input: &[u8], limit: usize) {
    let Some(message) = WholeDelivery::cut(input, limit) else {
        return;
    };
    let mut rest = input;
    let mut next = || {
        let Ok(Cut::Frame(frame, length)) = frame::cut(rest, limit) else {
            panic!("the fast path sees a frame that does not exist");
        };
        rest = &rest[length..];
        assert_eq!(frame.channel, message.channel);
        frame
    };
    let method = next();
    let Ok(Method::BasicDeliver(deliver)) = Method::decode(method.payload) else {
        panic!("the fast path takes another method for a delivery");
    };
    let header = ContentHeader::decode(next().payload).unwrap();
    let body = match header.body_size {
        0 => &[] as &[u8],
        _ => next().payload,
    };
    let tag = String::from_utf8_lossy(message.consumer_tag);
    assert_eq!(tag, deliver.consumer_tag);
    assert_eq!(message.delivery_tag, deliver.delivery_tag);
    assert_eq!(message.redelivered, deliver.redelivered);
    assert_eq!(message.exchange, deliver.exchange.as_bytes());
    assert_eq!(message.routing_key, deliver.routing_key.as_bytes());
    assert_eq!(message.properties, header.properties);
    assert_eq!(message.body, body);
    assert_eq!(message.body.len() as u64, header.body_size);
    assert_eq!(message.length, input.len() - rest.len());
}

/// Smaller frames have the same kinds, channels and bytes in the same order.
fn cut_smaller(frames: &[u8], limit: usize) {
    let Ok(smaller) = frame::cut_smaller(frames, limit) else {
        let fits = bodies(frames)
            .iter()
            .all(|(kind, it)| *kind == frame::BODY || it.len() <= limit);
        assert!(!fits, "frames that fit are refused");
        return;
    };
    assert!(frame::fits(&smaller, limit));
    // Our own output has no empty frames but heartbeats, which are not cut.
    let joined =
        |frames| -> Vec<u8> { bodies(frames).into_iter().flat_map(|(_, it)| it).collect() };
    assert_eq!(joined(&smaller), joined(frames));
}

fn bodies(frames: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let payload = |(_, frame): (u16, &[u8])| (frame[0], frame[7..frame.len() - 1].to_vec());
    frame::whole(frames).map(payload).collect()
}

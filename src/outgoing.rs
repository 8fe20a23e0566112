//! What the IO thread has taken out of the outbox and is writing.

use std::collections::VecDeque;

use crate::wire::frame;

/// A buffer that has grown beyond this is given back, in bytes.
const KEPT_CAPACITY: usize = 2 << 20;
/// How much of a lane is written in one turn, in bytes; a frame may go beyond it.
const TURN: usize = 256 << 10;

/// What was taken and is not yet written. First all that came in order, then one turn of one lane; then it is time to
/// take again.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    buffer: Part,
    /// The first one has its turn.
    lanes: VecDeque<Lane>,
    /// What is left of that turn, in bytes. It ends between two frames.
    turn: usize,
}

#[derive(Debug)]
struct Lane {
    channel: u16,
    part: Part,
}

#[derive(Debug, Default)]
struct Part {
    bytes: Vec<u8>,
    written: usize,
}

impl Part {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }
}

impl Outgoing {
    /// What is to be written next; empty when it is time to take again.
    pub(crate) fn front(&self) -> &[u8] {
        let buffer = self.buffer.rest();
        if !buffer.is_empty() {
            return buffer;
        }
        let lane = self.lanes.front().map(|lane| lane.part.rest());
        let lane = lane.unwrap_or_default();
        lane.get(..self.turn).unwrap_or(lane)
    }

    /// So many bytes of `front` were written.
    pub(crate) fn wrote(&mut self, count: usize) {
        if !self.buffer.rest().is_empty() {
            self.buffer.written += count;
            return;
        }
        self.turn = self.turn.saturating_sub(count);
        let Some(lane) = self.lanes.front_mut() else {
            return;
        };
        lane.part.written += count;
        if self.turn > 0 {
            return;
        }
        if lane.part.rest().is_empty() {
            self.lanes.pop_front();
        } else {
            self.lanes.rotate_left(1);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.front().is_empty()
    }

    // ---- taking: only when `front` is empty ----

    /// Exchanges what has come in order for an empty buffer.
    pub(crate) fn take_buffer(&mut self, buffer: &mut Vec<u8>) {
        let Part { bytes, written } = &mut self.buffer;
        *written = 0;
        bytes.clear();
        if bytes.capacity() > KEPT_CAPACITY {
            *bytes = Vec::new();
        }
        std::mem::swap(bytes, buffer);
        self.begin_turn();
    }

    /// Takes what has come in a channel's lane, if nothing of it is left here. Returns how much is left to write.
    pub(crate) fn take_lane(&mut self, channel: u16, bytes: &mut Vec<u8>) -> usize {
        if let Some(lane) = self.lanes.iter().find(|it| it.channel == channel) {
            return lane.part.rest().len();
        }
        let part = Part {
            bytes: std::mem::take(bytes),
            written: 0,
        };
        let left = part.bytes.len();
        if left > 0 {
            self.lanes.push_back(Lane { channel, part });
            self.begin_turn();
        }
        left
    }

    /// Appends behind what has come in order.
    pub(crate) fn append(&mut self, bytes: &mut Vec<u8>) {
        self.buffer.bytes.append(bytes);
    }

    fn begin_turn(&mut self) {
        let lane = self.lanes.front().map(|lane| lane.part.rest());
        self.turn = frame::whole(lane.unwrap_or_default())
            .scan(0, |turn, (_, frame)| {
                let begun = *turn < TURN;
                *turn += frame.len();
                begun.then_some(*turn)
            })
            .last()
            .unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of one byte of body on this channel.
    fn frames(channel: u16, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            frame::write_content(&mut bytes, channel, None, &[], 4096).unwrap();
        }
        bytes
    }

    /// Writes at most `at_once` bytes at a time until it is time to take again, and returns the channels' frames in
    /// the order in which they went out.
    fn write(outgoing: &mut Outgoing, at_once: usize) -> Vec<u16> {
        let mut written = Vec::new();
        while !outgoing.front().is_empty() {
            let front = outgoing.front();
            let piece = &front[..front.len().min(at_once)];
            written.extend_from_slice(piece);
            let count = piece.len();
            outgoing.wrote(count);
        }
        let channels: Vec<_> = frame::whole(&written).map(|(channel, _)| channel).collect();
        let whole: usize = frame::whole(&written).map(|(_, frame)| frame.len()).sum();
        assert_eq!(whole, written.len(), "it stops between two frames");
        channels
    }

    #[test]
    fn lanes_take_turns_and_never_hold_up_the_rest() {
        let one = frames(1, 1).len();
        let a_turn = TURN.div_ceil(one);
        for at_once in [1, 1000, usize::MAX] {
            let mut outgoing = Outgoing::default();
            let take = |outgoing: &mut Outgoing, mut buffer, mut lanes: [Vec<u8>; 2]| {
                outgoing.take_buffer(&mut buffer);
                let left = [(1, 0), (2, 1)]
                    .map(|(channel, at)| outgoing.take_lane(channel, &mut lanes[at]));
                (left, write(outgoing, at_once))
            };
            let (left, order) = take(
                &mut outgoing,
                frames(3, 2),
                [frames(1, a_turn + 1), frames(2, 1)],
            );
            assert_eq!(left, [(a_turn + 1) * one, one]);
            assert_eq!(order[..2], [3, 3]);
            assert_eq!(order[2..], vec![1; a_turn]);
            let (left, order) = take(&mut outgoing, frames(3, 1), [frames(1, 5), Vec::new()]);
            assert_eq!(
                left,
                [one, one],
                "what follows in a lane waits for its rest"
            );
            assert_eq!(order, [3, 2]);
            let (left, order) = take(&mut outgoing, Vec::new(), [Vec::new(), Vec::new()]);
            assert_eq!((left, order), ([one, 0], vec![1]));
            assert!(outgoing.is_empty() && outgoing.lanes.is_empty());
        }
    }
}

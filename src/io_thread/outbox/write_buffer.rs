//! The frames that the IO thread has taken out of the outbox and is writing.

use std::collections::VecDeque;

use crate::wire::frame;

/// The memory of a larger buffer, in bytes, is freed rather than reused.
const KEPT_CAPACITY: usize = 2 << 20;
/// How much of a lane is written in one turn, in bytes. The turn's last frame may exceed it.
const TURN: usize = 256 << 10;

/// Frames that were taken and are not yet written. The IO thread writes all frames outside of
/// lanes, then one turn of one lane, then takes again.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    in_order: Piece,
    /// The first lane has the turn.
    lanes: VecDeque<Lane>,
    /// What is left of that turn, in bytes. A turn ends between two frames.
    turn: usize,
    /// The empty buffer of a written piece, to be reused.
    spare: Vec<u8>,
}

/// Has at least one piece, and no empty one.
#[derive(Debug)]
struct Lane {
    channel: u16,
    pieces: VecDeque<Piece>,
}

impl Lane {
    fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.rest().len()).sum()
    }
}

#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    written: usize,
}

impl Piece {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }
}

/// Empties a buffer. Frees its memory if that is more than [`KEPT_CAPACITY`].
fn cleared(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.clear();
    if bytes.capacity() > KEPT_CAPACITY {
        return Vec::new();
    }
    bytes
}

impl WriteBuffer {
    /// The bytes to write next. Empty when it is time to take again.
    pub(crate) fn front(&self) -> &[u8] {
        let in_order = self.in_order.rest();
        if !in_order.is_empty() {
            return in_order;
        }
        self.first_of_lanes().get(..self.turn).unwrap_or_default()
    }

    fn first_of_lanes(&self) -> &[u8] {
        let piece = self.lanes.front().and_then(|lane| lane.pieces.front());
        piece.map(Piece::rest).unwrap_or_default()
    }

    pub(crate) fn shrink(&mut self) {
        if self.in_order.rest().is_empty() {
            self.in_order = Piece::default();
        }
        self.spare = Vec::new();
    }

    /// Removes the first `count` bytes of [`front`](Self::front), which were written.
    pub(crate) fn wrote(&mut self, count: usize) {
        if !self.in_order.rest().is_empty() {
            self.in_order.written += count;
            return;
        }
        let Some(mut lane) = self.lanes.pop_front() else {
            return;
        };
        if let Some(piece) = lane.pieces.front_mut() {
            piece.written += count;
            if piece.rest().is_empty() {
                self.spare = cleared(std::mem::take(&mut piece.bytes));
                lane.pieces.pop_front();
            }
        }
        self.turn = self.turn.saturating_sub(count);
        if self.turn > 0 {
            self.lanes.push_front(lane);
        } else if !lane.pieces.is_empty() {
            self.lanes.push_back(lane);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.front().is_empty()
    }

    /// The number of bytes that were taken and are not written.
    pub(crate) fn len(&self) -> usize {
        let lanes = self.lanes.iter().map(Lane::len).sum::<usize>();
        self.in_order.rest().len() + lanes
    }

    // ---- taking: only when `front` is empty ----

    /// Swaps the frames outside of lanes for an empty buffer.
    pub(crate) fn take_in_order(&mut self, frames: &mut Vec<u8>) {
        let Piece { bytes, written } = &mut self.in_order;
        *written = 0;
        *bytes = cleared(std::mem::take(bytes));
        std::mem::swap(bytes, frames);
        self.begin_turn();
    }

    /// Takes the new pieces of a channel's lane. Returns how many bytes of the lane are left to
    /// write.
    pub(crate) fn take_lane(&mut self, channel: u16, pieces: &mut Vec<Vec<u8>>) -> usize {
        let new = pieces.drain(..).map(|bytes| Piece { bytes, written: 0 });
        let mut new = new.peekable();
        let lane = match self.lanes.iter_mut().find(|it| it.channel == channel) {
            Some(lane) => {
                lane.pieces.extend(new);
                lane
            }
            None if new.peek().is_none() => return 0,
            None => {
                let pieces = new.collect();
                self.lanes.push_back(Lane { channel, pieces });
                self.begin_turn();
                match self.lanes.back_mut() {
                    Some(lane) => lane,
                    None => return 0,
                }
            }
        };
        lane.len()
    }

    /// Appends to the frames outside of lanes.
    pub(crate) fn append(&mut self, bytes: &mut Vec<u8>) {
        self.in_order.bytes.append(bytes);
    }

    /// Takes an empty buffer that has its memory already.
    pub(crate) fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    fn begin_turn(&mut self) {
        self.turn = frame::whole(self.first_of_lanes())
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

    /// `count` small frames on this channel.
    fn frames(channel: u16, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            frame::write_content(&mut bytes, channel, None, &[], 4096).unwrap();
        }
        bytes
    }

    /// Writes at most `at_once` bytes at a time until it is time to take again. Returns the channel
    /// of each frame in the order in which they were written.
    fn write(write_buffer: &mut WriteBuffer, at_once: usize) -> Vec<u16> {
        let mut written = Vec::new();
        while !write_buffer.front().is_empty() {
            let front = write_buffer.front();
            let piece = &front[..front.len().min(at_once)];
            written.extend_from_slice(piece);
            let count = piece.len();
            write_buffer.wrote(count);
        }
        let channels: Vec<_> = frame::whole(&written).map(|(channel, _)| channel).collect();
        let whole: usize = frame::whole(&written).map(|(_, frame)| frame.len()).sum();
        assert_eq!(whole, written.len(), "writing stops between two frames");
        channels
    }

    #[test]
    fn lanes_take_turns_and_never_hold_up_the_rest() {
        let one = frames(1, 1).len();
        let a_turn = TURN.div_ceil(one);
        for at_once in [1, 1000, usize::MAX] {
            let mut write_buffer = WriteBuffer::default();
            let take = |write_buffer: &mut WriteBuffer, mut in_order, [one, two]: [Vec<u8>; 2]| {
                write_buffer.take_in_order(&mut in_order);
                let left = [(1, one), (2, two)].map(|(channel, bytes)| {
                    let mut pieces = vec![bytes];
                    pieces.retain(|bytes| !bytes.is_empty());
                    write_buffer.take_lane(channel, &mut pieces)
                });
                (left, write(write_buffer, at_once))
            };
            let (left, order) = take(
                &mut write_buffer,
                frames(3, 2),
                [frames(1, a_turn + 1), frames(2, 1)],
            );
            assert_eq!(left, [(a_turn + 1) * one, one]);
            assert_eq!(order[..2], [3, 3]);
            assert_eq!(order[2..], vec![1; a_turn]);
            let (left, order) = take(&mut write_buffer, frames(3, 1), [frames(1, 5), Vec::new()]);
            assert_eq!(left, [6 * one, one], "new frames of a lane follow its rest");
            assert_eq!(order, [3, 2]);
            let nothing = || (Vec::new(), [Vec::new(), Vec::new()]);
            for rest in [vec![1], vec![1; 5]] {
                let (in_order, lanes) = nothing();
                let (left, order) = take(&mut write_buffer, in_order, lanes);
                assert_eq!((left[1], order), (0, rest));
            }
            assert!(write_buffer.is_empty() && write_buffer.lanes.is_empty());
        }
    }
}

//! The frames in the outbox that wait for the IO thread.

use super::write_buffer::WriteBuffer;
use crate::wire::frame;

/// At this many bytes outside of lanes, callers wait before they append. One message may exceed it.
pub(crate) const HIGH_WATER: usize = 512 << 10;
/// The same for all lanes together.
const LANES_HIGH_WATER: usize = 4 << 20;

/// The frames of one channel from a large message on, until all of them are written.
struct Lane {
    channel: u16,
    /// Frames that the IO thread has not taken. A large message is one piece, which is not copied.
    pieces: Vec<Vec<u8>>,
    /// The small frames that follow the last piece.
    end: Vec<u8>,
    /// Bytes that the IO thread has taken but not written, as of its last take.
    writing: usize,
    /// All bytes that the IO thread has taken.
    taken: u64,
    /// The number of takes before this lane began: tells two lanes of one channel apart.
    since: u64,
}

/// What was in the queue at some time, to see later whether it is written.
pub(crate) struct Mark {
    takes: u64,
    lanes: Vec<LaneMark>,
}

struct LaneMark {
    channel: u16,
    since: u64,
    /// The number of bytes of the lane so far.
    end: u64,
}

impl Lane {
    fn push(&mut self, piece: Vec<u8>) {
        self.finish_piece();
        self.pieces.push(piece);
    }

    fn finish_piece(&mut self) {
        if !self.end.is_empty() {
            self.pieces.push(std::mem::take(&mut self.end));
        }
    }

    fn unwritten(&self) -> usize {
        self.writing + self.untaken()
    }

    fn untaken(&self) -> usize {
        self.end.len() + self.pieces.iter().map(Vec::len).sum::<usize>()
    }
}

/// Frames in the order in which they were appended, except that a channel with a large message has
/// a lane.
#[derive(Default)]
pub(crate) struct SendQueue {
    in_order: Vec<u8>,
    lanes: Vec<Lane>,
    /// The last frame of the connection, which waits for the lanes to end.
    last: Vec<u8>,
    /// An empty buffer for the next large message: fresh memory costs more than copying into it.
    spare: Vec<u8>,
    /// How often the IO thread has taken frames. At each take, it has written all frames outside of
    /// lanes that it took before.
    takes: u64,
}

impl SendQueue {
    /// The buffer to which the frames of a channel are appended.
    #[inline]
    pub(crate) fn target(&mut self, channel: u16) -> &mut Vec<u8> {
        match self.lanes.iter_mut().find(|it| it.channel == channel) {
            Some(lane) => &mut lane.end,
            None => &mut self.in_order,
        }
    }

    /// The buffer to which the last frame of the connection is appended. It waits for all lanes, or
    /// it would overtake messages that were published before.
    pub(crate) fn last_target(&mut self) -> &mut Vec<u8> {
        if self.lanes.is_empty() {
            &mut self.in_order
        } else {
            &mut self.last
        }
    }

    #[inline(always)]
    pub(crate) fn has_room(&self, channel: u16, large: bool) -> bool {
        if !large && self.lanes.iter().all(|it| it.channel != channel) {
            return self.in_order.len() < HIGH_WATER;
        }
        let unwritten: usize = self.lanes.iter().map(Lane::unwritten).sum();
        unwritten < LANES_HIGH_WATER
    }

    /// Appends a large message.
    pub(crate) fn push_large(&mut self, channel: u16, frames: Vec<u8>) {
        match self.lanes.iter_mut().find(|it| it.channel == channel) {
            Some(lane) => lane.push(frames),
            None => self.lanes.push(Lane {
                channel,
                pieces: vec![frames],
                end: Vec::new(),
                writing: 0,
                taken: 0,
                since: self.takes,
            }),
        }
    }

    /// Marks all frames of one channel, or of all channels, that are in the queue now or being
    /// written.
    pub(crate) fn mark(&self, only: Option<u16>) -> Mark {
        let is_meant = |lane: &&Lane| only.map_or(true, |channel| channel == lane.channel);
        let lanes = self.lanes.iter().filter(is_meant).map(|lane| LaneMark {
            channel: lane.channel,
            since: lane.since,
            end: lane.taken + lane.untaken() as u64,
        });
        Mark {
            takes: self.takes,
            lanes: lanes.collect(),
        }
    }

    /// Whether the socket has all frames of the mark.
    pub(crate) fn has_written(&self, mark: &Mark) -> bool {
        // The next take takes the frames, and the one after it finds them written.
        self.takes >= mark.takes + 2 && mark.lanes.iter().all(|it| self.has_written_lane(it))
    }

    fn has_written_lane(&self, mark: &LaneMark) -> bool {
        let is_it = |lane: &&Lane| lane.channel == mark.channel && lane.since == mark.since;
        // A lane ends when all of it is written.
        let lane = self.lanes.iter().find(is_it);
        lane.map_or(true, |lane| lane.taken - lane.writing as u64 >= mark.end)
    }

    /// The number of bytes that the IO thread has not taken.
    pub(crate) fn len(&self) -> usize {
        let lanes = self.lanes.iter().map(Lane::untaken).sum::<usize>();
        self.in_order.len() + lanes + self.last.len()
    }

    pub(crate) fn shrink(&mut self) {
        self.in_order.shrink_to_fit();
        self.spare = Vec::new();
    }

    pub(crate) fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Appends frames of any channels, each to its channel's buffer.
    pub(crate) fn append(&mut self, take_frames: impl FnOnce(&mut Vec<u8>)) {
        if self.lanes.is_empty() {
            return take_frames(&mut self.in_order);
        }
        let mut frames = Vec::new();
        take_frames(&mut frames);
        for (channel, frame) in frame::whole(&frames) {
            self.target(channel).extend_from_slice(frame);
        }
    }

    /// Moves to the IO thread's buffer all that it can take.
    pub(crate) fn move_to(&mut self, write_buffer: &mut WriteBuffer) {
        self.takes += 1;
        write_buffer.take_in_order(&mut self.in_order);
        self.lanes.retain_mut(|lane| {
            lane.finish_piece();
            lane.taken += lane.untaken() as u64;
            lane.writing = write_buffer.take_lane(lane.channel, &mut lane.pieces);
            lane.writing > 0
        });
        if self.lanes.is_empty() {
            write_buffer.append(&mut self.last);
        }
        let spare = write_buffer.take_spare();
        if write_buffer.is_empty() {
            // The connection is idle: free the memory.
            self.spare = Vec::new();
        } else if spare.capacity() > 0 {
            self.spare = spare;
        }
    }
}

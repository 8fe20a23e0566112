//! When a caller may append.

/// When a caller may append. On a channel that has ended, only [`Reopen`](Self::Reopen) may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// At once: for a few bytes that must not wait.
    Always,
    /// When the connection is open and has room.
    Room,
    /// When the connection is open, has room, and the broker has stopped neither the connection nor
    /// the channel.
    Publish,
    /// Like `Publish`, for a message that goes into a lane.
    PublishLarge,
    /// When there is room, even while the connection is being recovered: the caller checks what is
    /// open there.
    Attached,
    /// For an answer to a delivery: like `Attached`, when the channel is open again after a loss.
    /// Fails if the message came on a lost connection. Tag 0 means all messages, and waits for a
    /// recovery, since it then means all messages of the next connection.
    Answer { delivery_tag: u64 },
    /// Like `Room`, when `channel.open` can be sent on a channel that has ended, or if the channel
    /// is open already.
    Reopen,
    /// For the recovery thread, without waiting for room and before others are admitted. Passes on
    /// the connection of this epoch only, and fails unless the channel is open there.
    Recovery { epoch: u64 },
    /// Like `Recovery`, when `channel.open` can be sent.
    RecoveryOpen { epoch: u64 },
}

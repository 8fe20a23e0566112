//! What a recovery restores on the next connection, beside channels and consumers.

use super::lost_publishes::LostPublish;
use crate::proto::Topology;

#[derive(Default)]
pub(crate) struct ToReplay {
    /// What the program has declared.
    pub(crate) topology: Topology,
    /// Those of each channel are in the order in which it published them.
    pub(crate) lost_publishes: Vec<LostPublish>,
}

//! What `Connection::stats` looks at, as long as it is there.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Things that can be counted when someone asks, so that they need not be counted as they change.
#[derive(Debug)]
pub(crate) struct Registry<T> {
    members: Mutex<Vec<Weak<T>>>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self {
            members: Mutex::default(),
        }
    }
}

impl<T> Registry<T> {
    pub(crate) fn add(&self, member: &Arc<T>) {
        let mut members = self.members.lock();
        if members.len() == members.capacity() {
            members.retain(|it| it.strong_count() > 0);
        }
        members.push(Arc::downgrade(member));
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        let members = self.members.lock();
        members.iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_have_gone_do_not_pile_up() {
        let registry = Registry::default();
        let stays = Arc::new(1);
        registry.add(&stays);
        for _ in 0..10_000 {
            registry.add(&Arc::new(2));
        }
        assert!(registry.members.lock().capacity() < 16);
        assert_eq!(registry.all(), [stays]);
    }
}

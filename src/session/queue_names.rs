//! Queue names, and how handles follow a queue that the broker renames during recovery.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

/// The queue that a method is about. The name is read when the outbox admits the method. While the
/// method waits, the connection can be lost and recovered, and a queue that the broker names then
/// gets a new name.
#[derive(Clone, Copy)]
pub(crate) enum QueueName<'a> {
    /// From the program. The empty name means the queue that the channel declared last.
    Given(&'a str),
    /// From a handle: follows renames.
    Tracked(&'a Name),
}

impl<'a> From<&'a str> for QueueName<'a> {
    fn from(name: &'a str) -> Self {
        Self::Given(name)
    }
}

impl<'a> From<&'a Name> for QueueName<'a> {
    fn from(name: &'a Name) -> Self {
        Self::Tracked(name)
    }
}

impl<'a> QueueName<'a> {
    /// The current name, for errors.
    pub(crate) fn shown(self) -> &'a str {
        match self {
            Self::Given(name) => name,
            Self::Tracked(name) => name.current(),
        }
    }

    /// The name to send. `None` if it depends on which queue the channel declared last.
    pub(crate) fn known(self) -> Option<&'a str> {
        match self {
            Self::Given("") => None,
            other => Some(other.shown()),
        }
    }
}

/// A queue name, linked to the name that replaced it. The old name stays alive, since
/// [`Queue::name`](crate::Queue::name) returns a reference to it.
pub(crate) struct Name {
    text: Box<str>,
    next: OnceLock<Arc<Self>>,
}

impl Name {
    fn new(text: &str) -> Arc<Self> {
        let (text, next) = (text.into(), OnceLock::new());
        Arc::new(Self { text, next })
    }

    /// The broker allows this prefix only for names that it makes up itself.
    pub(crate) fn is_made_up(&self) -> bool {
        self.text.starts_with("amq.gen-")
    }

    pub(crate) fn current(&self) -> &str {
        let mut name = self;
        while let Some(next) = name.next.get() {
            name = next;
        }
        &name.text
    }
}

/// Iterative: a queue in a long-running program can have had so many names that recursion would
/// overflow the stack.
impl Drop for Name {
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut name) = next.and_then(Arc::into_inner) {
            next = name.next.take();
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current().fmt(f)
    }
}

/// The names that the broker made up, for queues that still have handles.
#[derive(Default)]
pub(crate) struct QueueNames(Mutex<Names>);

#[derive(Default)]
struct Names {
    current: HashMap<String, Weak<Name>>,
    /// Pairs of old and new names, oldest first. A thread that just received the old name may still
    /// ask for it.
    renamed: VecDeque<(String, String)>,
}

/// Number of renames to remember.
const RENAMED_LIMIT: usize = 4096;

impl Names {
    fn latest(&self, name: &str) -> String {
        let mut latest = name.to_owned();
        for (old, new) in &self.renamed {
            if *old == latest {
                latest.clone_from(new);
            }
        }
        latest
    }
}

impl QueueNames {
    /// Returns a name that follows renames of the queue, if the broker made the name up.
    pub(crate) fn name(&self, text: &str) -> Arc<Name> {
        let name = Name::new(text);
        if !name.is_made_up() {
            return name;
        }
        let mut names = self.0.lock();
        let latest = names.latest(text);
        if let Some(name) = names.current.get(&latest).and_then(Weak::upgrade) {
            return name;
        }
        let name = Name::new(&latest);
        names.current.retain(|_, name| name.strong_count() > 0);
        names.current.insert(latest, Arc::downgrade(&name));
        name
    }

    pub(crate) fn rename(&self, old: &str, new: &str) {
        let mut names = self.0.lock();
        if names.renamed.len() >= RENAMED_LIMIT {
            names.renamed.pop_front();
        }
        names.renamed.push_back((old.to_owned(), new.to_owned()));
        let name = names.current.remove(old).and_then(|name| name.upgrade());
        if let Some(name) = name {
            let next = Name::new(new);
            names.current.insert(new.to_owned(), Arc::downgrade(&next));
            // This is set only once, since the old name is no longer in the map.
            let _ = name.next.set(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_made_name_follows_the_queue() {
        let names = QueueNames::default();
        let (one, other) = (names.name("amq.gen-1"), names.name("amq.gen-1"));
        let given = names.name("given");
        names.rename("amq.gen-1", "amq.gen-2");
        names.rename("given", "taken");
        assert_eq!(one.current(), "amq.gen-2");
        let late = names.name("amq.gen-2");
        names.rename("amq.gen-2", "amq.gen-3");
        let current = [&one, &other, &late].map(|name| name.current());
        assert_eq!(current, ["amq.gen-3"; 3]);
        assert_eq!(given.current(), "given");
        drop((one, other, late));
        names.name("amq.gen-4");
        assert_eq!(names.0.lock().current.len(), 1);
    }

    #[test]
    fn a_name_received_just_before_a_rename_follows_the_queue() {
        let names = QueueNames::default();
        let early = names.name("amq.gen-1");
        names.rename("amq.gen-1", "amq.gen-2");
        names.rename("amq.gen-2", "amq.gen-3");
        let late = names.name("amq.gen-1");
        assert_eq!(late.current(), "amq.gen-3");
        names.rename("amq.gen-3", "amq.gen-4");
        assert_eq!([early.current(), late.current()], ["amq.gen-4"; 2]);
    }

    #[test]
    fn dropping_many_names_does_not_overflow_the_stack() {
        let names = QueueNames::default();
        let name = names.name("amq.gen-0");
        for count in 0..200_000 {
            names.rename(
                &format!("amq.gen-{count}"),
                &format!("amq.gen-{}", count + 1),
            );
        }
        assert_eq!(name.current(), "amq.gen-200000");
        drop(name);
    }
}

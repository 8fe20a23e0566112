//! Names of queues, also of those that the broker renames at a recovery.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

/// Which queue a method is about. The name is read when the method is admitted: while it waits, the
/// connection can be lost and recovered, and the broker makes up another name for a queue of its own
/// naming.
#[derive(Clone, Copy)]
pub(crate) enum QueueName<'a> {
    /// The empty name stands for the queue that the channel has declared last.
    Given(&'a str),
    /// Of a handle.
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
    /// The name as the program knows it now.
    pub(crate) fn shown(self) -> &'a str {
        match self {
            Self::Given(name) => name,
            Self::Tracked(name) => name.current(),
        }
    }

    /// The name to be sent, if it does not depend on what the channel has declared.
    pub(crate) fn known(self) -> Option<&'a str> {
        match self {
            Self::Given("") => None,
            other => Some(other.shown()),
        }
    }
}

/// A name, and the one that has taken its place. The old one is kept with it, since [`Queue::name`](crate::Queue::name) lends it.
pub(crate) struct Name {
    text: Box<str>,
    next: OnceLock<Arc<Self>>,
}

impl Name {
    fn new(text: &str) -> Arc<Self> {
        let (text, next) = (text.into(), OnceLock::new());
        Arc::new(Self { text, next })
    }

    /// Only the broker may begin names so.
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

/// Not one inside the other: a queue of a program that runs for long can have had many names.
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

/// The names that a broker has made up for queues of which there are handles.
#[derive(Default)]
pub(crate) struct QueueNames(Mutex<Names>);

#[derive(Default)]
struct Names {
    current: HashMap<String, Weak<Name>>,
    /// Old and new, the latest last: a thread that was just told the old name may come with it.
    renamed: VecDeque<(String, String)>,
}

/// How many changes of names are remembered.
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
    /// A name that follows the queue, if the broker has made the name up.
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
            // Only once: the old name is no longer in the map.
            let _ = name.next.set(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_broker_made_up_follows_the_queue() {
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
    fn a_name_that_was_told_just_before_it_changed_follows_the_queue() {
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
    fn many_names_are_dropped_without_a_deep_stack() {
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

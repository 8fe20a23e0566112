//! Values of the program that cannot be compared, such as functions.

use std::fmt;
use std::ptr;
use std::sync::Arc;

/// Equal only to its own clones.
pub(crate) struct ByIdentity<T: ?Sized>(pub(crate) Arc<T>);

impl<T: ?Sized> Clone for ByIdentity<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: ?Sized> PartialEq for ByIdentity<T> {
    fn eq(&self, other: &Self) -> bool {
        is_same(&self.0, &other.0)
    }
}

impl<T: ?Sized> fmt::Debug for ByIdentity<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Compares addresses only: the same value can have several vtables.
pub(super) fn is_same<T: ?Sized>(one: &Arc<T>, other: &Arc<T>) -> bool {
    ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

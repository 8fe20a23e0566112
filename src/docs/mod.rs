//! Pages about what concerns more than one type.

pub mod recovery;

//! Pages about what concerns more than one type.

pub mod rabbitmq;
pub mod recovery;

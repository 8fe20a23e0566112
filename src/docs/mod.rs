//! Guides: topics that concern more than one type.

pub mod aioamqp;
pub mod rabbitmq;
pub mod recovery;

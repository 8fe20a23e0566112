//! Guides to workers, to recovery, to RabbitMQ's versions, and to porting from aioamqp.

pub mod aioamqp;
pub mod rabbitmq;
pub mod recovery;
pub mod workers;

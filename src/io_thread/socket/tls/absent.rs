//! A build without TLS.

use super::buffered::Buffered;
use super::material::Material;
use super::{Refused, Session};
use crate::error::Result;
use crate::options::no_tls;

pub(super) enum Connector {}

impl Connector {
    /// Not reached: the check of the options refuses TLS.
    pub(super) fn new(_: &Material) -> Result<Self> {
        Err(no_tls())
    }

    pub(super) fn connect(
        &self,
        _: &str,
        _: Buffered,
    ) -> std::result::Result<Box<dyn Session>, Refused> {
        match *self {}
    }
}

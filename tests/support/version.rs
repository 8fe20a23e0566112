//! The RabbitMQ version that a test runs on, for differences between versions.

use std::sync::LazyLock;

use leveret::Connection;

use super::connect;

/// The major and the minor version.
type Version = (u32, u32);

/// The version that the in-memory broker behaves like.
const OF_THE_BOX: Version = (3, 10);

/// The version of the broker that all tests share. For the in-memory broker, it is the version
/// that this broker behaves like.
pub(crate) fn version() -> Version {
    static VERSION: LazyLock<Version> = LazyLock::new(|| version_of(&connect()));
    *VERSION
}

/// The version of the broker at the other end of this connection, as with [`version`].
pub(crate) fn version_of(connection: &Connection) -> Version {
    let properties = connection.server_properties();
    let text = |name: &str| properties.get(name).unwrap().as_str().unwrap();
    if text("product") == "leveret" {
        return OF_THE_BOX;
    }
    let mut numbers = text("version").split('.').map(|it| it.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

//! Which RabbitMQ a test runs on, for what its versions do differently.

use std::sync::LazyLock;

use leveret::Connection;

use super::connect;

/// Major and minor.
type Version = (u32, u32);

/// The version whose behaviour the broker in the box has.
const OF_THE_BOX: Version = (3, 10);

/// The version of the broker that all tests share. The broker in the box counts as the version that
/// it behaves like.
pub(crate) fn version() -> Version {
    static VERSION: LazyLock<Version> = LazyLock::new(|| version_of(&connect()));
    *VERSION
}

/// Like [`version`], of the broker at the other end of this connection.
pub(crate) fn version_of(connection: &Connection) -> Version {
    let properties = connection.server_properties();
    let text = |name: &str| properties.get(name).unwrap().as_str().unwrap();
    if text("product") == "leveret" {
        return OF_THE_BOX;
    }
    let mut numbers = text("version").split('.').map(|it| it.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

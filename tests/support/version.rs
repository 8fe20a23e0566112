//! Which RabbitMQ the tests run on, for what its versions do differently.

use std::sync::LazyLock;

use leveret::Connection;

use super::connect;

/// The version whose behaviour the broker in the box has.
const OF_THE_BOX: (u32, u32) = (3, 10);

/// Major and minor version of the RabbitMQ that all tests share. The broker in the box counts as
/// the version that it behaves like.
pub(crate) fn version() -> (u32, u32) {
    static VERSION: LazyLock<(u32, u32)> = LazyLock::new(|| version_of(&connect()));
    *VERSION
}

/// Like [`version`], of the broker of this connection.
pub(crate) fn version_of(connection: &Connection) -> (u32, u32) {
    let properties = connection.server_properties();
    let text = |name: &str| properties.get(name).and_then(|it| it.as_str());
    match text("product") {
        Some("leveret") => OF_THE_BOX,
        _ => {
            let version = text("version").unwrap();
            let mut numbers = version.split('.').map(|it| it.parse().unwrap());
            (numbers.next().unwrap(), numbers.next().unwrap())
        }
    }
}

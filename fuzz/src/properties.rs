//! The properties of a message.

use crate::encoded::round_trip;
use crate::wire::properties::Properties;

pub(crate) fn run(input: &[u8]) {
    let properties = round_trip(input, Properties::decode, Properties::encode);
    if let Some(properties) = properties {
        let is_empty = properties == Properties::default();
        // NaN is not equal to itself, so properties with NaN are not, either.
        let has_flags = input.get(..2).is_some_and(|flags| flags != [0, 0]);
        assert_eq!(is_empty, !has_flags, "{properties:?}");
    }
}

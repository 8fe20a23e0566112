//! Field tables.

use crate::encoded::round_trip;
use crate::wire::codec::{Reader, WireResult, Writer};
use crate::wire::value::{read_table, FieldTable};

pub(crate) fn run(input: &[u8]) {
    // The input has no length, which would only be one more number to guess.
    let mut bytes = (input.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(input);
    let encode =
        |table: &FieldTable, buffer: &mut Vec<u8>| Writer::new(buffer).table(table, "table");
    let Some(table) = round_trip(&bytes, decode, encode) else {
        return;
    };
    let names: Vec<_> = table.iter().map(|(name, _)| name).collect();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    // A value takes at least two bytes: the length of its name, and its type.
    assert!(table.len() <= input.len() / 2, "{table:?}");
}

fn decode(bytes: &[u8]) -> WireResult<FieldTable> {
    let mut reader = Reader::new(bytes);
    let table = read_table(&mut reader, 0)?;
    reader.finish("a field table")?;
    Ok(table)
}

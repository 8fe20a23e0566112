//! Catches panics, such as those of the program's logger, metrics or handlers.

use std::any::Any;
use std::mem::forget;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Runs code that may panic. Returns the panic's text if it does.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(text_of)
}

fn text_of(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no text").to_owned();
    // The payload belongs to the program and can panic when it is dropped. The payload of that
    // second panic is leaked rather than dropped.
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        forget(another);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    struct Grenade;

    impl Drop for Grenade {
        fn drop(&mut self) {
            panic_any(Self);
        }
    }

    #[test]
    fn returns_the_panics_text_even_if_its_payload_panics_when_dropped() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| panic!("plain")), Err::<(), _>("plain".to_owned()));
        let number = 7;
        assert_eq!(catch(|| panic!("{number}")), Err::<(), _>("7".to_owned()));
        assert_eq!(
            catch(|| panic_any(Grenade)),
            Err::<(), _>("no text".to_owned())
        );
    }
}

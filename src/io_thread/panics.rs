//! Panics of the program's code that this crate calls.

use std::any::Any;
use std::mem::forget;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Runs code that can panic, and returns the panic's text if it does.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(text_of)
}

fn text_of(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no text").to_owned();
    // A payload is a value of the program's, and can panic when it is dropped. What comes then is
    // not dropped any more.
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
    fn the_text_of_a_panic_is_kept_whatever_its_payload_does() {
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

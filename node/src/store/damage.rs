//! Engines panic on some damage; here a panic becomes an error (I10).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`; what it said when it panicked. The caller must not use again what `work` left half-changed.
pub(super) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| said(payload.as_ref()))
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&'static str>().copied());
    format!("engine panicked: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_becomes_its_message() {
        assert_eq!(contain(|| 1), Ok(1));
        let number = 7;
        assert_eq!(contain(|| panic!("bad {number}")), Err::<(), _>("engine panicked: bad 7".to_owned()));
    }
}

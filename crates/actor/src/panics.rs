//! Catching panics with their message and their place.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Once;
use std::task::Poll;

use crate::exit::Panic;

thread_local! {
    /// The place of the latest panic on this thread: a payload does not know where it was raised.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes the places of panics known, once a process; whatever hook was there goes on after it.
pub fn note_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(note_places_again);
}

/// The same, after code that may have set a hook of its own in its place.
pub fn note_places_again() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // The thread may be ending, its locals gone: then the place stays unknown.
        let _ = PLACE.try_with(|place| *place.borrow_mut() = info.location().map(ToString::to_string));
        before(info);
    }));
}

/// Runs a future and catches its panic, at whichever poll it comes.
pub async fn catch<F: Future>(future: F) -> Result<F::Output, Panic> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        // Unwind safety: after a panic the future is never polled again, and what it borrowed ends with its actor.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(payload) => Poll::Ready(Err(describe(&*payload))),
        }
    })
    .await
}

/// Runs a function and catches its panic.
///
/// # Errors
/// The panic.
pub fn catch_call<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| describe(&*payload))
}

/// What a panic payload says, with the place of this thread's latest panic.
fn describe(payload: &(dyn Any + Send)) -> Panic {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic whose payload is no text".to_owned(),
    };
    let place = PLACE.try_with(|place| place.borrow_mut().take()).ok().flatten();
    Panic { message, place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_after_an_await_is_caught_with_its_place() {
        note_places();
        let caught = catch(async {
            tokio::task::yield_now().await;
            panic!("no {}", "luck")
        })
        .await;
        let panic: Panic = caught.map(|never: ()| never).unwrap_err();
        assert_eq!(panic.message, "no luck");
        assert!(panic.place.unwrap().contains("panics.rs:"));
    }
}

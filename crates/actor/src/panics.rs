//! Catching panics with their message and their place; where panics abort, telling of them before.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Once, OnceLock};
use std::task::Poll;

use crate::exit::Panic;

thread_local! {
    /// The place of the latest panic on this thread: a payload does not know where it was raised.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Who is told of a panic that ends the process.
static LAST: OnceLock<fn(Panic)> = OnceLock::new();

/// In a program built with `panic = "abort"` nothing can be caught, and a panic on any thread ends the process: `tell`
/// learns of it on that thread, before the process is aborted. It must neither panic nor wait for long. Elsewhere it is
/// never called. Needs the hook of [`note_places`]; a hook that user code sets later takes its place.
pub fn before_abort(tell: fn(Panic)) {
    let _ = LAST.set(tell);
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
        let place = info.location().map(ToString::to_string);
        match LAST.get() {
            // First of all: what comes after may abort by itself.
            Some(tell) if cfg!(panic = "abort") => tell(described(info.payload(), place)),
            // The thread may be ending, its locals gone: then the place stays unknown.
            _ => drop(PLACE.try_with(|latest| *latest.borrow_mut() = place)),
        }
        before(info);
    }));
}

/// Runs a future and catches its panic, at whichever poll it comes.
pub async fn catch<F: Future>(future: F) -> Result<F::Output, Panic> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| catch_poll(|| future.as_mut().poll(cx))).await
}

/// Polls a future once and catches its panic, after which it is not to be polled again.
pub(crate) fn catch_poll<T>(poll: impl FnOnce() -> Poll<T>) -> Poll<Result<T, Panic>> {
    // Unwind safety: after a panic the future is never polled again, and what it borrowed ends with its actor.
    match catch_unwind(AssertUnwindSafe(poll)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(payload) => Poll::Ready(Err(describe(payload))),
    }
}

/// Runs a function and catches its panic.
///
/// # Errors
/// The panic.
pub fn catch_call<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(describe)
}

/// What a panic payload says, with the place of this thread's latest panic.
fn describe(payload: Box<dyn Any + Send>) -> Panic {
    let place = PLACE.try_with(|place| place.borrow_mut().take()).ok().flatten();
    let panic = described(&*payload, place);
    // It is user code that drops it. What that panics with is left where it is, for it might go on like this.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    panic
}

fn described(payload: &(dyn Any + Send), place: Option<String>) -> Panic {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic whose payload is no text".to_owned(),
    };
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

    struct PanicsAgain;

    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            std::panic::panic_any(PanicsAgain);
        }
    }

    #[test]
    fn a_panic_whose_payload_panics_when_it_is_dropped_is_caught_all_the_same() {
        let panic = catch_call(|| std::panic::panic_any(PanicsAgain)).map(|never: ()| never).unwrap_err();
        assert_eq!(panic.message, "a panic whose payload is no text");
    }
}

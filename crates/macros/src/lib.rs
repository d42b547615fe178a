//! The macros of hatchery, re-exported by the `hatchery` crate, which also says how to use them.
//!
//! Everything they write can be written by hand. What they write names nothing but `::hatchery` and
//! `::hatchery::__private`, so a crate that uses them needs no other dependency.
//!
//! Reading order: `travel` says what may travel to another process, `task` and `actor` stand on it, `entry` is
//! the door of a program and of a test. `arguments` and `state` belong to `task`, `stream` belongs to `actor`.
#![forbid(unsafe_code)]

use proc_macro::TokenStream;

mod travel;

// Methods that answer with a stream.
mod stream;

// The parameters of a function that travel.
mod arguments;

mod task;

mod state;

mod actor;

mod entry;

/// Makes a function one that other processes can run.
///
/// The function becomes a constant of its name: `square(3)` still is a plain call, and
/// `Process::spawn(square, 3)` runs it in a process of its own, as `task("nine", square, 3)` has a supervisor do. Several
/// parameters make a tuple.
///
/// ```
/// use hatchery::prelude::*;
///
/// #[hatchery::task]
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     assert_eq!(square(3), 9);
///     assert_eq!(Process::spawn(square, 3).await?.join().await?, 9);
///     Ok(())
/// }
/// ```
///
/// Inside the function its own name is the plain function, for recursion; `self::square` is the task.
///
/// Parameters and result travel, so they are owned types that implement serde's traits; `Vec<u8>` travels as a byte
/// string. An `async fn` works alike. A task cannot be generic: its name is all that says what runs.
///
/// As with any constant, a `let square = …` beside it is an error, and an iterator wants `.map(*square)`.
///
/// # Tasks that borrow
///
/// If the first parameter is `&mut S` or `&S`, the task borrows the state of its worker: what a function with
/// [`#[state]`](macro@state) has built there. It takes the other parameters from its callers, and runs in pools that have such
/// a state, and nowhere else.
#[proc_macro_attribute]
pub fn task(options: TokenStream, item: TokenStream) -> TokenStream {
    task::expand(options.into(), item.into()).into()
}

/// Makes a function one that builds the state of a pool's workers, which their tasks borrow.
///
/// Each worker calls it once, on the thread that runs its tasks, before it is ready, and the state stays on that thread: it is
/// never sent, so neither serde's traits nor `Send` are asked of it. See `PoolBuilder::state`.
///
/// ```
/// use std::cell::RefCell;
/// use std::collections::BTreeMap;
/// use std::rc::Rc;
///
/// use hatchery::prelude::*;
///
/// struct Dictionary { words: Rc<RefCell<BTreeMap<String, u64>>> }
///
/// #[hatchery::state]
/// fn learn(text: String) -> hatchery::Result<Dictionary> {
///     let words = text.split_whitespace().zip(1..).map(|(word, number)| (word.to_owned(), number)).collect();
///     Ok(Dictionary { words: Rc::new(RefCell::new(words)) })
/// }
///
/// #[hatchery::task]
/// fn number_of(dictionary: &mut Dictionary, word: String) -> Option<u64> {
///     dictionary.words.borrow().get(&word).copied()
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let pool = Pool::builder().workers(2).state(learn, "one two three".to_owned()).start().await?;
///     let words = ["two", "four"].map(String::from);
///     assert_eq!(pool.map(number_of, words).await?, [Some(2), None]);
///     pool.shutdown().await
/// }
/// ```
///
/// It returns the state, or a `Result` of it whose error can be displayed; it may be async, and its future need not be `Send`.
/// Its parameters travel, as those of a [`task`](macro@task) do. It still is a plain function to those who call it.
#[proc_macro_attribute]
pub fn state(options: TokenStream, item: TokenStream) -> TokenStream {
    state::expand(options.into(), item.into()).into()
}

/// Makes a type an actor, from the impl block that says how it starts and what it answers.
///
/// `start` makes the actor: it returns `Self` or a `Result` of it, and may be async. `stopped`, if there is one, runs
/// on an orderly stop. Every other method is a message. `CounterHandle` has the same methods, which return an
/// `Ask`: a future of the answer. A parameter `&Context` is filled in and not part of the message.
///
/// ```
/// # use hatchery::prelude::*;
/// struct Counter { total: u64 }
///
/// #[hatchery::actor]
/// impl Counter {
///     fn start(total: u64) -> Self { Counter { total } }
///
///     /// Add to the total; answers with the new total.
///     async fn add(&mut self, n: u64) -> u64 {
///         self.total += n;
///         self.total
///     }
/// }
/// # #[hatchery::main]
/// # async fn main() -> hatchery::Result<()> {
/// #     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
/// #     let counter: CounterHandle = tree.start_child(worker::<Counter>("counter", 1)).await?;
/// #     assert_eq!(counter.add(2).await?, 3);
/// #     tree.stop().await
/// # }
/// ```
///
/// # Answers that take their time
///
/// A method with a parameter `reply: Reply<T>` returns nothing; the answer is what the reply is sent, now or later, by
/// whoever holds it. The handle's method is an `Ask<T>` without a deadline of its own. See `hatchery::Reply`.
///
/// # Callers who leave
///
/// A request that has begun runs to its end although its caller has left; it can watch `cx.cancelled()`.
/// `#[message(cancel)]` on an async method has it dropped instead, where it awaits: when the caller's future is dropped
/// or its deadline passes. What it had done so far stays done, so this is for methods that can stop between any two
/// awaits: one that takes something out of the state, awaits, and puts it back would lose it.
///
/// ```
/// # use hatchery::prelude::*;
/// struct Fetcher { pages: u64 }
///
/// #[hatchery::actor]
/// impl Fetcher {
///     fn start() -> Self { Fetcher { pages: 0 } }
///
///     /// Nothing of it is left when its caller gives up: the page counts when it is there.
///     #[message(cancel)]
///     async fn fetch(&mut self, page: u64) -> u64 {
///         tokio::time::sleep(Duration::from_millis(page)).await;
///         self.pages += 1;
///         page
///     }
///
///     fn pages(&self) -> u64 { self.pages }
/// }
/// # #[hatchery::main]
/// # async fn main() -> hatchery::Result<()> {
/// #     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
/// #     let fetcher = tree.start_child(worker::<Fetcher>("fetcher", ())).await?;
/// let impatient = fetcher.fetch(3_600_000).timeout(Duration::from_millis(10)).await;
/// assert!(impatient.unwrap_err().is_timeout());
/// assert_eq!(fetcher.fetch(1).await?, 1);
/// assert_eq!(fetcher.pages().await?, 1);
/// #     tree.stop().await
/// # }
/// ```
///
/// # State that stays on its thread
///
/// The futures of handlers are `Send`, so that an actor may live in any process. `#[hatchery::actor(not_send)]` asks that
/// of neither futures nor state (an `Rc`, a pointer of a foreign library); such an actor runs in a `worker` only.
///
/// ```
/// # use hatchery::prelude::*;
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// struct Engine { turns: Rc<Cell<u64>> }
///
/// #[hatchery::actor(not_send)]
/// impl Engine {
///     fn start() -> Self { Engine { turns: Rc::default() } }
///
///     async fn turn(&mut self) -> u64 {
///         let turns = self.turns.clone();
///         tokio::task::yield_now().await;
///         turns.set(turns.get() + 1);
///         turns.get()
///     }
/// }
/// # #[hatchery::main]
/// # async fn main() -> hatchery::Result<()> {
/// #     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
/// let engine = tree.start_child(worker::<Engine>("engine", ())).await?;
/// assert_eq!(engine.turn().await?, 1);
/// #     tree.stop().await
/// # }
/// ```
///
/// # And else
///
/// A method that returns `impl Stream<Item = T>`, or a `Result` of one, answers with many items: the handle's method
/// returns `Items<T>`, with a window and a withdrawal of its own. The stream goes on beside the actor, so it owns what it
/// needs: it is `Send` and `'static`, which need not be written, and borrows neither from `self` nor from anything else.
///
/// Helpers live in another impl block. The handle's methods are as visible as those written here. An actor may be
/// generic; `program().hosts::<Cache<u64>>()` then says which ones a program hosts.
#[proc_macro_attribute]
pub fn actor(options: TokenStream, item: TokenStream) -> TokenStream {
    actor::expand(options.into(), item.into()).into()
}

/// Makes an async function the main of a program whose workers are the program itself.
///
/// The first thing it does is to find out whether this process is the root or a worker; a worker never gets as far as
/// the body. Options are tokio's: `flavor = "current_thread"` or `"multi_thread"`, `worker_threads = N`.
///
/// ```
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn main(options: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand_main(options.into(), item.into()).into()
}

/// Makes an async function a test that may start workers.
///
/// Its workers are the test executable, which enters the same test again by name. `#[should_panic]` and `#[ignore]`
/// mean what they always do. What workers print is captured with the test's own output. It may return nothing, or a
/// `Result` of nothing.
///
/// It ends as a main does: after success it waits for processes that are no daemons, and then everything is stopped,
/// newest first. A worker that was asked to end and is still there when nothing has ended for its `patience` (30 s)
/// was left behind; so was one that even SIGKILL does not end. It is killed, and the test fails with its path and
/// process id, also if it `#[should_panic]`. Helper programs that a worker started are not looked after.
///
/// Options:
/// - `flavor = "current_thread"` (the default) or `"multi_thread"`, `worker_threads = N`.
/// - `program = my_program`, a `fn my_program() -> hatchery::Door`: its `each_process`, `worker_config` and `hosts`
///   hold for the test and its workers. In one test binary `each_process` runs once, before the first test that names
///   this function. The runtime is the test's own, and the program's `orderly_signals` are left out.
/// - `patience = N`, in seconds.
///
/// ```
/// use hatchery::prelude::*;
///
/// #[hatchery::task]
/// fn configured() -> String { hatchery::config().unwrap() }
///
/// fn my_program() -> hatchery::Door {
///     hatchery::program().worker_config(&"well prepared")
/// }
///
/// #[hatchery::test(program = my_program)]
/// async fn workers_are_prepared() {
///     let process = Process::spawn(configured, ()).await.unwrap();
///     assert_eq!(process.join().await.unwrap(), "well prepared");
/// }
/// # #[hatchery::main]
/// # async fn main() {}
/// ```
///
/// Doc tests are no tests to the compiler: `#[hatchery::main]` makes one a program, whose workers are that doc test,
/// merged with others or not.
#[proc_macro_attribute]
pub fn test(options: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand_test(options.into(), item.into()).into()
}

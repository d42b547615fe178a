//! Where a worker's standard output and standard error go.

/// Where what a worker prints goes. Said by `stdout(..)` and `stderr(..)` of a `Process`'s builder or of a worker's spec.
///
/// | | standard output | standard error |
/// |---|---|---|
/// | `Inherit`, the default | goes where this process's goes, unread | as `Lines` |
/// | `Lines` | printed by this process, line by line | the same |
/// | `Prefixed` | the same, with the worker's path before each line: `[/shop/web] ` | the same |
/// | `Capture` | kept, and not printed: the last 1,000 lines of 256 KiB for `Process::stdout()`, the last 100 for the `Exit` | not printed |
/// | `Null` | thrown away | not printed |
///
/// Standard error is always read, whatever this says, and its last 100 lines are in the `Exit`. Under
/// `#[hatchery::test]` what is inherited is printed as lines, so that the harness captures it.
///
/// Lines of one worker stay whole and in the order in which it wrote them, each of its two streams by itself; between
/// workers, and between the two streams of one, there is no order. One that is longer than 8 KiB is cut in two. A worker
/// never waits for a slow reader of this process's output: what 4,096 lines of backlog do not hold is dropped, and a
/// note on standard error counts it. With `Inherit` it is the worker itself that writes, and waits.
///
/// What stands before the door in a `main` written by hand prints nowhere with anything but `Inherit`.
#[doc(alias = "redirect_stdout")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// This process's own.
    #[default]
    Inherit,
    /// Printed by this process, whole lines.
    Lines,
    /// The same, with the worker's path before each.
    Prefixed,
    /// Kept and not printed.
    Capture,
    /// Thrown away.
    Null,
}

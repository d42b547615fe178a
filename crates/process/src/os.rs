//! The few system calls for which nobody offers a safe wrapper: the only unsafe code of this crate.

#![expect(
    unsafe_code,
    reason = "no safe wrapper resets signal dispositions, or holds a process by ptrace for a test"
)]

/// Sets SIGCHLD back to its default if the launcher had it ignored: the kernel would otherwise reap every child by
/// itself, and nobody could tell how it ended. A handler of the program's own stays.
pub(crate) fn heed_sigchld() {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the second argument may be null, the third points to room for the answer, which is read only if the
    // call succeeded and so has filled it in; SIG_DFL is a valid disposition.
    unsafe {
        if libc::sigaction(libc::SIGCHLD, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
        {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        }
    }
}

/// Holds a process of ours as a debugger does, and gives what is seen meanwhile.
#[cfg(test)]
pub(crate) fn trace<T>(pid: rustix::process::Pid, look: impl FnOnce() -> T) -> std::io::Result<T> {
    let pid = pid.as_raw_nonzero().get();
    let call = |request| {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: neither of these requests reads or writes memory, be it here or there.
        match unsafe { libc::ptrace(request, pid, none, none) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    call(libc::PTRACE_SEIZE)?;
    let seen = look();
    // It can be let go of only where it stands still.
    call(libc::PTRACE_INTERRUPT)?;
    let mut status = 0;
    // SAFETY: the status points to room for one.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } != pid {
        return Err(std::io::Error::last_os_error());
    }
    call(libc::PTRACE_DETACH)?;
    Ok(seen)
}

/// Sets every signal back to its default and blocks none.
///
/// A launcher that ignores signals (`nohup`, many test harnesses) hands that down through every exec; a worker that
/// ignores SIGTERM because its grandparent did could not be terminated. SIGPIPE stays ignored, as Rust's runtime set
/// it: a broken pipe is an error to the caller, not a death.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP | libc::SIGPIPE | libc::SIGSEGV | libc::SIGBUS) {
            // The first two cannot be changed; the last two are Rust's own guard against stack overflow.
            continue;
        }
        // SAFETY: SIG_DFL is a valid disposition and no handler of ours is replaced: this runs at the door, before
        // any other code of the program. A signal number that the C library keeps for itself gives EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set it is given; the third argument may be null.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

//! The functions that this library stands in for, as the C library has them.

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{clockid_t, iovec, mode_t, off64_t, size_t, ssize_t, timespec, timeval};

macro_rules! real {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {$(
        /// The C library's own.
        ///
        /// # Safety
        /// As the C library's documentation says.
        pub unsafe fn $name($($argument: $kind),*) -> $answer {
            static FOUND: AtomicUsize = AtomicUsize::new(0);
            let at = found(&FOUND, concat!(stringify!($name), "\0"));
            // SAFETY: the C library has this symbol with this signature; `found` does not give null.
            let function: unsafe extern "C" fn($($kind),*) -> $answer = unsafe { std::mem::transmute(at) };
            // SAFETY: the caller's promise.
            unsafe { function($($argument),*) }
        }
    )*};
}

/// Looks a function up once. Nothing here allocates: the first calls come before the allocator is ready.
fn found(cell: &AtomicUsize, name: &'static str) -> usize {
    let known = cell.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: `name` ends with a zero.
    let at = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) } as usize;
    if at == 0 {
        // A caller got here by the name that does not exist: there is nothing to answer.
        std::process::abort();
    }
    cell.store(at, Ordering::Relaxed);
    at
}

real! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    close(fd: c_int) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(fd: c_int, to: c_int) -> c_int;
    dup3(fd: c_int, to: c_int, flags: c_int) -> c_int;
    fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int;
    fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int;
    write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t;
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    pwrite(fd: c_int, bytes: *const c_void, len: size_t, at: off64_t) -> ssize_t;
    pwrite64(fd: c_int, bytes: *const c_void, len: size_t, at: off64_t) -> ssize_t;
    pwritev(fd: c_int, parts: *const iovec, count: c_int, at: off64_t) -> ssize_t;
    pwritev64(fd: c_int, parts: *const iovec, count: c_int, at: off64_t) -> ssize_t;
    ftruncate(fd: c_int, len: off64_t) -> c_int;
    ftruncate64(fd: c_int, len: off64_t) -> c_int;
    fallocate(fd: c_int, mode: c_int, at: off64_t, len: off64_t) -> c_int;
    fallocate64(fd: c_int, mode: c_int, at: off64_t, len: off64_t) -> c_int;
    posix_fallocate(fd: c_int, at: off64_t, len: off64_t) -> c_int;
    posix_fallocate64(fd: c_int, at: off64_t, len: off64_t) -> c_int;
    copy_file_range(from: c_int, at: *mut off64_t, to: c_int, to_at: *mut off64_t, len: size_t, flags: c_uint) -> ssize_t;
    sendfile(to: c_int, from: c_int, at: *mut off64_t, len: size_t) -> ssize_t;
    sendfile64(to: c_int, from: c_int, at: *mut off64_t, len: size_t) -> ssize_t;
    fsync(fd: c_int) -> c_int;
    fdatasync(fd: c_int) -> c_int;
    rename(from: *const c_char, to: *const c_char) -> c_int;
    renameat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char) -> c_int;
    renameat2(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_uint) -> c_int;
    link(from: *const c_char, to: *const c_char) -> c_int;
    linkat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int) -> c_int;
    unlink(path: *const c_char) -> c_int;
    unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    rmdir(path: *const c_char) -> c_int;
    mkdir(path: *const c_char, mode: mode_t) -> c_int;
    mkdirat(dir: c_int, path: *const c_char, mode: mode_t) -> c_int;
    statvfs(path: *const c_char, answer: *mut libc::statvfs) -> c_int;
    statvfs64(path: *const c_char, answer: *mut libc::statvfs) -> c_int;
    fstatvfs(fd: c_int, answer: *mut libc::statvfs) -> c_int;
    fstatvfs64(fd: c_int, answer: *mut libc::statvfs) -> c_int;
    clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int;
    gettimeofday(time: *mut timeval, zone: *mut c_void) -> c_int;
    clock_nanosleep(clock: clockid_t, flags: c_int, time: *const timespec, left: *mut timespec) -> c_int;
    syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long;
}

/// Fails a call with this error number.
pub fn fail(errno: c_int) -> c_int {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

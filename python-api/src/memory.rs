//! Accounting of the interpreter's memory.
//!
//! Counts allocations of the raw domain (all blocks above 512 bytes among them) and the arenas that small objects
//! are cut from. So small objects cost nothing extra.

use std::{
    os::raw::c_void,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use pyo3::ffi;

static TOTAL: AtomicU64 = AtomicU64::new(0);
static CURRENT: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

/// Bytes that the interpreter's allocators hold; zero when accounting is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// Ever allocated.
    pub total: u64,
    /// Largest value of `current`.
    pub peak: u64,
    /// Allocated now.
    pub current: u64,
}

/// Reads the counters.
pub fn memory_stats() -> MemoryStats {
    MemoryStats {
        total: TOTAL.load(Relaxed),
        peak: PEAK.load(Relaxed).max(0) as u64,
        current: CURRENT.load(Relaxed).max(0) as u64,
    }
}

fn added(bytes: usize) {
    TOTAL.fetch_add(bytes as u64, Relaxed);
    let now = CURRENT.fetch_add(bytes as i64, Relaxed) + bytes as i64;
    if now > PEAK.load(Relaxed) {
        PEAK.fetch_max(now, Relaxed);
    }
}

fn removed(bytes: usize) {
    CURRENT.fetch_sub(bytes as i64, Relaxed);
}

fn usable(block: *mut c_void) -> usize {
    // SAFETY: `block` is null or a live block of libc's allocator.
    unsafe { libc::malloc_usable_size(block) }
}

extern "C" fn raw_malloc(_: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: plain libc call; CPython asks for a unique pointer when the size is 0.
    let block = unsafe { libc::malloc(size.max(1)) };
    added(usable(block));
    block
}

extern "C" fn raw_calloc(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let (count, size) = if count == 0 || size == 0 { (1, 1) } else { (count, size) };
    // SAFETY: plain libc call.
    let block = unsafe { libc::calloc(count, size) };
    added(usable(block));
    block
}

extern "C" fn raw_realloc(_: *mut c_void, old: *mut c_void, size: usize) -> *mut c_void {
    let before = usable(old);
    // SAFETY: `old` is null or a block of libc's allocator, as CPython promises for the raw domain.
    let block = unsafe { libc::realloc(old, size.max(1)) };
    if !block.is_null() {
        removed(before);
        added(usable(block));
    }
    block
}

extern "C" fn raw_free(_: *mut c_void, block: *mut c_void) {
    removed(usable(block));
    // SAFETY: `block` is null or a live block of libc's allocator.
    unsafe { libc::free(block) }
}

extern "C" fn arena_alloc(_: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: an anonymous private mapping touches no existing memory.
    let arena = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if arena == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    added(size);
    arena
}

extern "C" fn arena_free(_: *mut c_void, arena: *mut c_void, size: usize) {
    removed(size);
    // SAFETY: the arena came from `arena_alloc` with the same size.
    unsafe {
        libc::munmap(arena, size);
    }
}

/// Puts the counting allocators in place; only before the interpreter is initialised.
pub(crate) fn install() {
    let mut raw = ffi::PyMemAllocatorEx {
        ctx: std::ptr::null_mut(),
        malloc: Some(raw_malloc),
        calloc: Some(raw_calloc),
        realloc: Some(raw_realloc),
        free: Some(raw_free),
    };
    let mut arena = ffi::PyObjectArenaAllocator {
        ctx: std::ptr::null_mut(),
        alloc: Some(arena_alloc),
        free: Some(arena_free),
    };
    // SAFETY: called before Py_Initialize, by one thread; both structures are copied by CPython.
    unsafe {
        ffi::PyMem_SetAllocator(ffi::PyMemAllocatorDomain::PYMEM_DOMAIN_RAW, &mut raw);
        ffi::PyObject_SetArenaAllocator(&mut arena);
    }
}

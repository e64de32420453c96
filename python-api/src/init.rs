//! Starting the interpreter inside the server's process.

use std::{
    ffi::{CStr, CString},
    os::raw::c_void,
    path::PathBuf,
    sync::Arc,
};

use pyo3::{ffi, prelude::*};

use crate::{bootstrap, gil, memory, reaper, runtime, server};

/// Stack of threads that run Python; enough for the highest recursion limit that scripts may set.
pub(crate) const PYTHON_STACK_BYTES: usize = 64 * 1024 * 1024;

/// Python's deepest recursion on such a stack, with room for C code in between.
const DEEPEST_RECURSION: u64 = 20_000;

/// How the interpreter is set up.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Count the interpreter's memory.
    pub override_allocators: bool,
    /// Folders for `site.addsitedir`.
    pub site_dirs: Vec<PathBuf>,
}

/// Starts the interpreter; on the server's main thread, once. The GIL is free afterwards.
pub fn initialize(options: InitOptions, server: Arc<dyn server::Server>) -> Result<(), String> {
    if runtime::has_interpreter() || !server::set_server(server) {
        return Err("a Python interpreter runs in this process already".to_owned());
    }
    publish_symbols()?;
    let deepest = DEEPEST_RECURSION * enlarge_main_stack() / PYTHON_STACK_BYTES as u64;
    if options.override_allocators {
        memory::install();
    }
    // Installs no signal handlers (Py_InitializeEx(0)) and gives the GIL back.
    Python::initialize();
    Python::attach(|py| -> PyResult<()> {
        gil::set_up(py)?;
        bootstrap::run(py, &options.site_dirs, deepest)?;
        runtime::set(py)
    })
    .map_err(|e| format!("the Python environment can not be set up: {e}"))?;
    reaper::start()
}

/// Servers open modules with RTLD_LOCAL, which hides libpython's symbols from C extensions (`_ctypes`, numpy):
/// opens libpython again, globally.
fn publish_symbols() -> Result<(), String> {
    let symbol = ffi::Py_IsInitialized as *const c_void;
    // SAFETY: `info` is written by dladdr before it is read; the name is a C string owned by the loader.
    let path: CString = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(symbol, &mut info) == 0 || info.dli_fname.is_null() {
            return Err("the path of libpython can not be found".to_owned());
        }
        CStr::from_ptr(info.dli_fname).to_owned()
    };
    // SAFETY: RTLD_NOLOAD only changes the flags of an object that is loaded already; no initialisers run.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        // A program that has libpython linked in statically publishes its symbols itself.
        return match path.to_string_lossy().contains("libpython") {
            true => Err(format!("{} can not be opened globally", path.to_string_lossy())),
            false => Ok(()),
        };
    }
    Ok(())
}

/// Lets the stack of the main thread, which runs sync functions, grow as large as those of the other threads that run
/// Python; gives its size. Linux grows that stack on demand up to the limit as it is then, and keeps at least 128 MiB
/// of addresses free for it.
fn enlarge_main_stack() -> u64 {
    let wanted = PYTHON_STACK_BYTES as libc::rlim_t;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a structure of ours; raising the soft limit changes nothing that exists.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_STACK, &mut limit) != 0 {
            return wanted / 8;
        }
        let before = limit.rlim_cur;
        limit.rlim_cur = before.max(wanted.min(limit.rlim_max));
        match limit.rlim_cur == before || libc::setrlimit(libc::RLIMIT_STACK, &limit) == 0 {
            true => limit.rlim_cur.min(wanted),
            false => before.min(wanted),
        }
    }
}

/// Version of the interpreter, such as `3.11.2`.
pub fn python_version() -> String {
    // SAFETY: a static C string; may be called without the GIL.
    let text = unsafe { CStr::from_ptr(ffi::Py_GetVersion()) }.to_string_lossy();
    text.split(' ').next().unwrap_or("").to_owned()
}

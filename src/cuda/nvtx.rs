//! NVTX ranges, by which Nsight shows what a launch belongs to: where its library is present.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// Libraries that export NVTX: for other languages, of CUDA 12 and 13, and that of CUDA 11.
const LIBRARIES: [&CStr; 3] = [
    c"libnvtx3interop.so.1",
    c"libnvToolsExt.so.1",
    c"libnvToolsExt.so",
];

/// The two functions that nested ranges need.
#[derive(Clone, Copy)]
pub struct Nvtx {
    push: extern "C" fn(*const c_char) -> c_int,
    pop: extern "C" fn() -> c_int,
}

impl Nvtx {
    /// Looks for the library; it stays loaded.
    pub fn open() -> Option<Nvtx> {
        LIBRARIES.into_iter().find_map(Nvtx::of)
    }

    fn of(library: &CStr) -> Option<Nvtx> {
        // SAFETY: a name that ends in a zero; what NVIDIA's library does when loaded is its own.
        let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return None;
        }
        let symbol = |name: &CStr| {
            // SAFETY: the handle is of a library that is never closed.
            let at: *mut c_void = unsafe { libc::dlsym(handle, name.as_ptr()) };
            (!at.is_null()).then_some(at)
        };
        let (push, pop) = (symbol(c"nvtxRangePushA")?, symbol(c"nvtxRangePop")?);
        // SAFETY: NVTX has declared both so since its version 1: `int nvtxRangePushA(const char *)`
        // and `int nvtxRangePop(void)`.
        unsafe {
            Some(Nvtx {
                push: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_int>(
                    push,
                ),
                pop: std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(pop),
            })
        }
    }

    /// Begins a range on this thread, within the one that it has begun before.
    pub fn push(&self, name: &str) {
        // One with a zero in it has no name; ours are identifiers.
        let name = CString::new(name).unwrap_or_default();
        (self.push)(name.as_ptr());
    }

    /// Ends the innermost range of this thread.
    pub fn pop(&self) {
        (self.pop)();
    }
}

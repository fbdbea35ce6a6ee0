//! Kernels of a GPU: loading, argument checks, launches.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};

use cudarc::driver::result::{self, DriverError as CudaError};
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
use cudarc::driver::sys::{self, CUresult};

use super::super::installed::reason;
use super::super::{Arg, DevicePtr, Geometry, KernelFile, KernelId, Result};
use super::{GpuDriver, failed, refused};

/// The first word of a fat binary.
const FATBIN_MAGIC: u32 = 0xBA55_ED50;

/// A loaded file.
pub(super) struct Module {
    pub(super) handle: sys::CUmodule,
    kernels: HashMap<String, KernelId>,
}

/// A loaded kernel.
#[derive(Clone)]
pub(super) struct Kernel {
    name: String,
    function: sys::CUfunction,
    /// Bytes of each parameter.
    params: Vec<usize>,
    /// Dynamic shared memory that the driver lets a launch ask for by now.
    shared_bytes: u32,
}

impl GpuDriver {
    /// The kernel, loaded at first use.
    pub(super) fn kernel_of(&self, file: &KernelFile, name: &str) -> Result<KernelId> {
        self.bind()?;
        let mut modules = self.modules.borrow_mut();
        let module = match modules.entry(file.fatbin.as_ptr()) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(entry) => entry.insert(Module {
                handle: self.load(file)?,
                kernels: HashMap::new(),
            }),
        };
        if let Some(id) = module.kernels.get(name) {
            return Ok(*id);
        }
        let kernel = self.find(module.handle, name)?;
        let mut kernels = self.kernels.borrow_mut();
        let id = KernelId(kernels.len());
        kernels.push(kernel);
        module.kernels.insert(name.into(), id);
        Ok(id)
    }

    /// Checks the arguments against the kernel's own parameters, then launches.
    pub(super) fn launch_now(&self, id: KernelId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.bind()?;
        let kernel = self.kernels.borrow().get(id.0).cloned();
        let kernel = kernel.ok_or_else(|| refused("launch", "a kernel of another driver"))?;
        self.check_args(&kernel, args)?;
        self.allow_shared(id, geometry.shared_bytes)?;
        let mut words: Vec<Vec<u64>> = args.iter().map(words).collect();
        let mut pointers: Vec<*mut c_void> =
            words.iter_mut().map(|w| w.as_mut_ptr().cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (geometry.grid, geometry.block);
        // SAFETY: the function's module is loaded. The driver reads one pointer a parameter, and
        // behind each as many bytes as `check_args` compared, before it returns. Kernels see device
        // addresses only: the arguments' allocations are live.
        unsafe {
            result::launch_kernel(
                kernel.function,
                (gx, gy, gz),
                (bx, by, bz),
                geometry.shared_bytes,
                self.stream,
                &mut pointers,
            )
        }
        .map_err(|e| {
            let why = format!(
                "grid {:?}, block {:?}, {} bytes of shared memory: {}",
                geometry.grid,
                geometry.block,
                geometry.shared_bytes,
                reason(e)
            );
            refused(&kernel.name, why)
        })
    }

    fn load(&self, file: &KernelFile) -> Result<sys::CUmodule> {
        let call = format!("loading kernels of {}", file.name);
        if !is_fatbin(file.fatbin) && !is_ptx(file.fatbin) {
            return Err(refused(
                call,
                "neither a whole fat binary nor PTX that ends in NUL",
            ));
        }
        // The driver reads it as words.
        let mut image = vec![0u64; file.fatbin.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..file.fatbin.len()]
            .copy_from_slice(file.fatbin);
        // SAFETY: `is_fatbin` found the header, and that the image is as long as the header says, or
        // `is_ptx` found the NUL that ends a text; the driver keeps no pointer to it.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(failed(call))
    }

    fn find(&self, module: sys::CUmodule, name: &str) -> Result<Kernel> {
        let symbol = CString::new(name).map_err(|e| refused(name, e.to_string()))?;
        // SAFETY: modules are unloaded only when `self` is dropped.
        let function =
            unsafe { result::module::get_function(module, symbol) }.map_err(failed(name))?;
        // SAFETY: the function is part of that module. Loaded now, since a kernel's first launch
        // may be in a capture.
        unsafe { sys::cuFuncLoad(function) }
            .result()
            .map_err(failed(name))?;
        // SAFETY: as above.
        let shared = unsafe { result::function::get_function_attribute(function, DYNAMIC) };
        Ok(Kernel {
            name: name.into(),
            function,
            params: params(function).map_err(failed(name))?,
            shared_bytes: shared.map_err(failed(name))?.max(0) as u32,
        })
    }

    /// Lets a kernel have more dynamic shared memory than it had so far.
    fn allow_shared(&self, kernel: KernelId, bytes: u32) -> Result<()> {
        let mut kernels = self.kernels.borrow_mut();
        let kernel = &mut kernels[kernel.0];
        if bytes <= kernel.shared_bytes {
            return Ok(());
        }
        // The driver takes an int: no larger number reaches it.
        let set = if bytes > self.max_shared_bytes {
            Err(CudaError(CUresult::CUDA_ERROR_INVALID_VALUE))
        } else {
            // SAFETY: the function's module is unloaded only when `self` is dropped.
            unsafe {
                result::function::set_function_attribute(kernel.function, DYNAMIC, bytes as i32)
            }
        };
        set.map_err(|e| {
            let why = format!(
                "{bytes} bytes of dynamic shared memory, {} allows a block {} of both kinds: {}",
                self.gpu.name,
                self.max_shared_bytes,
                reason(e)
            );
            refused(&kernel.name, why)
        })?;
        kernel.shared_bytes = bytes;
        Ok(())
    }

    fn check_args(&self, kernel: &Kernel, args: &[Arg]) -> Result<()> {
        if args.len() != kernel.params.len() {
            let (got, want) = (args.len(), kernel.params.len());
            let why = format!("{got} arguments, the kernel takes {want}");
            return Err(refused(&kernel.name, why));
        }
        for (i, (arg, want)) in args.iter().zip(&kernel.params).enumerate() {
            let got = arg.bytes().len();
            if got != *want {
                let why = format!("argument {i} has {got} bytes, the kernel takes {want}");
                return Err(refused(&kernel.name, why));
            }
            self.check_pointers(&format!("{}: argument {i}", kernel.name), arg)?;
        }
        Ok(())
    }

    fn check_pointers(&self, what: &str, arg: &Arg) -> Result<()> {
        match arg {
            Arg::Ptr(ptr) if *ptr != DevicePtr::NULL => self.check_range(what, *ptr, 0),
            Arg::Struct(fields) => fields.iter().try_for_each(|f| self.check_pointers(what, f)),
            _ => Ok(()),
        }
    }
}

/// An argument's bytes in words, as they are aligned for any argument; the last word is filled up
/// with zeros. Every host of a GPU is little endian.
fn words(arg: &Arg) -> Vec<u64> {
    let bytes = arg.bytes();
    let mut words = vec![0; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
    words
}

/// Bytes of each parameter of a loaded function.
fn params(function: sys::CUfunction) -> std::result::Result<Vec<usize>, CudaError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the caller's function is loaded; the two words are written.
        let got = unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) };
        match got {
            CUresult::CUDA_SUCCESS => sizes.push(size),
            // There is no parameter of that index.
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            other => return Err(CudaError(other)),
        }
    }
}

/// Whether an image is PTX, which the driver compiles, as its C strings end.
fn is_ptx(bytes: &[u8]) -> bool {
    let text = bytes
        .strip_suffix(b"\0")
        .and_then(|b| std::str::from_utf8(b).ok());
    text.is_some_and(|t| t.contains(".version") && !t.contains('\0'))
}

/// Whether the bytes begin with the header of a fat binary and are as long as it says: magic (u32),
/// version (u16), header bytes (u16), bytes after the header (u64).
fn is_fatbin(bytes: &[u8]) -> bool {
    let Some((header, _)) = bytes.split_first_chunk::<16>() else {
        return false;
    };
    let field = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&header[at..at + len]);
        u64::from_le_bytes(word)
    };
    let end = field(6, 2).checked_add(field(8, 8));
    field(0, 4) == u64::from(FATBIN_MAGIC) && end.is_some_and(|end| end <= bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::embedded;

    #[test]
    fn arguments_fill_words_from_the_low_end() {
        assert_eq!(words(&Arg::I32(-1)), [0xFFFF_FFFF]);
        assert_eq!(words(&Arg::F32(1.0)), [0x3F80_0000]);
        assert_eq!(words(&Arg::I64(-2)), [u64::MAX - 1]);
        let fields = vec![Arg::Ptr(DevicePtr(7)), Arg::U32(3)];
        assert_eq!(words(&Arg::Struct(fields)), [7, 3]);
    }

    #[test]
    fn a_cut_fat_binary_is_told_from_a_whole_one() {
        assert!(is_ptx(b".version 8.0\0") && !is_ptx(b".version 8.0") && !is_ptx(b"\0"));
        assert!(!is_fatbin(b""));
        assert!(!is_fatbin(&[0; 64]));
        for file in embedded::FILES {
            assert!(is_fatbin(file.fatbin), "{}", file.name);
            let cut = &file.fatbin[..file.fatbin.len() - 8];
            assert!(!is_fatbin(cut), "{}", file.name);
        }
    }
}

//! The kernels in this binary: what `build.rs` made of `kernels/*.cu`, and what their machine code
//! takes of a GPU.

use super::KernelFile;
use super::sass::{self, Opcodes};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What ptxas said of one kernel for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The kernel's symbol.
    pub kernel: String,
    /// Such as sm_80.
    pub architecture: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Bytes a thread stores because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes a thread loads because registers ran out.
    pub spill_load_bytes: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
}

/// The file of that name.
pub fn file(name: &str) -> Option<&'static KernelFile> {
    FILES.iter().find(|f| f.name == name)
}

impl KernelFile {
    /// What each kernel takes, in ptxas's order: by architecture, then by kernel.
    pub fn resources(&self) -> Vec<Resources> {
        parse(self.ptxas)
    }

    /// The opcodes of each kernel's machine code; none where the build found no disassembler.
    pub fn opcodes(&self) -> Vec<Opcodes> {
        sass::parse(self.sass)
    }
}

fn parse(ptxas: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    // Functions that were not inlined have properties too; a kernel's are those under its name.
    let mut own = false;
    for line in ptxas.lines() {
        if let Some(rest) = line.split("Compiling entry function ").nth(1) {
            let mut quoted = rest.split('\'');
            all.push(Resources {
                kernel: quoted.nth(1).unwrap_or_default().into(),
                architecture: quoted.nth(1).unwrap_or_default().into(),
                ..Resources::default()
            });
        }
        let Some(last) = all.last_mut() else { continue };
        if let Some(function) = line.split("Function properties for ").nth(1) {
            own = function.trim() == last.kernel;
        } else if own && line.contains("bytes stack frame") {
            last.stack_bytes = before(line, " bytes stack frame");
            last.spill_store_bytes = before(line, " bytes spill stores");
            last.spill_load_bytes = before(line, " bytes spill loads");
        } else if line.contains("Used ") {
            last.registers = before(line, " registers");
            last.shared_bytes = before(line, " bytes smem");
        }
    }
    all
}

/// The number before `unit`; ptxas leaves out what is nought.
fn before(line: &str, unit: &str) -> u32 {
    let number = line
        .split_once(unit)
        .and_then(|(head, _)| head.rsplit([' ', ',']).next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_from_ptxas() {
        let text = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b_f16' for 'sm_80'
ptxas info    : Function properties for b_f16
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for helper
    64 bytes stack frame, 1 bytes spill stores, 1 bytes spill loads
ptxas info    : Used 9 registers, used 1 barriers, 128 bytes smem, 364 bytes cmem[0]
ptxas info    : Compiling entry function 'fill_f32' for 'sm_90a'
ptxas info    : Function properties for fill_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
";
        let want = |kernel: &str, architecture: &str, n: [u32; 5]| Resources {
            kernel: kernel.into(),
            architecture: architecture.into(),
            registers: n[0],
            stack_bytes: n[1],
            spill_store_bytes: n[2],
            spill_load_bytes: n[3],
            shared_bytes: n[4],
        };
        let wanted = [
            want("b_f16", "sm_80", [9, 16, 8, 12, 128]),
            want("fill_f32", "sm_90a", [10, 0, 0, 0, 0]),
        ];
        assert_eq!(parse(text), wanted);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn every_embedded_file_is_whole() {
        for f in FILES {
            assert!(f.ptx.contains(".target sm_80"), "{}", f.name);
            assert!(!f.fatbin.is_empty(), "{}", f.name);
            let resources = f.resources();
            assert_eq!(
                resources.is_empty(),
                !f.ptx.contains(".entry"),
                "{}",
                f.name
            );
            if DISASSEMBLER.is_some() {
                let kernels: Vec<_> = resources
                    .iter()
                    .map(|r| (&r.architecture, &r.kernel))
                    .collect();
                let opcodes = f.opcodes();
                let mut seen: Vec<_> = opcodes
                    .iter()
                    .map(|o| (&o.architecture, &o.kernel))
                    .collect();
                let mut kernels = kernels.clone();
                kernels.sort();
                seen.sort();
                assert_eq!(kernels, seen, "{}", f.name);
            }
            assert_eq!(file(f.name).map(|g| g.name), Some(f.name));
        }
        assert!(file("no such file").is_none());
        assert!(NVCC_RELEASE.contains('.') && ARCHITECTURES.contains(&"sm_80"));
    }
}

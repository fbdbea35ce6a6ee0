//! How often each opcode stands in a kernel's machine code (SASS), as cuobjdump prints it.
//!
//! build.rs includes this file, so it uses nothing of the crate: it counts and writes, the library
//! reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The opcodes of a kernel for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opcodes {
    /// The kernel's symbol.
    pub kernel: String,
    /// Such as sm_80.
    pub architecture: String,
    /// Instructions by opcode, suffixes included: `LDG.E.128`. Without NOP, which fills up.
    pub counts: BTreeMap<String, u32>,
}

/// Counts what `cuobjdump -sass` printed, in its order.
pub fn count(dump: &str) -> Vec<Opcodes> {
    let mut all: Vec<Opcodes> = Vec::new();
    let mut architecture = "";
    for line in dump.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("code for ") {
            architecture = rest;
        } else if let Some(kernel) = line.strip_prefix("Function : ") {
            all.push(Opcodes {
                kernel: kernel.into(),
                architecture: architecture.into(),
                counts: BTreeMap::new(),
            });
        } else if let (Some(last), Some(opcode)) = (all.last_mut(), opcode(line))
            && opcode != "NOP"
        {
            *last.counts.entry(opcode.into()).or_default() += 1;
        }
    }
    all
}

/// The opcode of a line such as `/*0050*/ @!P0 LDG.E R5, [R4.64] ; /* 0x... */`.
fn opcode(line: &str) -> Option<&str> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    // The second half of an instruction's encoding stands in a line of its own.
    let is_address = address.bytes().all(|b| b.is_ascii_hexdigit());
    let mut words = rest.split([' ', ';']).filter(|w| !w.is_empty());
    let first = words.next().filter(|_| is_address)?;
    match first.starts_with('@') {
        true => words.next(),
        false => Some(first),
    }
}

/// Writes them for [`parse`]: a line a kernel, its opcodes indented below.
pub fn to_text(all: &[Opcodes]) -> String {
    let mut out = String::new();
    for o in all {
        let _ = writeln!(out, "{} {}", o.architecture, o.kernel);
        for (opcode, n) in &o.counts {
            let _ = writeln!(out, " {opcode} {n}");
        }
    }
    out
}

/// Reads what [`to_text`] wrote.
pub fn parse(text: &str) -> Vec<Opcodes> {
    let mut all: Vec<Opcodes> = Vec::new();
    for line in text.lines() {
        let Some((first, second)) = line.trim_start().split_once(' ') else {
            continue;
        };
        if !line.starts_with(' ') {
            all.push(Opcodes {
                kernel: second.into(),
                architecture: first.into(),
                counts: BTreeMap::new(),
            });
        } else if let (Some(last), Ok(n)) = (all.last_mut(), second.parse()) {
            last.counts.insert(first.into(), n);
        }
    }
    all
}

/// What an access to global memory does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Into registers.
    Load,
    /// From registers.
    Store,
    /// Into shared memory (`cp.async`).
    Copy,
    /// Atomic operations.
    Atomic,
}

/// What an opcode does to global memory and with how many bits a thread, if it does.
pub fn global_access(opcode: &str) -> Option<(Access, u32)> {
    let mut parts = opcode.split('.');
    let access = match parts.next()? {
        // LD and ST are the same for addresses whose space the compiler does not know.
        "LDG" | "LD" => Access::Load,
        "STG" | "ST" => Access::Store,
        "LDGSTS" => Access::Copy,
        "ATOMG" | "ATOM" | "RED" => Access::Atomic,
        _ => return None,
    };
    let bits = parts.find_map(|part| match part {
        "128" => Some(128),
        "64" => Some(64),
        "U16" | "S16" => Some(16),
        "U8" | "S8" => Some(8),
        _ => None,
    });
    Some((access, bits.unwrap_or(32)))
}

/// Whether it multiplies matrices.
pub fn is_tensor(opcode: &str) -> bool {
    let name = opcode.split('.').next().unwrap_or_default();
    // HFMA2.MMA is a vector instruction.
    ["HMMA", "IMMA", "BMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "
	code for sm_80
		Function : b_f16
	.headerflags	@\"EF_CUDA_SM80\"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
                                                                            /* 0x000fe400078e00ff */
        /*0050*/              @!P0 LDG.E.128 R4, [R4.64] ;                  /* 0x0000000604057981 */
                                                                            /* 0x000ea2000c1e1900 */
        /*0060*/                   EXIT ;                                   /* 0x000000000000794d */
        /*0070*/                   NOP;                                     /* 0x0000000000007918 */
	code for sm_90a
		Function : fill_f32
        /*0000*/                   STG.E desc[UR4][R2.64], R5 ;             /* 0x0000000504007986 */
        /*0010*/              @UP0 STG.E desc[UR4][R2.64], R5 ;             /* 0x0000000504007986 */
";

    #[test]
    fn opcodes_are_counted_and_go_round() {
        let all = count(DUMP);
        let of = |i: usize| {
            let o: &Opcodes = &all[i];
            let counts: Vec<(&str, u32)> = o.counts.iter().map(|(k, n)| (k.as_str(), *n)).collect();
            (o.architecture.as_str(), o.kernel.as_str(), counts)
        };
        let first = vec![("EXIT", 1), ("IMAD.MOV.U32", 1), ("LDG.E.128", 1)];
        assert_eq!(of(0), ("sm_80", "b_f16", first));
        assert_eq!(of(1), ("sm_90a", "fill_f32", vec![("STG.E", 2)]));
        assert_eq!(parse(&to_text(&all)), all);
        assert_eq!(count(""), []);
    }

    #[test]
    fn opcodes_tell_what_they_do() {
        let cases = [
            ("LDG.E", Some((Access::Load, 32))),
            ("LDG.E.128.CONSTANT", Some((Access::Load, 128))),
            ("LD.E.U16", Some((Access::Load, 16))),
            ("STG.E.64", Some((Access::Store, 64))),
            (
                "LDGSTS.E.BYPASS.LTC128B.128.ZFILL",
                Some((Access::Copy, 128)),
            ),
            (
                "RED.E.ADD.F32.FTZ.RN.STRONG.GPU",
                Some((Access::Atomic, 32)),
            ),
            ("LDS.128", None),
            ("LDGDEPBAR", None),
            ("LDL", None),
        ];
        for (opcode, want) in cases {
            assert_eq!(global_access(opcode), want, "{opcode}");
        }
        assert!(is_tensor("HMMA.16816.F32") && !is_tensor("HFMA2.MMA"));
    }
}

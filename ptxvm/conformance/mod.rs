//! The conformance suite: small kernels, what they get, and what they must give.
//!
//! What is expected is computed here from the PTX manual's definitions (PTX ISA 8.0, chapter 9) or
//! written as literals, never by the machine under test. `ptxvm/tests/conformance.rs` runs the
//! table in the virtual machine; `tests/conformance.rs` of crosstune runs the same table through
//! its driver, on a GPU where one is present.

pub mod carries;
pub mod convert;
pub mod floats;
pub mod flush;
pub mod integers;
pub mod integers64;
pub mod memory;
pub mod soft;
pub mod tensor;
pub mod warp;

/// A kernel, its launch, and what it must write.
pub struct Case {
    /// The instruction.
    pub name: String,
    /// Its family, a test each.
    pub family: &'static str,
    pub ptx: String,
    pub kernel: &'static str,
    pub grid: u32,
    pub block: u32,
    pub shared_bytes: u32,
    /// In the kernel's order; exactly one [`Argument::Out`].
    pub args: Vec<Argument>,
    /// The bytes of the output.
    pub want: Vec<u8>,
    pub compare: Compare,
}

/// A kernel argument.
#[derive(Clone)]
pub enum Argument {
    /// A buffer that the kernel writes, with what it holds before; empty for nothing written.
    Out(Vec<u8>),
    /// A buffer that it reads.
    In(Vec<u8>),
    /// A number of four bytes.
    U32(u32),
    /// A number, or a struct, of eight.
    U64(u64),
}

/// How an output is compared.
#[derive(Clone, Copy, Debug)]
pub enum Compare {
    /// Bit for bit.
    Bits,
    /// Bit for bit in elements of so many bytes, floats in the low bits; every NaN equals every
    /// other.
    Floats(Float, usize),
    /// `|got - want| <= abs + rel |want|` in elements of so many bytes; infinities and NaN as in
    /// `Floats`.
    Within(Float, usize, f64, f64),
}

/// A floating-point format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

impl Float {
    /// The value of the low bits.
    pub fn value(self, bits: u64) -> f64 {
        match self {
            Float::F16 => soft::f16_value(bits as u16),
            Float::Bf16 => f32::from_bits((bits as u32) << 16).into(),
            Float::F32 => f32::from_bits(bits as u32).into(),
            Float::F64 => f64::from_bits(bits),
        }
    }
}

impl Case {
    /// A case of whole bytes, to be changed with the fields.
    pub fn new(
        family: &'static str,
        name: &str,
        ptx: &str,
        kernel: &'static str,
        args: Vec<Argument>,
        want: Vec<u8>,
    ) -> Case {
        Case {
            name: name.into(),
            family,
            ptx: ptx.into(),
            kernel,
            grid: 1,
            block: 32,
            shared_bytes: 0,
            args,
            want,
            compare: Compare::Bits,
        }
    }

    pub fn block(self, block: u32) -> Case {
        Case { block, ..self }
    }

    pub fn grid(self, grid: u32) -> Case {
        Case { grid, ..self }
    }

    pub fn compare(self, compare: Compare) -> Case {
        Case { compare, ..self }
    }

    /// The first element that is not as it must be, in words.
    pub fn check(&self, got: &[u8]) -> Result<(), String> {
        let size = match self.compare {
            Compare::Bits => 4,
            Compare::Floats(_, size) | Compare::Within(_, size, ..) => size,
        };
        if got.len() != self.want.len() {
            return Err(format!(
                "{}: {} bytes, expected {}",
                self.name,
                got.len(),
                self.want.len()
            ));
        }
        for (i, (g, w)) in got.chunks(size).zip(self.want.chunks(size)).enumerate() {
            let (g, w) = (word(g), word(w));
            if !self.compare.holds(g, w) {
                return Err(format!(
                    "{}: element {i} is {g:#x}, expected {w:#x}{}",
                    self.name,
                    self.describe(i)
                ));
            }
        }
        Ok(())
    }

    /// The inputs of an element of a `lanes` case.
    fn describe(&self, i: usize) -> String {
        match &self.args[..] {
            [Argument::Out(_), Argument::In(inputs), Argument::U32(_)]
                if self.kernel == "lanes" && matches!(self.compare, Compare::Bits) =>
            {
                let at = i / 2 * 24;
                format!(" on {:x?}", words(&inputs[at..at + 24]))
            }
            [Argument::Out(_), Argument::In(inputs), Argument::U32(_)]
                if self.kernel == "lanes" =>
            {
                format!(" on {:x?}", words(&inputs[i * 24..i * 24 + 24]))
            }
            _ => String::new(),
        }
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(8).map(word).collect()
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |out, b| out << 8 | u64::from(*b))
}

impl Compare {
    fn holds(self, got: u64, want: u64) -> bool {
        match self {
            Compare::Bits => got == want,
            Compare::Floats(float, _) => {
                got == want || float.value(got).is_nan() && float.value(want).is_nan()
            }
            Compare::Within(float, _, abs, rel) => {
                let (g, w) = (float.value(got), float.value(want));
                got == want
                    || g.is_nan() && w.is_nan()
                    || w.is_finite() && (g - w).abs() <= abs + rel * w.abs()
            }
        }
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut all = integers::cases();
    all.extend(integers64::cases());
    all.extend(carries::cases());
    all.extend(floats::cases());
    all.extend(flush::cases());
    all.extend(convert::cases());
    all.extend(memory::cases());
    all.extend(warp::cases());
    all.extend(tensor::cases());
    all
}

/// One instruction on every element of `inputs`.
pub fn lanes(
    family: &'static str,
    instruction: &str,
    inputs: &[[u64; 3]],
    want: impl Fn([u64; 3]) -> u64,
) -> Case {
    let ptx = include_str!("lanes.ptx").replacen("    INSTRUCTION", instruction, 1);
    let n = inputs.len();
    let expected = inputs.iter().flat_map(|i| want(*i).to_le_bytes());
    Case {
        grid: n.div_ceil(64) as u32,
        block: 64,
        ..Case::new(
            family,
            instruction,
            &ptx,
            "lanes",
            vec![
                Argument::Out(vec![]),
                Argument::In(
                    inputs
                        .iter()
                        .flatten()
                        .flat_map(|w| w.to_le_bytes())
                        .collect(),
                ),
                Argument::U32(n as u32),
            ],
            expected.collect(),
        )
    }
}

/// Every pair of the values, with thirds taken in turn, and some numbers drawn at random.
pub fn triples(values: &[u64], bits: u32) -> Vec<[u64; 3]> {
    let mut out = Vec::new();
    for (i, a) in values.iter().enumerate() {
        for (j, b) in values.iter().enumerate() {
            out.push([*a, *b, values[(i + 3 * j + 1) % values.len()]]);
        }
    }
    let mut random = Random(1);
    let ones = u64::MAX >> (64 - bits);
    out.extend((0..64).map(|_| [(); 3].map(|()| random.next() & ones)));
    out
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
}

/// Words as bytes.
pub fn bytes32(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Halves as bytes.
pub fn bytes16(values: impl IntoIterator<Item = u16>) -> Vec<u8> {
    values.into_iter().flat_map(u16::to_le_bytes).collect()
}

//! `cvt`, in every kind that the machine decodes.

use super::soft::{self, Mode, to_bf16, to_f16, to_f32};
use super::{Case, Compare, Float, floats, lanes, triples};

const MODES: [(&str, Mode); 4] = [
    ("n", Mode::Nearest),
    ("z", Mode::Zero),
    ("m", Mode::Down),
    ("p", Mode::Up),
];

/// Integer types: name, bits, signed.
const INTEGERS: [(&str, u32, bool); 6] = [
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

pub fn cases() -> Vec<Case> {
    let mut all = between_integers();
    all.extend(to_integers());
    all.extend(from_integers());
    all.extend(between_floats());
    all.extend(pairs());
    all
}

/// The value of the low bits of a register.
fn integer(x: u64, bits: u32, signed: bool) -> i128 {
    let x = i128::from(x) & ((1 << bits) - 1);
    if signed && x >> (bits - 1) == 1 {
        x - (1 << bits)
    } else {
        x
    }
}

fn range(bits: u32, signed: bool) -> (i128, i128) {
    if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// As the destination register holds it.
fn register(x: i128, bits: u32) -> u64 {
    x as u64 & (u64::MAX >> (64 - bits))
}

fn edges() -> Vec<u64> {
    let mut all = vec![
        0,
        1,
        u64::MAX,
        1 << 63,
        (1 << 63) - 1,
        0x0123_4567_89AB_CDEF,
    ];
    for bits in [7, 8, 15, 16, 23, 24, 31, 32, 53] {
        all.extend([
            (1u64 << bits) - 1,
            1 << bits,
            (1 << bits) + 1,
            (1u64 << bits).wrapping_neg(),
        ]);
    }
    // Just above a float's rounding point, where f64 is too short to see it.
    all.extend([
        (1 << 62) + (1 << 38) + 1,
        u64::MAX - 1,
        (1 << 40) + (1 << 16) + 1,
    ]);
    all
}

fn inputs() -> Vec<[u64; 3]> {
    let mut all: Vec<[u64; 3]> = edges().iter().map(|x| [*x, 0, 0]).collect();
    all.extend(triples(&[0], 64));
    all
}

fn between_integers() -> Vec<Case> {
    let mut all = Vec::new();
    for (to, tbits, tsigned) in INTEGERS {
        for (from, fbits, fsigned) in INTEGERS {
            for sat in [false, true] {
                // Saturation is for conversions that can leave the range.
                let (low, high) = range(tbits, tsigned);
                let (least, most) = range(fbits, fsigned);
                if sat && least >= low && most <= high {
                    continue;
                }
                let dot = if sat { ".sat" } else { "" };
                let text = format!("cvt{dot}.{to}.{from} %r{tbits}, %a{fbits};");
                all.push(lanes("cvt", &text, &inputs(), |[a, ..]| {
                    let x = integer(a, fbits, fsigned);
                    register(if sat { x.clamp(low, high) } else { x }, tbits)
                }));
            }
        }
    }
    for (text, f) in [
        (
            "{ .reg .b16 %h; cvt.u8.u32 %h, %a32; cvt.u32.u16 %r32, %h; }",
            (|a| a & 0xFF) as fn(u64) -> u64,
        ),
        ("cvt.s32.s8 %r32, %a32;", |a| u64::from(a as i8 as u32)),
        ("cvt.u32.u8 %r32, %a32;", |a| a & 0xFF),
        ("cvt.s64.s8 %r64, %a32;", |a| a as i8 as u64),
        (
            "{ .reg .b16 %h; cvt.sat.s8.s32 %h, %a32; cvt.s32.s8 %r32, %h; }",
            |a| u64::from((a as i32).clamp(-128, 127) as u32),
        ),
        (
            "{ .reg .b16 %h; cvt.sat.u8.s32 %h, %a32; cvt.u32.u8 %r32, %h; }",
            |a| u64::from((a as i32).clamp(0, 255) as u32),
        ),
    ] {
        all.push(lanes("cvt", text, &inputs(), |[a, ..]| f(a)));
    }
    all
}

fn singles() -> Vec<[u64; 3]> {
    let mut all: Vec<[u64; 3]> = floats::EDGES
        .iter()
        .map(|x| [u64::from(*x), 0, 0])
        .collect();
    for x in [
        0.5f32,
        1.5,
        2.5,
        -0.5,
        -1.5,
        -2.5,
        0.999,
        127.5,
        128.5,
        254.9,
        255.5,
        32767.5,
        65535.5,
        65536.0,
        -32768.5,
        -129.0,
        2.147_483_5e9,
        2.147_483_6e9,
        -2.147_483_6e9,
        4.294_967_3e9,
        9.2e18,
        1.9e19,
        -9.3e18,
    ] {
        all.push([x.to_bits().into(), 0, 0]);
    }
    all
}

/// Out of range goes to the nearest end; NaN to zero (9.7.9.21 leaves f64's to the device).
fn to_integers() -> Vec<Case> {
    let mut all = Vec::new();
    for (to, bits, signed) in INTEGERS {
        let (low, high) = range(bits, signed);
        for (letter, mode) in MODES {
            let clamp = move |x: f64| {
                if x.is_nan() {
                    return 0;
                }
                register((soft::integral(x, mode) as i128).clamp(low, high), bits)
            };
            // NaN becomes zero in types of 32 bits or less only.
            let known = |x: f64| !x.is_nan() || bits <= 32;
            let mut inputs = singles();
            inputs.retain(|[a, ..]| known(f32::from_bits(*a as u32).into()));
            let text = format!("cvt.r{letter}i.{to}.f32 %r{bits}, %a32;");
            all.push(lanes("cvt", &text, &inputs, |[a, ..]| {
                clamp(f32::from_bits(a as u32).into())
            }));
            let mut inputs: Vec<[u64; 3]> = floats::HALVES.iter().map(|h| [*h, 0, 0]).collect();
            inputs.retain(|[a, ..]| known(soft::f16_value(*a as u16)));
            let text = format!("cvt.r{letter}i.{to}.f16 %r{bits}, %a16;");
            all.push(lanes("cvt", &text, &inputs, |[a, ..]| {
                clamp(soft::f16_value(a as u16))
            }));
            let mut inputs = singles();
            inputs.retain(|[a, ..]| !f32::from_bits(*a as u32).is_nan());
            let inputs: Vec<[u64; 3]> = inputs
                .iter()
                .map(|[a, ..]| [f64::from(f32::from_bits(*a as u32)).to_bits(), 0, 0])
                .collect();
            let text = format!("cvt.r{letter}i.{to}.f64 %r{bits}, %a64;");
            all.push(lanes("cvt", &text, &inputs, |[a, ..]| {
                clamp(f64::from_bits(a))
            }));
        }
    }
    all
}

/// An integer in f64, its last digit odd where digits were lost: rounding it on is rounding once.
fn sticky(x: i128) -> f64 {
    let size = x.unsigned_abs();
    let drop = (128 - size.leading_zeros()).saturating_sub(53);
    let kept = size >> drop | u128::from(size & ((1 << drop) - 1) != 0);
    let y = kept as f64 * 2f64.powi(drop as i32);
    if x < 0 { -y } else { y }
}

fn from_integers() -> Vec<Case> {
    let mut all = Vec::new();
    for (from, bits, signed) in INTEGERS {
        for (letter, mode) in MODES {
            let text = format!("cvt.r{letter}.f32.{from} %r32, %a{bits};");
            all.push(lanes("cvt", &text, &inputs(), |[a, ..]| {
                to_f32(sticky(integer(a, bits, signed)), mode).into()
            }));
        }
        let text = format!("cvt.rn.f16.{from} %r16, %a{bits};");
        all.push(lanes("cvt", &text, &inputs(), |[a, ..]| {
            to_f16(sticky(integer(a, bits, signed)), Mode::Nearest).into()
        }));
        let text = format!("cvt.rn.f64.{from} %r64, %a{bits};");
        all.push(lanes("cvt", &text, &inputs(), |[a, ..]| {
            (integer(a, bits, signed) as f64).to_bits()
        }));
    }
    all
}

fn between_floats() -> Vec<Case> {
    let mut all = Vec::new();
    let mut wide = singles();
    // About the rounding points of halves and bfloats.
    for x in [
        0x3F80_1000u32,
        0x3F80_1001,
        0x3F80_0FFF,
        0x3F80_8000,
        0x3F80_8001,
        0x3F81_8000,
    ] {
        wide.push([x.into(), 0, 0]);
    }
    for x in [
        65519.0f32, 65520.0, -65504.0, 5.9e-8, 2.9e-8, 2.98e-8, -1e-10, 6.1e-5, 3.4e38,
    ] {
        wide.push([x.to_bits().into(), 0, 0]);
    }
    let mut random = super::Random(3);
    wide.extend((0..200).map(|_| [u64::from(random.next() as u32), 0, 0]));
    let v = |a: u64| f64::from(f32::from_bits(a as u32));
    let halves: Vec<[u64; 3]> = (0..=0xFFFF).step_by(37).map(|h| [h, 0, 0]).collect();
    let mut doubles: Vec<[u64; 3]> = wide.iter().map(|[a, ..]| [v(*a).to_bits(), 0, 0]).collect();
    for x in [
        1.0 + 2f64.powi(-24),
        1.0 + 2f64.powi(-24) + 2f64.powi(-52),
        1.0 + 2f64.powi(-11) + 2f64.powi(-40),
        3.5e38,
        1e-46,
    ] {
        doubles.extend([[x.to_bits(), 0, 0], [(-x).to_bits(), 0, 0]]);
    }
    let mut push = |text: &str, inputs: &[[u64; 3]], float, f: &dyn Fn(u64) -> u64| {
        all.push(lanes("cvt", text, inputs, |[a, ..]| f(a)).compare(Compare::Floats(float, 8)));
    };
    push("cvt.f32.f16 %r32, %a16;", &halves, Float::F32, &|a| {
        to_f32(soft::f16_value(a as u16), Mode::Nearest).into()
    });
    push("cvt.f64.f32 %r64, %a32;", &wide, Float::F64, &|a| {
        v(a).to_bits()
    });
    push("cvt.f64.f16 %r64, %a16;", &halves, Float::F64, &|a| {
        soft::f16_value(a as u16).to_bits()
    });
    for (letter, mode) in MODES {
        push(
            &format!("cvt.r{letter}.f32.f64 %r32, %a64;"),
            &doubles,
            Float::F32,
            &|a| to_f32(f64::from_bits(a), mode).into(),
        );
        push(
            &format!("cvt.r{letter}i.f32.f32 %r32, %a32;"),
            &wide,
            Float::F32,
            &|a| to_f32(soft::integral(v(a), mode), Mode::Nearest).into(),
        );
        push(
            &format!("cvt.r{letter}i.f16.f16 %r16, %a16;"),
            &halves,
            Float::F16,
            &|a| {
                to_f16(
                    soft::integral(soft::f16_value(a as u16), mode),
                    Mode::Nearest,
                )
                .into()
            },
        );
    }
    for (letter, mode) in [MODES[0], MODES[1]] {
        push(
            &format!("cvt.r{letter}.f16.f32 %r16, %a32;"),
            &wide,
            Float::F16,
            &|a| to_f16(v(a), mode).into(),
        );
    }
    push("cvt.rn.f16.f64 %r16, %a64;", &doubles, Float::F16, &|a| {
        to_f16(f64::from_bits(a), Mode::Nearest).into()
    });
    push("cvt.rn.bf16.f32 %r16, %a32;", &wide, Float::Bf16, &|a| {
        to_bf16(v(a), Mode::Nearest).into()
    });
    let clamp = |x: f64| if x > 0.0 { x.min(1.0) } else { 0.0 };
    push("cvt.sat.f32.f32 %r32, %a32;", &wide, Float::F32, &|a| {
        to_f32(clamp(v(a)), Mode::Nearest).into()
    });
    push("cvt.rn.sat.f16.f32 %r16, %a32;", &wide, Float::F16, &|a| {
        to_f16(clamp(v(a)), Mode::Nearest).into()
    });
    all
}

fn pairs() -> Vec<Case> {
    let mut inputs = triples(&floats::singles(), 32);
    let rounding = [
        0x3F80_1000u64,
        0x3F80_1001,
        0x3F80_8000,
        0x3F80_8001,
        0x477F_F000,
        0x477F_EFFF,
    ];
    inputs.extend(triples(&rounding, 32));
    let mut all = Vec::new();
    for (ty, float, round) in [
        ("f16x2", Float::F16, to_f16 as fn(f64, Mode) -> u16),
        ("bf16x2", Float::Bf16, to_bf16),
    ] {
        for relu in [false, true] {
            let dot = if relu { ".relu" } else { "" };
            let text = format!("cvt.rn{dot}.{ty}.f32 %r32, %a32, %b32;");
            let one = move |x: u64| {
                let x = f64::from(f32::from_bits(x as u32));
                // Negatives become +0, NaN stays.
                u64::from(round(if relu && x <= 0.0 { 0.0 } else { x }, Mode::Nearest))
            };
            let case = lanes("cvt", &text, &inputs, |[a, b, _]| one(a) << 16 | one(b));
            all.push(case.compare(Compare::Floats(float, 2)));
        }
    }
    all
}

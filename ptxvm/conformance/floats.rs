//! Floating-point arithmetic: f32, halves, pairs; approximations within the manual's bounds.

use super::soft::{Mode, f16_value, to_bf16, to_f16, to_f32};
use super::{Case, Compare, Float, lanes, triples};

pub const EDGES: [u32; 20] = [
    0x0000_0000, // 0
    0x8000_0000, // -0
    0x3F80_0000, // 1
    0xBF80_0000, // -1
    0x3F80_0001, // the next after 1
    0x3F7F_FFFF, // the last before 1
    0x4048_F5C3, // 3.14
    0xC2C8_0000, // -100
    0x7F7F_FFFF, // the largest
    0xFF7F_FFFF,
    0x7F80_0000, // infinity
    0xFF80_0000,
    0x7FC0_0000, // NaN
    0xFFC0_1234,
    0x0080_0000, // the smallest normal
    0x3380_0000, // 2^-24
    0x4B80_0001, // 2^24 + 2
    0x0000_0001, // the smallest
    0x807F_FFFF, // the largest subnormal, negative
    0x3EAA_AAAB, // 1/3
];

pub const HALVES: [u64; 16] = [
    0x0000, 0x8000, 0x3C00, 0xBC00, 0x3C01, 0x3BFF, 0x4248, 0xD640, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00,
    0x7E00, 0x0001, 0x83FF, 0x1000,
];

pub const BFLOATS: [u64; 14] = [
    0x0000, 0x8000, 0x3F80, 0xBF80, 0x3F81, 0x3F7F, 0x4049, 0xC2C8, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80,
    0x7FC0, 0x0080,
];

pub fn singles() -> Vec<u64> {
    EDGES.iter().map(|x| u64::from(*x)).collect()
}

/// f32 inputs of middling size too.
fn inputs32() -> Vec<[u64; 3]> {
    let mut all = triples(&singles(), 32);
    let mut random = super::Random(2);
    let mut middling = || u64::from((random.next() as u32 & 0x87FF_FFFF) | 0x3C00_0000);
    all.extend((0..128).map(|_| [middling(), middling(), middling()]));
    all
}

pub fn cases() -> Vec<Case> {
    let mut all = singles_exact();
    all.extend(fused());
    all.extend(least_and_greatest());
    all.extend(orderings());
    all.extend(halves());
    all.extend(bfloats());
    all.extend(approximations());
    all.extend(doubles());
    all
}

pub fn v(x: u64) -> f64 {
    f32::from_bits(x as u32).into()
}

pub fn near(x: f64) -> u64 {
    to_f32(x, Mode::Nearest).into()
}

type Op = fn(u64, u64, u64) -> u64;

/// Sums, products, quotients and roots of f32 in f64 rounded once more are right: 53 >= 2 * 24 + 2
/// (Figueroa, 1995).
fn singles_exact() -> Vec<Case> {
    let inputs = inputs32();
    let table: [(&str, Op); 9] = [
        ("add.f32 %r32, %a32, %b32;", |a, b, _| near(v(a) + v(b))),
        ("add.rn.f32 %r32, %a32, 0f3F800000;", |a, _, _| {
            near(v(a) + 1.0)
        }),
        ("sub.f32 %r32, %a32, %b32;", |a, b, _| near(v(a) - v(b))),
        ("mul.f32 %r32, %a32, %b32;", |a, b, _| near(v(a) * v(b))),
        ("div.rn.f32 %r32, %a32, %b32;", |a, b, _| near(v(a) / v(b))),
        ("rcp.rn.f32 %r32, %a32;", |a, _, _| near(1.0 / v(a))),
        ("sqrt.rn.f32 %r32, %a32;", |a, _, _| near(v(a).sqrt())),
        ("neg.f32 %r32, %a32;", |a, _, _| a ^ 0x8000_0000),
        ("abs.f32 %r32, %a32;", |a, _, _| a & 0x7FFF_FFFF),
    ];
    let mut all: Vec<Case> = table
        .iter()
        .map(|(text, f)| {
            lanes("f32 arithmetic", text, &inputs, |[a, b, c]| f(a, b, c))
                .compare(Compare::Floats(Float::F32, 8))
        })
        .collect();
    all.push(
        lanes(
            "f32 arithmetic",
            "copysign.f32 %r32, %a32, %b32;",
            &inputs,
            |[a, b, _]| a & 0x8000_0000 | b & 0x7FFF_FFFF,
        )
        .compare(Compare::Floats(Float::F32, 8)),
    );
    all
}

/// `a * b + c` of f32 exactly, to be rounded to at most 24 digits: f64 with a sticky last bit.
pub fn exact_fma(a: f64, b: f64, c: f64) -> f64 {
    let (p, s) = (a * b, a * b + c);
    if !s.is_finite() {
        return s;
    }
    // Knuth's two-sum: s + e == p + c, exactly.
    let t = s - p;
    let e = (p - (s - t)) + (c - t);
    if e == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    // An even last digit moves towards what was lost.
    let away = (e > 0.0) == (s > 0.0);
    f64::from_bits(if away {
        s.to_bits() + 1
    } else {
        s.to_bits() - 1
    })
}

fn fused() -> Vec<Case> {
    let mut inputs = inputs32();
    // What is lost in 53 digits decides the rounding.
    let tiny = u64::from(1e-30f32.to_bits());
    let (one, odd) = (u64::from(1f32.to_bits()), u64::from(0x3F80_1001u32));
    for sign in [0, 0x8000_0000u64] {
        inputs.push([one, one, tiny ^ sign]);
        inputs.push([one ^ 0x8000_0000, one, tiny ^ sign]);
        inputs.push([odd, odd, tiny ^ sign]);
    }
    let modes = [
        ("rn", Mode::Nearest),
        ("rz", Mode::Zero),
        ("rm", Mode::Down),
        ("rp", Mode::Up),
    ];
    modes
        .iter()
        .map(|(name, mode)| {
            let text = format!("fma.{name}.f32 %r32, %a32, %b32, %c32;");
            lanes("f32 fma", &text, &inputs, |[a, b, c]| {
                let x = exact_fma(v(a), v(b), v(c));
                // An exact zero of opposite signs is -0 only when rounding down.
                if x == 0.0 && *mode == Mode::Down && v(c) != 0.0 {
                    return 0x8000_0000;
                }
                let opposite = (v(a) * v(b)).is_sign_negative() != v(c).is_sign_negative();
                if x == 0.0 && v(c) == 0.0 && opposite && *mode == Mode::Down {
                    return 0x8000_0000;
                }
                to_f32(x, *mode).into()
            })
            .compare(Compare::Floats(Float::F32, 8))
        })
        .collect()
}

/// The smaller, -0 below +0; NaN loses, or wins with `.NaN`.
pub fn least(x: f64, y: f64, nan: bool) -> f64 {
    match (x.is_nan(), y.is_nan()) {
        (true, true) => x,
        (a, b) if nan && (a || b) => f64::NAN,
        (true, _) => y,
        (_, true) => x,
        _ if x.total_cmp(&y).is_lt() => x,
        _ => y,
    }
}

fn least_and_greatest() -> Vec<Case> {
    let inputs = inputs32();
    let mut all = Vec::new();
    for (suffix, nan) in [("", false), (".NaN", true)] {
        for (name, sign) in [("min", 1.0), ("max", -1.0)] {
            let text = format!("{name}{suffix}.f32 %r32, %a32, %b32;");
            let case = lanes("min and max", &text, &inputs, |[a, b, _]| {
                near(sign * least(sign * v(a), sign * v(b), nan))
            });
            all.push(case.compare(Compare::Floats(Float::F32, 8)));
        }
    }
    for (name, sign) in [("min", 1.0), ("max", -1.0)] {
        let text = format!("{name}.f16 %r16, %a16, %b16;");
        let f = move |a, b| {
            u64::from(to_f16(
                sign * least(
                    sign * f16_value(a as u16),
                    sign * f16_value(b as u16),
                    false,
                ),
                Mode::Nearest,
            ))
        };
        let inputs = triples(&HALVES, 16);
        let case = lanes("min and max", &text, &inputs, |[a, b, _]| f(a, b));
        all.push(case.compare(Compare::Floats(Float::F16, 8)));
    }
    all
}

fn orderings() -> Vec<Case> {
    let inputs = inputs32();
    type Test = fn(Option<std::cmp::Ordering>) -> bool;
    let tests: [(&str, Test); 14] = [
        ("eq", |o| o.is_some_and(|o| o.is_eq())),
        ("ne", |o| o.is_some_and(|o| o.is_ne())),
        ("lt", |o| o.is_some_and(|o| o.is_lt())),
        ("le", |o| o.is_some_and(|o| o.is_le())),
        ("gt", |o| o.is_some_and(|o| o.is_gt())),
        ("ge", |o| o.is_some_and(|o| o.is_ge())),
        ("equ", |o| o.is_none_or(|o| o.is_eq())),
        ("neu", |o| o.is_none_or(|o| o.is_ne())),
        ("ltu", |o| o.is_none_or(|o| o.is_lt())),
        ("leu", |o| o.is_none_or(|o| o.is_le())),
        ("gtu", |o| o.is_none_or(|o| o.is_gt())),
        ("geu", |o| o.is_none_or(|o| o.is_ge())),
        ("num", |o| o.is_some()),
        ("nan", |o| o.is_none()),
    ];
    let mut all = Vec::new();
    for (name, test) in tests {
        let text = format!("setp.{name}.f32 %r1, %a32, %b32;");
        all.push(lanes("float orderings", &text, &inputs, |[a, b, _]| {
            test(v(a).partial_cmp(&v(b))).into()
        }));
        let text = format!("setp.{name}.f16 %r1, %a16, %b16;");
        all.push(lanes(
            "float orderings",
            &text,
            &triples(&HALVES, 16),
            |[a, b, _]| test(f16_value(a as u16).partial_cmp(&f16_value(b as u16))).into(),
        ));
        let text = format!("setp.{name}.f64 %r1, %a64, %b64;");
        let inputs: Vec<[u64; 3]> = inputs32()
            .iter()
            .map(|[a, b, _]| [v(*a).to_bits(), v(*b).to_bits(), 0])
            .collect();
        all.push(lanes("float orderings", &text, &inputs, |[a, b, _]| {
            test(f64::from_bits(a).partial_cmp(&f64::from_bits(b))).into()
        }));
    }
    all.push(lanes(
        "float orderings",
        "set.gtu.u32.f32 %r32, %a32, %b32;",
        &inputs,
        |[a, b, _]| {
            if v(a) <= v(b) { 0 } else { 0xFFFF_FFFF }
        },
    ));
    all
}

type Exact = fn(f64, f64, f64) -> f64;

/// One half a register, and two; what needs no rounding but the last is exact in f64.
fn half_cases(
    family: &'static str,
    float: Float,
    table: &[(&str, Exact)],
    pairs: bool,
    values: &[u64],
    extra: &[[u64; 3]],
) -> Vec<Case> {
    let round = move |x: f64| match float {
        Float::F16 => u64::from(to_f16(x, Mode::Nearest)),
        _ => u64::from(to_bf16(x, Mode::Nearest)),
    };
    let value = move |x: u64| float.value(x & 0xFFFF);
    let mut inputs = triples(values, 16);
    inputs.extend(extra);
    let mut all = Vec::new();
    for (text, f) in table {
        let one = move |a, b, c| round(f(value(a), value(b), value(c)));
        if !pairs {
            let case = lanes(family, text, &inputs, |[a, b, c]| one(a, b, c));
            all.push(case.compare(Compare::Floats(float, 8)));
            continue;
        }
        // The pair's upper half takes another element's inputs.
        let n = inputs.len();
        let both: Vec<[u64; 3]> = (0..n)
            .map(|i| [0, 1, 2].map(|k| inputs[i][k] | inputs[(i + 7) % n][k] << 16))
            .collect();
        let case = lanes(family, text, &both, |[a, b, c]| {
            one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16
        });
        all.push(case.compare(Compare::Floats(float, 2)));
    }
    all
}

fn halves() -> Vec<Case> {
    // The product lies so little below half a unit that f32 can't tell.
    let extra = [[0x3C01, 0x0FFE, 0x3C01], [0xBC01, 0x0FFE, 0xBC01]];
    let single: [(&str, Exact); 6] = [
        ("add.f16 %r16, %a16, %b16;", |a, b, _| a + b),
        ("sub.f16 %r16, %a16, %b16;", |a, b, _| a - b),
        ("mul.f16 %r16, %a16, %b16;", |a, b, _| a * b),
        ("fma.rn.f16 %r16, %a16, %b16, %c16;", exact_fma),
        ("neg.f16 %r16, %a16;", |a, _, _| -a),
        ("abs.f16 %r16, %a16;", |a, _, _| a.abs()),
    ];
    let pair: [(&str, Exact); 8] = [
        ("add.f16x2 %r32, %a32, %b32;", |a, b, _| a + b),
        ("sub.f16x2 %r32, %a32, %b32;", |a, b, _| a - b),
        ("mul.f16x2 %r32, %a32, %b32;", |a, b, _| a * b),
        ("fma.rn.f16x2 %r32, %a32, %b32, %c32;", exact_fma),
        ("neg.f16x2 %r32, %a32;", |a, _, _| -a),
        ("abs.f16x2 %r32, %a32;", |a, _, _| a.abs()),
        ("min.f16x2 %r32, %a32, %b32;", |a, b, _| least(a, b, false)),
        ("max.f16x2 %r32, %a32, %b32;", |a, b, _| {
            -least(-a, -b, false)
        }),
    ];
    let mut all = half_cases("f16", Float::F16, &single, false, &HALVES, &extra);
    all.extend(half_cases("f16", Float::F16, &pair, true, &HALVES, &extra));
    all
}

fn bfloats() -> Vec<Case> {
    // 5 * 77 lies midway between two; the third operand decides.
    let (five, seventy_seven) = (0x40A0, 0x429A);
    let extra = [
        [five, seventy_seven, 0x0D80],
        [five, seventy_seven, 0x8D80],
        [five | 0x8000, seventy_seven, 0x0D80],
    ];
    let single: [(&str, Exact); 1] = [("fma.rn.bf16 %r16, %a16, %b16, %c16;", exact_fma)];
    let pair: [(&str, Exact); 1] = [("fma.rn.bf16x2 %r32, %a32, %b32, %c32;", exact_fma)];
    let mut all = half_cases("bf16", Float::Bf16, &single, false, &BFLOATS, &extra);
    all.extend(half_cases(
        "bf16",
        Float::Bf16,
        &pair,
        true,
        &BFLOATS,
        &extra,
    ));
    all
}

/// The manual's largest errors (PTX ISA 8.0, 9.7.3), absolute and relative.
fn approximations() -> Vec<Case> {
    let ulp = 2f64.powi(-23);
    let mut numbers: Vec<f32> = (-126..=126).map(|e| 1.37 * 2f32.powi(e)).collect();
    numbers.extend((1..200).map(|i| i as f32 * 0.0731));
    let positive: Vec<[u64; 3]> = numbers.iter().map(|x| [x.to_bits().into(), 0, 0]).collect();
    let small: Vec<[u64; 3]> = (-240..=240)
        .map(|i| [(i as f32 * 0.0417).to_bits().into(), 0, 0])
        .collect();
    let unit: Vec<[u64; 3]> = (0..400)
        .map(|i| [(0.5 + i as f32 / 266.0).to_bits().into(), 0, 0])
        .collect();
    let quotients: Vec<[u64; 3]> = small
        .iter()
        .zip(unit.iter().cycle())
        .map(|(a, b)| [a[0], b[0], 0])
        .collect();
    // Ends: what the manual's tables promise exactly.
    let ends = |values: &[f32]| -> Vec<[u64; 3]> {
        values.iter().map(|x| [x.to_bits().into(), 0, 0]).collect()
    };
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    type F = fn(f64, f64) -> f64;
    // The inputs, and the absolute and the relative bound.
    type Row<'a> = (&'a str, &'a [[u64; 3]], f64, f64, F);
    let table: [Row<'_>; 10] = [
        (
            "ex2.approx.f32 %r32, %a32;",
            &small,
            0.0,
            2.0 * ulp,
            |a, _| a.exp2(),
        ),
        (
            "ex2.approx.f32 %r32, %a32;",
            &ends(&[-inf, 0.0, -0.0, inf, nan]),
            0.0,
            0.0,
            |a, _| a.exp2(),
        ),
        // Absolute between 0.5 and 2, relative elsewhere.
        (
            "lg2.approx.f32 %r32, %a32;",
            &unit,
            2f64.powi(-22),
            0.0,
            |a, _| a.log2(),
        ),
        (
            "lg2.approx.f32 %r32, %a32;",
            &positive,
            2f64.powi(-22),
            2.0 * ulp,
            |a, _| a.log2(),
        ),
        (
            "rsqrt.approx.f32 %r32, %a32;",
            &positive,
            0.0,
            2f64.powf(-22.9),
            |a, _| 1.0 / a.sqrt(),
        ),
        ("rcp.approx.f32 %r32, %a32;", &positive, 0.0, ulp, |a, _| {
            1.0 / a
        }),
        (
            "sqrt.approx.f32 %r32, %a32;",
            &positive,
            0.0,
            ulp,
            |a, _| a.sqrt(),
        ),
        (
            "tanh.approx.f32 %r32, %a32;",
            &small,
            0.0,
            2f64.powi(-11),
            |a, _| a.tanh(),
        ),
        (
            "div.approx.f32 %r32, %a32, %b32;",
            &quotients,
            0.0,
            2.0 * ulp,
            |a, b| a / b,
        ),
        (
            "div.full.f32 %r32, %a32, %b32;",
            &quotients,
            0.0,
            2.0 * ulp,
            |a, b| a / b,
        ),
    ];
    let mut all: Vec<Case> = table
        .iter()
        .map(|(text, inputs, abs, rel, f)| {
            lanes("approximations", text, inputs, |[a, b, _]| {
                near(f(v(a), v(b)))
            })
            .compare(Compare::Within(Float::F32, 8, *abs, *rel))
        })
        .collect();
    let angles: Vec<[u64; 3]> = small
        .iter()
        .copied()
        .filter(|[a, ..]| v(*a).abs() <= std::f64::consts::PI)
        .collect();
    for (text, f) in [
        ("sin.approx.f32 %r32, %a32;", f64::sin as fn(f64) -> f64),
        ("cos.approx.f32 %r32, %a32;", f64::cos),
    ] {
        let case = lanes("approximations", text, &angles, |[a, ..]| near(f(v(a))));
        all.push(case.compare(Compare::Within(Float::F32, 8, 2f64.powf(-20.5), 0.0)));
    }
    for (text, values, wants) in [
        (
            "rcp.approx.f32 %r32, %a32;",
            vec![inf, -inf, 0.0, -0.0, nan],
            vec![0.0, -0.0, inf, -inf, nan],
        ),
        (
            "rsqrt.approx.f32 %r32, %a32;",
            vec![inf, 0.0, -0.0, -1.0, nan],
            vec![0.0, inf, -inf, nan, nan],
        ),
        (
            "lg2.approx.f32 %r32, %a32;",
            vec![inf, 0.0, -0.0, -1.0, 1.0],
            vec![inf, -inf, -inf, nan, 0.0],
        ),
        (
            "sqrt.approx.f32 %r32, %a32;",
            vec![inf, 0.0, -0.0, -1.0, nan],
            vec![inf, 0.0, -0.0, nan, nan],
        ),
        (
            "tanh.approx.f32 %r32, %a32;",
            vec![inf, -inf, nan],
            vec![1.0, -1.0, nan],
        ),
    ] {
        let find = |bits: u64| {
            let at = values.iter().position(|x| u64::from(x.to_bits()) == bits);
            at.map_or(0, |i| u64::from(wants[i].to_bits()))
        };
        let case = lanes("approximations", text, &ends(&values), |[a, ..]| find(a));
        all.push(case.compare(Compare::Floats(Float::F32, 8)));
    }
    all
}

fn doubles() -> Vec<Case> {
    let inputs: Vec<[u64; 3]> = inputs32()
        .iter()
        .map(|i| i.map(|x| v(x).to_bits()))
        .collect();
    type F = fn(f64, f64, f64) -> f64;
    let table: [(&str, F); 11] = [
        ("add.f64 %r64, %a64, %b64;", |a, b, _| a + b),
        ("sub.f64 %r64, %a64, %b64;", |a, b, _| a - b),
        ("mul.f64 %r64, %a64, %b64;", |a, b, _| a * b),
        ("fma.rn.f64 %r64, %a64, %b64, %c64;", |a, b, c| {
            a.mul_add(b, c)
        }),
        ("div.rn.f64 %r64, %a64, %b64;", |a, b, _| a / b),
        ("sqrt.rn.f64 %r64, %a64;", |a, _, _| a.sqrt()),
        ("rcp.rn.f64 %r64, %a64;", |a, _, _| 1.0 / a),
        ("neg.f64 %r64, %a64;", |a, _, _| -a),
        ("abs.f64 %r64, %a64;", |a, _, _| a.abs()),
        ("min.f64 %r64, %a64, %b64;", |a, b, _| least(a, b, false)),
        ("max.f64 %r64, %a64, %b64;", |a, b, _| -least(-a, -b, false)),
    ];
    table
        .iter()
        .map(|(text, f)| {
            lanes("f64", text, &inputs, |[a, b, c]| {
                f(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c)).to_bits()
            })
            .compare(Compare::Floats(Float::F64, 8))
        })
        .collect()
}

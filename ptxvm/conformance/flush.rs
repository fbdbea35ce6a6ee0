//! `.ftz`: subnormal f32 inputs and results become zero of their sign.

use super::floats::{exact_fma, least, near, v};
use super::soft::{Mode, to_f16};
use super::{Case, Compare, Float, lanes, triples};

/// Subnormal numbers, the smallest normal ones, and numbers whose products and differences are
/// subnormal. None rounds up to the smallest normal number: the manual does not say what becomes
/// of that.
const EDGES: [u64; 16] = [
    0x0000_0000, // 0
    0x8000_0000, // -0
    0x3F80_0000, // 1
    0xC000_0000, // -2
    0x0000_0001, // the smallest
    0x807F_FFFF, // the largest subnormal, negative
    0x0040_0000, // 2^-127
    0x0080_0000, // 2^-126, the smallest normal
    0x8080_0000,
    0x00C0_0000, // 1.5 * 2^-126
    0x1F80_0000, // 2^-64
    0xA000_0000, // -2^-63
    0x7F80_0000, // infinity
    0x7FC0_0000, // NaN
    0x7F7F_FFFF, // the largest
    0x4048_F5C3, // 3.14
];

type Op = fn(u64, u64, u64) -> u64;

/// A subnormal number as zero.
fn z(x: u64) -> u64 {
    if x & 0x7F80_0000 == 0 {
        x & 0x8000_0000
    } else {
        x
    }
}

/// The value that is read.
fn r(x: u64) -> f64 {
    v(z(x))
}

pub fn cases() -> Vec<Case> {
    let table: [(&str, Op); 20] = [
        ("add.ftz.f32 %r32, %a32, %b32;", |a, b, _| {
            z(near(r(a) + r(b)))
        }),
        ("sub.rn.ftz.f32 %r32, %a32, %b32;", |a, b, _| {
            z(near(r(a) - r(b)))
        }),
        ("mul.ftz.f32 %r32, %a32, %b32;", |a, b, _| {
            z(near(r(a) * r(b)))
        }),
        ("fma.rn.ftz.f32 %r32, %a32, %b32, %c32;", |a, b, c| {
            z(near(exact_fma(r(a), r(b), r(c))))
        }),
        ("div.rn.ftz.f32 %r32, %a32, %b32;", |a, b, _| {
            z(near(r(a) / r(b)))
        }),
        ("rcp.rn.ftz.f32 %r32, %a32;", |a, _, _| z(near(1.0 / r(a)))),
        ("sqrt.rn.ftz.f32 %r32, %a32;", |a, _, _| {
            z(near(r(a).sqrt()))
        }),
        ("neg.ftz.f32 %r32, %a32;", |a, _, _| z(a) ^ 0x8000_0000),
        ("abs.ftz.f32 %r32, %a32;", |a, _, _| z(a) & 0x7FFF_FFFF),
        ("min.ftz.f32 %r32, %a32, %b32;", |a, b, _| {
            near(least(r(a), r(b), false))
        }),
        ("max.ftz.f32 %r32, %a32, %b32;", |a, b, _| {
            near(-least(-r(a), -r(b), false))
        }),
        // In place, and in some lanes only: the others keep their subnormal numbers.
        (
            "mov.b32 %r32, %b32; @%a1 add.ftz.f32 %r32, %r32, 0f80000000;",
            |a, b, _| if a & 1 == 1 { z(b) } else { b },
        ),
        ("setp.eq.ftz.f32 %r1, %a32, %b32;", |a, b, _| {
            u64::from(r(a) == r(b))
        }),
        ("setp.lt.and.ftz.f32 %r1, %a32, %b32, %c1;", |a, b, c| {
            u64::from(r(a) < r(b)) & c & 1
        }),
        ("set.gtu.ftz.u32.f32 %r32, %a32, %b32;", |a, b, _| {
            if r(a) <= r(b) { 0 } else { 0xFFFF_FFFF }
        }),
        ("cvt.rpi.ftz.f32.f32 %r32, %a32;", |a, _, _| {
            near(r(a).ceil())
        }),
        ("cvt.rpi.ftz.u32.f32 %r32, %a32;", |a, _, _| {
            u64::from(r(a).ceil() as u32)
        }),
        ("cvt.rp.ftz.f16.f32 %r16, %a32;", |a, _, _| {
            // Of these numbers only subnormal ones would round up to the smallest half.
            to_f16(r(a), Mode::Up).into()
        }),
        ("cvt.ftz.f64.f32 %r64, %a32;", |a, _, _| r(a).to_bits()),
        (
            "cvt.f64.f32 %a64, %b32; mul.f64 %a64, %a64, 0d3FE8000000000000; \
             cvt.rn.ftz.f32.f64 %r32, %a64;",
            |_, b, _| z(near(v(b) * 0.75)),
        ),
    ];
    let inputs = triples(&EDGES, 32);
    let case = |(text, f): &(&str, Op)| {
        let f = *f;
        let float = match text {
            _ if text.contains("%r64") => Float::F64,
            _ if text.contains("%r16") => Float::F16,
            _ => Float::F32,
        };
        lanes("flushing", text, &inputs, move |[a, b, c]| f(a, b, c))
            .compare(Compare::Floats(float, 8))
    };
    let mut all: Vec<Case> = table.iter().map(case).collect();
    // nvcc writes this one for expf. The manual's bound is 2^-22 of the result.
    let exponents: Vec<[u64; 3]> = [
        -200f32, -149.5, -130.0, -126.5, -125.5, -1.5, 0.0, 3.3, 1e-40,
    ]
    .iter()
    .map(|x| [x.to_bits().into(), 0, 0])
    .collect();
    let text = "ex2.approx.ftz.f32 %r32, %a32;";
    all.push(
        lanes("flushing", text, &exponents, |[a, ..]| z(near(r(a).exp2())))
            .compare(Compare::Within(Float::F32, 8, 0.0, 2f64.powi(-22))),
    );
    all
}

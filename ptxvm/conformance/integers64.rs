//! Integer arithmetic, logic and shifts in 64 bits, and products of 32 that are 64 wide.

use super::integers::{EDGES32, EDGES64, Op64, from_top, highest, s, s16, s64};
use super::{Case, lanes, triples};

fn u64s(x: u64) -> u128 {
    u128::from(x)
}

pub fn cases() -> Vec<Case> {
    let mut all = doubles();
    all.extend(wide());
    all
}

fn doubles() -> Vec<Case> {
    let inputs = triples(&EDGES64, 64);
    let table: [(&str, Op64); 27] = [
        ("add.s64 %r64, %a64, %b64;", |a, b, _| {
            (s64(a) + s64(b)) as u64
        }),
        ("sub.s64 %r64, %a64, %b64;", |a, b, _| {
            (s64(a) - s64(b)) as u64
        }),
        ("mul.lo.s64 %r64, %a64, %b64;", |a, b, _| {
            (s64(a) * s64(b)) as u64
        }),
        ("mul.hi.u64 %r64, %a64, %b64;", |a, b, _| {
            ((u64s(a) * u64s(b)) >> 64) as u64
        }),
        ("mul.hi.s64 %r64, %a64, %b64;", |a, b, _| {
            ((s64(a) * s64(b)) >> 64) as u64
        }),
        ("mad.lo.s64 %r64, %a64, %b64, %c64;", |a, b, c| {
            (s64(a).wrapping_mul(s64(b)) as u64).wrapping_add(c)
        }),
        (
            "min.u64 %r64, %a64, %b64;",
            |a, b, _| if a < b { a } else { b },
        ),
        (
            "max.u64 %r64, %a64, %b64;",
            |a, b, _| if a > b { a } else { b },
        ),
        ("min.s64 %r64, %a64, %b64;", |a, b, _| {
            s64(a).min(s64(b)) as u64
        }),
        ("max.s64 %r64, %a64, %b64;", |a, b, _| {
            s64(a).max(s64(b)) as u64
        }),
        ("neg.s64 %r64, %a64;", |a, _, _| (-s64(a)) as u64),
        ("abs.s64 %r64, %a64;", |a, _, _| {
            s64(a).unsigned_abs() as u64
        }),
        ("and.b64 %r64, %a64, %b64;", |a, b, _| a & b),
        ("or.b64 %r64, %a64, %b64;", |a, b, _| a | b),
        ("xor.b64 %r64, %a64, %b64;", |a, b, _| a ^ b),
        ("not.b64 %r64, %a64;", |a, _, _| !a),
        ("shl.b64 %r64, %a64, %b32;", |a, b, _| {
            if b as u32 > 63 { 0 } else { a << (b as u32) }
        }),
        ("shr.u64 %r64, %a64, %b32;", |a, b, _| {
            if b as u32 > 63 { 0 } else { a >> (b as u32) }
        }),
        ("shr.s64 %r64, %a64, %b32;", |a, b, _| {
            (s64(a) >> (b as u32).min(63)) as u64
        }),
        ("clz.b64 %r32, %a64;", |a, _, _| {
            (0..64).take_while(|i| a >> (63 - i) & 1 == 0).count() as u64
        }),
        ("popc.b64 %r32, %a64;", |a, _, _| {
            (0..64).map(|i| a >> i & 1).sum()
        }),
        ("bfind.u64 %r32, %a64;", |a, _, _| {
            highest(64, |i| a >> i & 1 == 1).into()
        }),
        ("bfind.s64 %r32, %a64;", |a, _, _| {
            highest(64, |i| a >> i & 1 != a >> 63).into()
        }),
        ("bfind.shiftamt.u64 %r32, %a64;", |a, _, _| {
            from_top(64, |i| a >> i & 1 == 1).into()
        }),
        ("bfind.shiftamt.s64 %r32, %a64;", |a, _, _| {
            from_top(64, |i| a >> i & 1 != a >> 63).into()
        }),
        (
            "{ .reg .b32 %lo, %hi; mov.b64 {%lo, %hi}, %a64; mov.b64 %r64, {%hi, %lo}; }",
            |a, _, _| a.rotate_left(32),
        ),
        ("selp.b64 %r64, %a64, %b64, %c1;", |a, b, c| {
            if c % 2 == 1 { a } else { b }
        }),
    ];
    let mut all: Vec<Case> = table
        .iter()
        .map(|(text, f)| lanes("64 bits", text, &inputs, |[a, b, c]| f(a, b, c)))
        .collect();
    let mut inputs = triples(&EDGES64, 64);
    inputs.retain(|[a, b, _]| *b != 0 && (*a, *b) != (1 << 63, u64::MAX));
    let table: [(&str, Op64); 4] = [
        ("div.u64 %r64, %a64, %b64;", |a, b, _| a / b),
        ("rem.u64 %r64, %a64, %b64;", |a, b, _| a - a / b * b),
        ("div.s64 %r64, %a64, %b64;", |a, b, _| {
            (s64(a) / s64(b)) as u64
        }),
        ("rem.s64 %r64, %a64, %b64;", |a, b, _| {
            (s64(a) - s64(a) / s64(b) * s64(b)) as u64
        }),
    ];
    all.extend(
        table
            .iter()
            .map(|(text, f)| lanes("64 bits", text, &inputs, |[a, b, c]| f(a, b, c))),
    );
    all
}

fn wide() -> Vec<Case> {
    let inputs = triples(&EDGES32, 32);
    let table: [(&str, Op64); 8] = [
        ("mul.wide.u32 %r64, %a32, %b32;", |a, b, _| a * b),
        ("mul.wide.s32 %r64, %a32, %b32;", |a, b, _| {
            (s(a as u32) * s(b as u32)) as u64
        }),
        ("mad.wide.u32 %r64, %a32, %b32, %c64;", |a, b, c| {
            (u64s(a) * u64s(b) + u64s(c)) as u64
        }),
        ("mad.wide.s32 %r64, %a32, %b32, %c64;", |a, b, c| {
            (s64(s(a as u32) as u64) * s64(s(b as u32) as u64) + s64(c)) as u64
        }),
        ("mul.wide.u16 %r32, %a16, %b16;", |a, b, _| {
            (a & 0xFFFF) * (b & 0xFFFF)
        }),
        ("mul.wide.s16 %r32, %a16, %b16;", |a, b, _| {
            u64::from((s16(a as u16) * s16(b as u16)) as u32)
        }),
        ("mad.wide.u16 %r32, %a16, %b16, %c32;", |a, b, c| {
            u64::from(((a & 0xFFFF) * (b & 0xFFFF) + c) as u32)
        }),
        // A result that nobody wants must not reach what comes next.
        (
            "atom.global.or.b32 _, [%u0], 0; mul.wide.u16 %r32, %a16, %b16;",
            |a, b, _| (a & 0xFFFF) * (b & 0xFFFF),
        ),
    ];
    table
        .iter()
        .map(|(text, f)| lanes("wide products", text, &inputs, |[a, b, c]| f(a, b, c)))
        .collect()
}

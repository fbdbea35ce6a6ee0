//! Sums of several words by the carry flag (PTX ISA 8.0, 9.7.2).

use super::integers::EDGES64;
use super::{Case, lanes, triples};

type Op = fn(u64, u64, u64) -> u64;

/// In scope of a case: both inputs and the third by halves.
const HALVES: &str = "{ .reg .b32 al, ah, bl, bh, cl, ch, x; \
    mov.b64 {al, ah}, %a64; mov.b64 {bl, bh}, %b64; mov.b64 {cl, ch}, %c64;";

fn wide(x: u64) -> u128 {
    x.into()
}

fn signed(x: u64) -> i64 {
    (x as i32).into()
}

pub fn cases() -> Vec<Case> {
    let table: [(&str, Op); 12] = [
        (
            "add.cc.u32 al, al, bl; addc.u32 ah, ah, bh; mov.b64 %r64, {al, ah};",
            |a, b, _| a.wrapping_add(b),
        ),
        (
            "sub.cc.s32 al, al, bl; subc.s32 ah, ah, bh; mov.b64 %r64, {al, ah};",
            |a, b, _| a.wrapping_sub(b),
        ),
        (
            "add.cc.u32 al, al, bl; addc.cc.u32 ah, ah, bh; addc.u32 x, 0, 0; mov.b64 %r64, {ah, x};",
            |a, b, _| ((wide(a) + wide(b)) >> 32) as u64,
        ),
        (
            "sub.cc.u32 al, al, bl; subc.cc.u32 ah, ah, bh; subc.u32 x, 0, 0; mov.b64 %r64, {ah, x};",
            |a, b, _| (wide(a).wrapping_sub(wide(b)) >> 32) as u64,
        ),
        (
            "add.cc.u64 %a64, %a64, %b64; addc.u64 %r64, %c64, 0;",
            |a, b, c| c.wrapping_add(u64::from(a.checked_add(b).is_none())),
        ),
        (
            "sub.cc.s64 %a64, %a64, %b64; subc.s64 %r64, %c64, 0;",
            |a, b, c| c.wrapping_sub(u64::from(a < b)),
        ),
        (
            "mad.lo.cc.u32 cl, al, bl, cl; madc.hi.u32 ch, al, bl, ch; mov.b64 %r64, {cl, ch};",
            |a, b, c| ((a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF)).wrapping_add(c),
        ),
        (
            "mad.lo.cc.s32 cl, al, bl, cl; madc.hi.s32 ch, al, bl, ch; mov.b64 %r64, {cl, ch};",
            |a, b, c| ((signed(a) * signed(b)) as u64).wrapping_add(c),
        ),
        (
            "mad.hi.cc.u32 x, al, bl, cl; addc.u32 %r32, 0, 0;",
            |a, b, c| ((a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF) / (1 << 32) + (c & 0xFFFF_FFFF)) >> 32,
        ),
        (
            "mad.lo.cc.u64 %r64, %a64, %b64, %c64; madc.hi.u64 %r64, %a64, %b64, 0;",
            |a, b, c| ((wide(a) * wide(b) + wide(c)) >> 64) as u64,
        ),
        // The flag goes through instructions that do not set it.
        (
            "add.cc.u32 x, al, bl; add.u32 al, -1, ch; addc.u32 %r32, 0, 0;",
            |a, b, _| ((a & 0xFFFF_FFFF) + (b & 0xFFFF_FFFF)) >> 32,
        ),
        // It is each lane's own.
        (
            "add.cc.u32 x, -1, 1; @%a1 add.cc.u32 x, 0, 0; addc.u32 %r32, 0, 0;",
            |a, _, _| 1 - (a & 1),
        ),
    ];
    let inputs = triples(&EDGES64, 64);
    let case = |(text, f): &(&str, Op)| {
        let f = *f;
        let text = format!("{HALVES} {text} }}");
        lanes("carries", &text, &inputs, move |[a, b, c]| f(a, b, c))
    };
    table.iter().map(case).collect()
}

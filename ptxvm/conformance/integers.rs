//! Integer arithmetic, logic, shifts, bit fields, comparisons, predicates.

use super::{Case, lanes, triples};

pub const EDGES32: [u64; 12] = [
    0,
    1,
    2,
    7,
    31,
    32,
    0x7FFF_FFFF,
    0x8000_0000,
    0x8000_0001,
    0xFFFF_FFFF,
    0xFFFF_FF00,
    0x1234_5678,
];
const EDGES16: [u64; 9] = [0, 1, 3, 15, 16, 0x7FFF, 0x8000, 0xFFFF, 0x1234];
pub const EDGES64: [u64; 10] = [
    0,
    1,
    63,
    64,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
    u64::MAX - 1,
    0xFFFF_FFFF,
    0x1234_5678_9ABC_DEF0,
];

type Op32 = fn(u32, u32, u32) -> u32;
type Op16 = fn(u16, u16, u16) -> u16;
pub type Op64 = fn(u64, u64, u64) -> u64;

pub fn s(x: u32) -> i64 {
    i64::from(x as i32)
}

pub fn s16(x: u16) -> i32 {
    i32::from(x as i16)
}

pub fn s64(x: u64) -> i128 {
    i128::from(x as i64)
}

/// Bit `i` of `x`.
fn bit(x: u32, i: u32) -> u32 {
    x >> i & 1
}

/// The highest of `n` bits for which `f` holds; all ones where it holds for none.
pub fn highest(n: u32, f: impl Fn(u32) -> bool) -> u32 {
    (0..n).rev().find(|i| f(*i)).unwrap_or(u32::MAX)
}

/// How often a number must be shifted left until that bit is its top.
pub fn from_top(n: u32, f: impl Fn(u32) -> bool) -> u32 {
    (0..n).find(|i| f(n - 1 - i)).unwrap_or(u32::MAX)
}

/// The bits for which `f` holds.
fn bits(f: impl Fn(u32) -> bool) -> u32 {
    (0..32).fold(0, |out, i| out | u32::from(f(i)) << i)
}

pub fn cases() -> Vec<Case> {
    let mut all = arithmetic();
    all.extend(logic());
    all.extend(fields());
    all.extend(sixteen());
    all.extend(compare());
    all.extend(predicates());
    all
}

fn words(family: &'static str, table: &[(&str, Op32)]) -> Vec<Case> {
    let inputs = triples(&EDGES32, 32);
    let case = |(text, f): &(&str, Op32)| {
        let f = *f;
        lanes(family, text, &inputs, move |[a, b, c]| {
            f(a as u32, b as u32, c as u32).into()
        })
    };
    table.iter().map(case).collect()
}

fn arithmetic() -> Vec<Case> {
    let mut all = words(
        "integer arithmetic",
        &[
            ("add.u32 %r32, %a32, %b32;", |a, b, _| (s(a) + s(b)) as u32),
            ("add.s32 %r32, %a32, -5;", |a, _, _| (s(a) - 5) as u32),
            ("sub.s32 %r32, %a32, %b32;", |a, b, _| (s(a) - s(b)) as u32),
            ("mul.lo.u32 %r32, %a32, %b32;", |a, b, _| {
                (s(a) * s(b)) as u32
            }),
            ("mul.hi.u32 %r32, %a32, %b32;", |a, b, _| {
                ((u64::from(a) * u64::from(b)) >> 32) as u32
            }),
            ("mul.hi.s32 %r32, %a32, %b32;", |a, b, _| {
                ((s(a) * s(b)) >> 32) as u32
            }),
            ("mad.lo.s32 %r32, %a32, %b32, %c32;", |a, b, c| {
                (s64(s(a) as u64) * s64(s(b) as u64) + s64(s(c) as u64)) as u32
            }),
            ("mad.hi.u32 %r32, %a32, %b32, %c32;", |a, b, c| {
                (((u64::from(a) * u64::from(b)) >> 32) + u64::from(c)) as u32
            }),
            ("mad.hi.s32 %r32, %a32, %b32, %c32;", |a, b, c| {
                (((s(a) * s(b)) >> 32) + s(c)) as u32
            }),
            (
                "min.u32 %r32, %a32, %b32;",
                |a, b, _| if a < b { a } else { b },
            ),
            (
                "max.u32 %r32, %a32, %b32;",
                |a, b, _| if a > b { a } else { b },
            ),
            (
                "min.s32 %r32, %a32, %b32;",
                |a, b, _| if s(a) < s(b) { a } else { b },
            ),
            (
                "max.s32 %r32, %a32, %b32;",
                |a, b, _| if s(a) > s(b) { a } else { b },
            ),
            ("neg.s32 %r32, %a32;", |a, _, _| (-s(a)) as u32),
            ("abs.s32 %r32, %a32;", |a, _, _| s(a).unsigned_abs() as u32),
        ],
    );
    // A zero divisor is for the device to choose; so is the quotient of the lowest and -1.
    let mut inputs = triples(&EDGES32, 32);
    inputs.retain(|[a, b, _]| *b != 0 && (*a, *b) != (0x8000_0000, 0xFFFF_FFFF));
    let table: [(&str, Op32); 4] = [
        ("div.u32 %r32, %a32, %b32;", |a, b, _| a / b),
        ("rem.u32 %r32, %a32, %b32;", |a, b, _| a - a / b * b),
        ("div.s32 %r32, %a32, %b32;", |a, b, _| (s(a) / s(b)) as u32),
        ("rem.s32 %r32, %a32, %b32;", |a, b, _| {
            (s(a) - s(a) / s(b) * s(b)) as u32
        }),
    ];
    all.extend(table.iter().map(|(text, f)| {
        lanes("integer arithmetic", text, &inputs, |[a, b, c]| {
            f(a as u32, b as u32, c as u32).into()
        })
    }));
    all
}

fn logic() -> Vec<Case> {
    words(
        "logic and shifts",
        &[
            ("and.b32 %r32, %a32, %b32;", |a, b, _| {
                bits(|i| bit(a, i) + bit(b, i) == 2)
            }),
            ("or.b32 %r32, %a32, %b32;", |a, b, _| {
                bits(|i| bit(a, i) + bit(b, i) > 0)
            }),
            ("xor.b32 %r32, %a32, %b32;", |a, b, _| {
                bits(|i| bit(a, i) != bit(b, i))
            }),
            ("not.b32 %r32, %a32;", |a, _, _| bits(|i| bit(a, i) == 0)),
            ("shl.b32 %r32, %a32, %b32;", |a, b, _| {
                bits(|i| i >= b && bit(a, i - b) == 1)
            }),
            ("shr.u32 %r32, %a32, %b32;", |a, b, _| {
                bits(|i| b < 32 - i && bit(a, i + b) == 1)
            }),
            ("shr.s32 %r32, %a32, %b32;", |a, b, _| {
                bits(|i| bit(a, if b < 32 - i { i + b } else { 31 }) == 1)
            }),
            ("shf.l.wrap.b32 %r32, %a32, %b32, %c32;", |a, b, c| {
                let n = c % 32;
                bits(|i| if i >= n { bit(b, i - n) } else { bit(a, 32 + i - n) } == 1)
            }),
            ("shf.r.wrap.b32 %r32, %a32, %b32, %c32;", |a, b, c| {
                let n = c % 32;
                bits(|i| if i + n < 32 { bit(a, i + n) } else { bit(b, i + n - 32) } == 1)
            }),
            ("shf.l.clamp.b32 %r32, %a32, %b32, %c32;", |a, b, c| {
                let n = c.min(32);
                bits(|i| if i >= n { bit(b, i - n) } else { bit(a, 32 + i - n) } == 1)
            }),
            ("shf.r.clamp.b32 %r32, %a32, %b32, %c32;", |a, b, c| {
                let n = c.min(32);
                bits(|i| if i + n < 32 { bit(a, i + n) } else { bit(b, i + n - 32) } == 1)
            }),
            // (a & b) | (~a & c)
            ("lop3.b32 %r32, %a32, %b32, %c32, 0xCA;", |a, b, c| {
                bits(|i| if bit(a, i) == 1 { bit(b, i) } else { bit(c, i) } == 1)
            }),
            ("lop3.b32 %r32, %a32, %b32, %c32, 0x96;", |a, b, c| {
                a ^ b ^ c
            }),
            ("lop3.b32 %r32, %a32, %b32, %c32, 0x02;", |a, b, c| {
                !a & !b & c
            }),
            ("lop3.b32 %r32, %a32, %b32, %c32, 0x70;", |a, b, c| {
                a & !(b & c)
            }),
        ],
    )
}

/// `bfe` by the manual's definition.
fn extract(x: u32, b: u32, c: u32, signed: bool) -> u32 {
    let (pos, len) = (b & 0xFF, c & 0xFF);
    let sign = if !signed || len == 0 {
        0
    } else {
        bit(x, (pos + len - 1).min(31))
    };
    bits(|i| if i < len && pos + i <= 31 { bit(x, pos + i) } else { sign } == 1)
}

fn permute(a: u32, b: u32, c: u32) -> u32 {
    let source = [a.to_le_bytes(), b.to_le_bytes()].concat();
    u32::from_le_bytes([0, 1, 2, 3].map(|i| {
        let selector = c >> (4 * i) & 15;
        let byte = source[(selector % 8) as usize];
        match (selector >= 8, byte >= 128) {
            (false, _) => byte,
            (true, true) => 255,
            (true, false) => 0,
        }
    }))
}

fn fields() -> Vec<Case> {
    let mut all = words(
        "bit fields",
        &[
            ("bfe.u32 %r32, %a32, %b32, %c32;", |a, b, c| {
                extract(a, b, c, false)
            }),
            ("bfe.s32 %r32, %a32, %b32, %c32;", |a, b, c| {
                extract(a, b, c, true)
            }),
            ("bfe.u32 %r32, %a32, 8, 8;", |a, _, _| a / 256 % 256),
            ("bfi.b32 %r32, %a32, %b32, %c32, 5;", |a, b, c| {
                let pos = c & 0xFF;
                bits(|i| if i >= pos && i < pos + 5 { bit(a, i - pos) } else { bit(b, i) } == 1)
            }),
            ("bfi.b32 %r32, %a32, %b32, 3, %c32;", |a, b, c| {
                let len = c & 0xFF;
                bits(|i| if i >= 3 && i < 3 + len { bit(a, i - 3) } else { bit(b, i) } == 1)
            }),
            ("bfind.u32 %r32, %a32;", |a, _, _| {
                highest(32, |i| bit(a, i) == 1)
            }),
            ("bfind.s32 %r32, %a32;", |a, _, _| {
                highest(32, |i| bit(a, i) != bit(a, 31))
            }),
            ("bfind.shiftamt.u32 %r32, %a32;", |a, _, _| {
                from_top(32, |i| bit(a, i) == 1)
            }),
            ("bfind.shiftamt.s32 %r32, %a32;", |a, _, _| {
                from_top(32, |i| bit(a, i) != bit(a, 31))
            }),
            ("brev.b32 %r32, %a32;", |a, _, _| {
                bits(|i| bit(a, 31 - i) == 1)
            }),
            ("clz.b32 %r32, %a32;", |a, _, _| {
                (0..32).take_while(|i| bit(a, 31 - i) == 0).count() as u32
            }),
            ("popc.b32 %r32, %a32;", |a, _, _| {
                (0..32).map(|i| bit(a, i)).sum()
            }),
            ("prmt.b32 %r32, %a32, %b32, %c32;", permute),
            ("prmt.b32 %r32, %a32, %b32, 0x5410;", |a, b, _| {
                a & 0xFFFF | b << 16
            }),
            ("prmt.b32 %r32, %a32, %b32, 0xBA98;", |a, b, _| {
                permute(a, b, 0xBA98)
            }),
            (
                "{ .reg .b16 %lo, %hi; mov.b32 {%lo, %hi}, %a32; mov.b32 %r32, {%hi, %lo}; }",
                |a, _, _| a.rotate_left(16),
            ),
        ],
    );
    let inputs: Vec<[u64; 3]> = (0..40u64)
        .flat_map(|pos| (0..40).map(move |len| [0x8F3C_A5E1, pos, len]))
        .collect();
    for (text, signed) in [("bfe.u32", false), ("bfe.s32", true)] {
        let text = format!("{text} %r32, %a32, %b32, %c32;");
        all.push(lanes("bit fields", &text, &inputs, move |[a, b, c]| {
            extract(a as u32, b as u32, c as u32, signed).into()
        }));
    }
    all
}

fn sixteen() -> Vec<Case> {
    let inputs = triples(&EDGES16, 16);
    let table: [(&str, Op16); 18] = [
        ("add.u16 %r16, %a16, %b16;", |a, b, _| {
            (s16(a) + s16(b)) as u16
        }),
        ("sub.s16 %r16, %a16, %b16;", |a, b, _| {
            (s16(a) - s16(b)) as u16
        }),
        ("mul.lo.u16 %r16, %a16, %b16;", |a, b, _| {
            (i64::from(a) * i64::from(b)) as u16
        }),
        ("mad.lo.s16 %r16, %a16, %b16, %c16;", |a, b, c| {
            (s16(a) * s16(b) + s16(c)) as u16
        }),
        ("min.s16 %r16, %a16, %b16;", |a, b, _| {
            s16(a).min(s16(b)) as u16
        }),
        ("max.s16 %r16, %a16, %b16;", |a, b, _| {
            s16(a).max(s16(b)) as u16
        }),
        (
            "min.u16 %r16, %a16, %b16;",
            |a, b, _| if a < b { a } else { b },
        ),
        (
            "max.u16 %r16, %a16, %b16;",
            |a, b, _| if a > b { a } else { b },
        ),
        ("neg.s16 %r16, %a16;", |a, _, _| (-s16(a)) as u16),
        ("abs.s16 %r16, %a16;", |a, _, _| {
            s16(a).unsigned_abs() as u16
        }),
        ("and.b16 %r16, %a16, %b16;", |a, b, _| a & b),
        ("or.b16 %r16, %a16, %b16;", |a, b, _| a | b),
        ("xor.b16 %r16, %a16, %b16;", |a, b, _| a ^ b),
        ("not.b16 %r16, %a16;", |a, _, _| !a),
        (
            "shl.b16 %r16, %a16, %b32;",
            |a, b, _| if b > 15 { 0 } else { a << b },
        ),
        (
            "shr.u16 %r16, %a16, %b32;",
            |a, b, _| if b > 15 { 0 } else { a >> b },
        ),
        ("shr.s16 %r16, %a16, %b32;", |a, b, _| {
            (s16(a) >> b.min(15)) as u16
        }),
        // The upper bits of a wider register are not part of a 16-bit value.
        (
            "{ .reg .b16 %n; cvt.u16.u32 %n, %a32; min.u16 %r16, %n, %b16; }",
            |a, b, _| {
                if a < b { a } else { b }
            },
        ),
    ];
    let mut all: Vec<Case> = table
        .iter()
        .map(|(text, f)| {
            lanes("16 bits", text, &inputs, |[a, b, c]| {
                f(a as u16, b as u16, c as u16).into()
            })
        })
        .collect();
    let mut inputs = triples(&EDGES16, 16);
    inputs.retain(|[_, b, _]| *b != 0);
    let table: [(&str, Op16); 2] = [
        ("div.u16 %r16, %a16, %b16;", |a, b, _| a / b),
        ("rem.u16 %r16, %a16, %b16;", |a, b, _| a - a / b * b),
    ];
    all.extend(table.iter().map(|(text, f)| {
        lanes("16 bits", text, &inputs, |[a, b, c]| {
            f(a as u16, b as u16, c as u16).into()
        })
    }));
    all
}

fn compare() -> Vec<Case> {
    let mut all = Vec::new();
    type Test = fn(std::cmp::Ordering) -> bool;
    let tests: [(&str, Test); 6] = [
        ("eq", |o| o.is_eq()),
        ("ne", |o| o.is_ne()),
        ("lt", |o| o.is_lt()),
        ("le", |o| o.is_le()),
        ("gt", |o| o.is_gt()),
        ("ge", |o| o.is_ge()),
    ];
    type Order = fn(u64, u64) -> std::cmp::Ordering;
    let types: [(&str, u32, &[u64], Order); 6] = [
        ("u16", 16, &EDGES16, |a, b| (a as u16).cmp(&(b as u16))),
        ("s16", 16, &EDGES16, |a, b| (a as i16).cmp(&(b as i16))),
        ("u32", 32, &EDGES32, |a, b| (a as u32).cmp(&(b as u32))),
        ("s32", 32, &EDGES32, |a, b| (a as i32).cmp(&(b as i32))),
        ("u64", 64, &EDGES64, |a, b| a.cmp(&b)),
        ("s64", 64, &EDGES64, |a, b| (a as i64).cmp(&(b as i64))),
    ];
    for (ty, width, values, order) in types {
        let inputs = triples(values, width);
        for (name, test) in tests {
            let text = format!("setp.{name}.{ty} %r1, %a{width}, %b{width};");
            all.push(lanes("comparisons", &text, &inputs, move |[a, b, _]| {
                test(order(a, b)).into()
            }));
        }
    }
    let inputs = triples(&EDGES32, 32);
    for (name, test) in [
        ("lo", tests[2].1),
        ("ls", tests[3].1),
        ("hi", tests[4].1),
        ("hs", tests[5].1),
    ] {
        let text = format!("setp.{name}.u32 %r1, %a32, %b32;");
        all.push(lanes("comparisons", &text, &inputs, move |[a, b, _]| {
            test(a.cmp(&b)).into()
        }));
    }
    for (name, f) in [
        ("and", (|x, y| x && y) as fn(bool, bool) -> bool),
        ("or", |x, y| x || y),
        ("xor", |x, y| x != y),
    ] {
        // The second result is the same with the comparison turned round.
        let text = format!(
            "{{ .reg .pred %p, %q; setp.lt.{name}.u32 %p|%q, %a32, %b32, %c1; \
             selp.b32 %r32, 1, 0, %p; selp.b32 %t3, 2, 0, %q; add.u32 %r32, %r32, %t3; }}"
        );
        all.push(lanes("comparisons", &text, &inputs, move |[a, b, c]| {
            let c = c % 2 == 1;
            u64::from(f(a < b, c)) + 2 * u64::from(f(a >= b, c))
        }));
        let text = format!("setp.lt.{name}.u32 %r1, %a32, %b32, !%c1;");
        all.push(lanes("comparisons", &text, &inputs, move |[a, b, c]| {
            f(a < b, c % 2 == 0).into()
        }));
    }
    let table: [(&str, Op32); 3] = [
        ("set.lt.u32.u32 %r32, %a32, %b32;", |a, b, _| {
            if a < b { u32::MAX } else { 0 }
        }),
        ("set.lt.u32.s32 %r32, %a32, %b32;", |a, b, _| {
            if s(a) < s(b) { u32::MAX } else { 0 }
        }),
        ("set.ge.f32.u32 %r32, %a32, %b32;", |a, b, _| {
            if a >= b { 0x3F80_0000 } else { 0 }
        }),
    ];
    all.extend(words("comparisons", &table));
    all
}

fn predicates() -> Vec<Case> {
    let inputs: Vec<[u64; 3]> = (0..8).map(|i| [i & 1, i >> 1 & 1, i >> 2]).collect();
    let table: [(&str, Op64); 11] = [
        ("and.pred %r1, %a1, %b1;", |a, b, _| a & b),
        ("or.pred %r1, %a1, %b1;", |a, b, _| a | b),
        ("xor.pred %r1, %a1, %b1;", |a, b, _| a ^ b),
        ("not.pred %r1, %a1;", |a, _, _| 1 - a),
        ("xor.pred %r1, %a1, -1;", |a, _, _| 1 - a),
        ("and.pred %r1, %a1, 0;", |_, _, _| 0),
        ("not.pred %r1, -1;", |_, _, _| 0),
        ("mov.pred %r1, %a1;", |a, _, _| a),
        ("selp.b32 %r32, 10, 20, %a1;", |a, _, _| 20 - 10 * a),
        ("@%a1 mov.u32 %r32, 7;", |a, _, _| 7 * a),
        ("@!%a1 mov.u32 %r32, 7;", |a, _, _| 7 - 7 * a),
    ];
    table
        .iter()
        .map(|(text, f)| lanes("predicates", text, &inputs, |[a, b, c]| f(a, b, c)))
        .collect()
}

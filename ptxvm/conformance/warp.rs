//! Lanes and warps that meet: shuffles, votes, matches, reductions, divergence, barriers.

use super::Argument::{In, Out};
use super::{Case, Random, bytes32};

const TEXT: &str = include_str!("warp.ptx");

/// A warp-wide instruction; `want` gives each lane's result and predicate.
fn meet(family: &'static str, text: &str, x: &[u32], want: impl Fn(u32) -> (u32, bool)) -> Case {
    Case::new(
        family,
        text,
        &TEXT.replace("THE_INSTRUCTION", text),
        "meet",
        vec![Out(vec![]), In(bytes32(x.iter().copied()))],
        bytes32((0..32).flat_map(|t| {
            let (r, p) = want(t);
            [r, p.into()]
        })),
    )
}

fn numbers() -> Vec<u32> {
    let mut random = Random(8);
    (0..32).map(|_| random.next() as u32).collect()
}

pub fn cases() -> Vec<Case> {
    let mut all = shuffles();
    all.extend(votes());
    all.extend(matches());
    all.extend(reductions());
    all.extend(control());
    all
}

fn shuffles() -> Vec<Case> {
    let x = numbers();
    let mut all = Vec::new();
    for width in [32u32, 16, 8, 4, 2] {
        // As __shfl_sync packs them: the segment's mask above, the clamp below.
        let segment = (32 - width) << 8;
        for by in [0u32, 1, 3, 5, 16, 31] {
            let base = |t: u32| t / width * width;
            let inside = move |t: u32, j: i64| {
                let ok = j >= i64::from(base(t)) && j < i64::from(base(t) + width);
                (if ok { j as u32 } else { t }, ok)
            };
            let up = move |t: u32| inside(t, i64::from(t) - i64::from(by));
            let down = move |t: u32| inside(t, i64::from(t + by));
            // A lower segment may be read, a higher one not.
            let bfly = move |t: u32| {
                let (j, last) = (t ^ by, base(t) + width - 1);
                if j <= last { (j, true) } else { (t, false) }
            };
            let idx = move |t: u32| (base(t) + by % width, true);
            type Source<'a> = &'a dyn Fn(u32) -> (u32, bool);
            let modes: [(&str, u32, Source<'_>); 4] = [
                ("up", 0, &up),
                ("down", 31, &down),
                ("bfly", 31, &bfly),
                ("idx", 31, &idx),
            ];
            for (mode, clamp, from) in modes {
                let c = segment | clamp;
                let text = format!("shfl.sync.{mode}.b32 %r|%p, %x, {by}, {c}, -1;");
                all.push(meet("shuffles", &text, &x, |t| {
                    let (source, ok) = from(t);
                    (x[source as usize], ok)
                }));
            }
        }
    }
    // Each lane its own source.
    all.push(meet(
        "shuffles",
        "shfl.sync.idx.b32 %r|%p, %x, %x, 31, -1;",
        &x,
        |t| (x[(x[t as usize] % 32) as usize], true),
    ));
    // Half a warp.
    all.push(meet(
        "shuffles",
        "@%low shfl.sync.down.b32 %r|%p, %x, 4, 0x181F, 0xFF;",
        &x,
        |t| {
            if t < 8 {
                (x[(if t < 4 { t + 4 } else { t }) as usize], t < 4)
            } else {
                (0, false)
            }
        },
    ));
    all
}

fn votes() -> Vec<Case> {
    let x = numbers();
    let vote = |text: &str, want: &dyn Fn(u32) -> (u32, bool)| meet("votes", text, &x, want);
    vec![
        vote("vote.sync.ballot.b32 %r, %odd, -1;", &|_| {
            (0xAAAA_AAAA, false)
        }),
        vote("vote.sync.ballot.b32 %r, !%low, -1;", &|_| {
            (0xFFFF_FF00, false)
        }),
        vote("vote.sync.any.pred %p, %odd, -1;", &|_| (0, true)),
        vote("vote.sync.all.pred %p, %odd, -1;", &|_| (0, false)),
        vote("vote.sync.uni.pred %p, %odd, -1;", &|_| (0, false)),
        vote("@%low vote.sync.all.pred %p, %low, 0xFF;", &|t| (0, t < 8)),
        vote("@%low vote.sync.uni.pred %p, !%low, 0xFF;", &|t| (0, t < 8)),
        vote("@%low vote.sync.any.pred %p, !%low, 0xFF;", &|_| (0, false)),
        vote("@%low vote.sync.ballot.b32 %r, %odd, 0xFF;", &|t| {
            (if t < 8 { 0xAA } else { 0 }, false)
        }),
        vote("@%odd activemask.b32 %r;", &|t| {
            (if t % 2 == 1 { 0xAAAA_AAAA } else { 0 }, false)
        }),
        vote("mov.u32 %r, %lanemask_lt;", &|t| {
            (((1u64 << t) - 1) as u32, false)
        }),
        vote("mov.u32 %r, %lanemask_le;", &|t| {
            (((2u64 << t) - 1) as u32, false)
        }),
        vote("mov.u32 %r, %lanemask_eq;", &|t| (1 << t, false)),
        vote("mov.u32 %r, %lanemask_ge;", &|t| {
            (!((1u64 << t) - 1) as u32, false)
        }),
        vote("mov.u32 %r, %lanemask_gt;", &|t| {
            (!((2u64 << t) - 1) as u32, false)
        }),
        vote("bar.warp.sync -1; mov.u32 %r, 1;", &|_| (1, false)),
    ]
}

fn matches() -> Vec<Case> {
    let x: Vec<u32> = numbers().iter().map(|v| v % 5).collect();
    let same = |t: u32| {
        (0..32)
            .filter(|j| x[*j as usize] == x[t as usize])
            .fold(0, |m, j| m | 1 << j)
    };
    let alike = vec![7; 32];
    vec![
        meet("matches", "match.any.sync.b32 %r, %x, -1;", &x, |t| {
            (same(t), false)
        }),
        meet("matches", "match.all.sync.b32 %r|%p, %x, -1;", &x, |_| {
            (0, false)
        }),
        meet(
            "matches",
            "match.all.sync.b32 %r|%p, %x, -1;",
            &alike,
            |_| (u32::MAX, true),
        ),
        meet(
            "matches",
            "@%low match.any.sync.b32 %r, %x, 0xFF;",
            &x,
            |t| (if t < 8 { same(t) & 0xFF } else { 0 }, false),
        ),
        meet(
            "matches",
            "{ .reg .b64 %w; mov.b64 %w, {%s, %x}; match.any.sync.b64 %r, %w, -1; }",
            &x,
            |t| (same(t), false),
        ),
    ]
}

fn reductions() -> Vec<Case> {
    let x = numbers();
    let signed = || x.iter().map(|v| *v as i32);
    let fold = |f: fn(u32, u32) -> u32| x.iter().copied().reduce(f).unwrap_or(0);
    let table = [
        ("add.u32", fold(u32::wrapping_add)),
        ("add.s32", fold(u32::wrapping_add)),
        ("min.u32", fold(u32::min)),
        ("max.u32", fold(u32::max)),
        ("min.s32", signed().min().unwrap_or(0) as u32),
        ("max.s32", signed().max().unwrap_or(0) as u32),
        ("and.b32", fold(|a, b| a & b)),
        ("or.b32", fold(|a, b| a | b)),
        ("xor.b32", fold(|a, b| a ^ b)),
    ];
    let mut all: Vec<Case> = table
        .iter()
        .map(|(op, want)| {
            let text = format!("redux.sync.{op} %r, %x, -1;");
            meet("reductions", &text, &x, |_| (*want, false))
        })
        .collect();
    let low = x[..8].iter().fold(0u32, |s, v| s.wrapping_add(*v));
    all.push(meet(
        "reductions",
        "@%low redux.sync.add.u32 %r, %x, 0xFF;",
        &x,
        |t| (if t < 8 { low } else { 0 }, false),
    ));
    all
}

fn control() -> Vec<Case> {
    let plain = TEXT.replace("THE_INSTRUCTION", "");
    let case = |name, kernel, want| {
        Case::new(
            "divergence and barriers",
            name,
            &plain,
            kernel,
            vec![Out(vec![])],
            want,
        )
    };
    let sum = |t: u32| {
        let rounds = t.min(20);
        rounds.div_ceil(2) + 100 * (rounds / 2) + if t >= 20 { 5000 } else { 0 }
    };
    // Each round adds the next warp's number: with 4 warps, binomial sums round a circle.
    let mut x: Vec<u32> = (0..128).collect();
    for _ in 0..4 {
        x = (0..128).map(|t| x[t] + x[(t + 32) % 128]).collect();
    }
    vec![
        case(
            "a loop of ifs",
            "diverge",
            bytes32((0..64).flat_map(|t| [sum(t), sum(t ^ 1)])),
        )
        .block(64),
        case(
            "lanes that return early",
            "leave",
            bytes32((0..32).map(|t| match t {
                0..4 => 0xF,
                4..16 => 0xFFFF,
                _ => 1,
            })),
        ),
        case("rounds of barriers", "rounds", bytes32(x)).block(128),
    ]
}

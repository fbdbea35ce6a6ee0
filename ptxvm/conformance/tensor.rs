//! Matrix products and their fragments, asynchronous copies.

use super::Argument::{In, Out, U32};
use super::soft::{Mode, f16_value, to_bf16, to_f16};
use super::{Case, Compare, Float, Random, bytes16, bytes32};

const TEXT: &str = include_str!("tensor.ptx");

fn text(product: &str, load: &str, copy: &str, size: usize) -> String {
    TEXT.replace("THE_PRODUCT", product)
        .replace("THE_LOAD", load)
        .replace("THE_COPY", copy)
        .replace("THE_SIZE", &size.to_string())
}

pub fn cases() -> Vec<Case> {
    let mut all = products();
    all.extend(matrices());
    all.extend(copies());
    all
}

/// Row and column of element `i` of lane `lane` in A (16, k), as the manual draws it (9.7.14.5.7 and
/// .8): `i` counts halves, two a register.
fn place_a(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let row = if i % 4 < 2 { group } else { group + 8 };
    let col = thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 };
    (row, col)
}

fn place_b(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    (thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group)
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

fn products() -> Vec<Case> {
    let mut all = Vec::new();
    for (k, a, b) in [
        (16, "{%a0, %a1, %a2, %a3}", "{%b0, %b1}"),
        (8, "{%a0, %a1}", "{%b0}"),
    ] {
        for (ty, acc) in [("f16", "f32"), ("bf16", "f32"), ("f16", "f16")] {
            let (d, c) = if acc == "f16" {
                ("{%d0, %d1}", "{%c0, %c1}")
            } else {
                ("{%d0, %d1, %d2, %d3}", "{%c0, %c1, %c2, %c3}")
            };
            let line = format!(
                "mma.sync.aligned.m16n8k{k}.row.col.{acc}.{ty}.{ty}.{acc} {d}, {a}, {b}, {c};"
            );
            // Small integers are exact in any order of the sum; fractions are not.
            for exact in [true, false] {
                all.push(product(&line, k, ty == "bf16", acc == "f16", exact));
            }
        }
    }
    all
}

fn product(line: &str, k: usize, bf16: bool, half_acc: bool, exact: bool) -> Case {
    let mut random = Random(k as u64 + u64::from(exact));
    let mut draw = || {
        let x = if exact {
            (random.next() % 9) as f64 - 4.0
        } else {
            (random.next() % 4096) as f64 / 1024.0 - 2.0
        };
        let bits = if bf16 {
            to_bf16(x, Mode::Nearest)
        } else {
            to_f16(x, Mode::Nearest)
        };
        let value = if bf16 {
            Float::Bf16.value(bits.into())
        } else {
            f16_value(bits)
        };
        (bits, value)
    };
    let a: Vec<Vec<(u16, f64)>> = (0..16).map(|_| (0..k).map(|_| draw()).collect()).collect();
    let b: Vec<Vec<(u16, f64)>> = (0..k).map(|_| (0..8).map(|_| draw()).collect()).collect();
    let c: Vec<Vec<f64>> = (0..16)
        .map(|_| (0..8).map(|_| draw().1).collect())
        .collect();
    let mut input = Vec::new();
    let mut want = Vec::new();
    for lane in 0..32 {
        let mut halves: Vec<u16> = (0..k / 2)
            .map(|i| place_a(lane, i))
            .map(|(r, j)| a[r][j].0)
            .collect();
        halves.resize(8, 0);
        halves.extend((0..k / 4).map(|i| place_b(lane, i)).map(|(r, j)| b[r][j].0));
        halves.resize(16, 0);
        input.extend(bytes16(halves));
        let places: Vec<(usize, usize)> = (0..4).map(|i| place_c(lane, i)).collect();
        let d = places
            .iter()
            .map(|(r, j)| c[*r][*j] + (0..k).map(|x| a[*r][x].1 * b[x][*j].1).sum::<f64>());
        if half_acc {
            input.extend(bytes16(
                places.iter().map(|(r, j)| to_f16(c[*r][*j], Mode::Nearest)),
            ));
            input.extend([0; 8]);
            want.extend(bytes16(d.map(|x| to_f16(x, Mode::Nearest))));
            want.extend([0; 8]);
        } else {
            input.extend(bytes32(
                places.iter().map(|(r, j)| (c[*r][*j] as f32).to_bits()),
            ));
            want.extend(bytes32(d.map(|x| (x as f32).to_bits())));
        }
    }
    let kind = if exact { "integers" } else { "fractions" };
    let case = Case::new(
        "matrix products",
        &format!("{line} of {kind}"),
        &text(line, "", "", 16),
        "product",
        vec![Out(vec![]), In(input)],
        want,
    );
    match (exact, half_acc) {
        (true, _) => case,
        // A rounding to f16 after each group of products that a device may sum at once.
        (false, true) => case.compare(Compare::Within(Float::F16, 2, 0.05, 2f64.powi(-9))),
        (false, false) => case.compare(Compare::Within(Float::F32, 4, 1e-5, 1e-5)),
    }
}

fn matrices() -> Vec<Case> {
    let mut random = Random(11);
    let halves: Vec<u16> = (0..256).map(|_| random.next() as u16).collect();
    let mut all = Vec::new();
    for (num, d) in [(1, "{%d0}"), (2, "{%d0, %d1}"), (4, "{%d0, %d1, %d2, %d3}")] {
        for trans in [false, true] {
            let dot = if trans { ".trans" } else { "" };
            let line = format!("ldmatrix.sync.aligned.m8n8.x{num}{dot}.shared.b16 {d}, [%here];");
            // Lane 8 m + r names row r of matrix m.
            let element = |m: usize, r: usize, c: usize| halves[(8 * m + r) * 5 % 32 * 8 + c];
            let want = (0..32usize).flat_map(|lane| {
                (0..4).flat_map(move |m| {
                    [0, 1].map(|half| {
                        let (r, c) = (lane / 4, lane % 4 * 2 + half);
                        match (m < num, trans) {
                            (false, _) => 0,
                            (true, false) => element(m, r, c),
                            (true, true) => element(m, c, r),
                        }
                    })
                })
            });
            all.push(Case::new(
                "ldmatrix",
                &line,
                &text("", &line, "", 16),
                "matrices",
                vec![Out(vec![]), In(bytes16(halves.iter().copied()))],
                bytes16(want),
            ));
        }
    }
    all
}

fn copies() -> Vec<Case> {
    let mut random = Random(12);
    let data: Vec<u8> = (0..512).map(|_| random.next() as u8).collect();
    let mut all = Vec::new();
    let table = [
        ("ca", 4, 4),
        ("ca", 8, 8),
        ("ca", 16, 16),
        ("cg", 16, 16),
        ("ca", 16, 5),
        ("cg", 16, 0),
        ("ca", 4, 3),
        ("ca", 8, 0),
    ];
    for (cache, bytes, size) in table {
        for waits in [
            "cp.async.commit_group; cp.async.wait_group 0;",
            "cp.async.wait_all;",
        ] {
            let line =
                format!("cp.async.{cache}.shared.global [%here], [%in], {bytes}, %size; {waits}");
            let want = (0..32).flat_map(|lane| {
                let data = &data;
                (0..16).map(move |i| match i {
                    i if i < size => data[lane * bytes + i],
                    i if i < bytes => 0,
                    _ => 0x5A,
                })
            });
            all.push(Case::new(
                "cp.async",
                &format!("{line} of {size}"),
                &text("", "", &line, bytes),
                "copy",
                vec![Out(vec![]), In(data.clone()), U32(size as u32)],
                want.collect(),
            ));
        }
    }
    let words: Vec<u32> = (0..512).map(|_| random.next() as u32).collect();
    let want = (0..32).map(|t| {
        (0..4).fold(0u32, |sum, i| {
            let tile = &words[128 * i..128 * (i + 1)];
            sum.wrapping_mul(3).wrapping_add(tile[t]) ^ tile[t + 96]
        })
    });
    all.push(Case::new(
        "cp.async",
        "groups in turn",
        &text("", "", "", 16),
        "pipeline",
        vec![Out(vec![]), In(bytes32(words.iter().copied()))],
        bytes32(want),
    ));
    all
}

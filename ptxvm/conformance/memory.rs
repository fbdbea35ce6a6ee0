//! Loads, stores, atomics: every width, vector and kind of memory.

use super::Argument::{In, Out, U32, U64};
use super::{Case, Compare, Float, Random, bytes32};

const TEXT: &str = include_str!("memory.ptx");

/// The file, with one of its kernels filled in and the other templates taken out.
fn text(kernel: &str, fill: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for part in TEXT.split_inclusive("\n}\n") {
        let template = ["copy", "extend", "atomic"]
            .into_iter()
            .find(|k| part.contains(&format!(".entry {k}(")));
        match template {
            Some(k) if k == kernel => {
                out += &fill
                    .iter()
                    .fold(part.to_string(), |t, (from, to)| t.replace(from, to));
            }
            // The head of the file stands before the first of them.
            Some("copy") => out += part.split("// Every").next().unwrap_or_default(),
            Some(_) => {}
            None => out += part,
        }
    }
    out
}

fn random(bytes: usize) -> Vec<u8> {
    let mut random = Random(5);
    (0..bytes).map(|_| random.next() as u8).collect()
}

pub fn cases() -> Vec<Case> {
    let mut all = copies();
    all.extend(extensions());
    all.extend(kinds());
    all.extend(atomics());
    all
}

fn copies() -> Vec<Case> {
    let mut all = Vec::new();
    for (ty, bytes, class) in [
        ("b8", 1, 16),
        ("b16", 2, 16),
        ("b32", 4, 32),
        ("b64", 8, 64),
    ] {
        for (vector, n) in [("", 1), ("v2.", 2), ("v4.", 4)] {
            if n * bytes > 16 {
                continue;
            }
            let names: Vec<String> = (0..n).map(|i| format!("%v{i}")).collect();
            let list = names.join(", ");
            let parts = if n == 1 {
                list.clone()
            } else {
                format!("{{{list}}}")
            };
            let fill = [
                ("THE_BYTES", &*(n * bytes).to_string()),
                ("THE_REGISTERS", &*format!(".reg .b{class} {list};")),
                ("THE_TYPE", &*format!("{vector}{ty}")),
                ("THE_PARTS", &*parts),
            ];
            let data = random(32 * n * bytes);
            all.push(Case::new(
                "loads and stores",
                &format!("ld and st .{vector}{ty}"),
                &text("copy", &fill),
                "copy",
                vec![Out(vec![]), In(data.clone())],
                data,
            ));
        }
    }
    all
}

fn extensions() -> Vec<Case> {
    let data = random(128);
    let words: Vec<u32> = data
        .chunks(4)
        .map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u32::from(*b)))
        .collect();
    type Extend = fn(u32) -> i64;
    // A word is sign-extended to be added; a narrower one fills both registers alike.
    let table: [(&str, Extend); 6] = [
        ("u8", |w| 2 * i64::from(w as u8)),
        ("s8", |w| 2 * i64::from(w as i8)),
        ("u16", |w| 2 * i64::from(w as u16)),
        ("s16", |w| 2 * i64::from(w as i16)),
        ("u32", |w| i64::from(w) + i64::from(w as i32)),
        ("s32", |w| 2 * i64::from(w as i32)),
    ];
    let case = |(ty, f): &(&str, Extend)| {
        Case::new(
            "loads and stores",
            &format!("ld.{ty} into wider registers"),
            &text("extend", &[("THE_TYPE", ty)]),
            "extend",
            vec![Out(vec![]), In(data.clone())],
            words.iter().flat_map(|w| f(*w).to_le_bytes()).collect(),
        )
    };
    table.iter().map(case).collect()
}

fn kinds() -> Vec<Case> {
    let plain = text("none", &[]);
    let mut random = Random(6);
    let numbers: Vec<u32> = (0..64).map(|_| random.next() as u32).collect();
    let case =
        |name, kernel, args, want| Case::new("kinds of memory", name, &plain, kernel, args, want);
    let fields = [[0xD4, 0xC3, 0xB2, 0xA1], [0xFE, 0xFF, 0x80, 0x81]].concat();
    let mut struct_bytes = [0; 8];
    struct_bytes.copy_from_slice(&fields);
    vec![
        case(
            "a struct argument",
            "structs",
            vec![Out(vec![]), U64(u64::from_le_bytes(struct_bytes)), U32(77)],
            bytes32([0xA1B2_C3D4, -2i32 as u32, -128i32 as u32, 0x81, 77]),
        )
        .block(1),
        case(
            "shared and generic",
            "turn",
            vec![Out(vec![]), In(bytes32(numbers.clone()))],
            bytes32(numbers.iter().rev().copied()),
        )
        .block(64),
        case(
            "local and generic",
            "own",
            vec![Out(vec![])],
            bytes32((0..48).map(|t| 10 * t + t % 8 + ((10 * t + 1) << 16))),
        )
        .block(48),
        case(
            "constants and variables",
            "constants",
            vec![Out(vec![])],
            bytes32((0..32).map(|t| 1000 + 11 * (t % 4 + 1))),
        ),
        case(
            "special registers",
            "places",
            vec![Out(vec![])],
            bytes32((0..3).flat_map(|b| (0..40).flat_map(move |t| [b, t, 3, t % 32]))),
        )
        .block(40)
        .grid(3),
    ]
}

/// 64 threads combine numbers into one; the result does not depend on their order.
fn atomics() -> Vec<Case> {
    let mut random = Random(7);
    let values: Vec<u64> = (0..64).map(|_| random.next()).collect();
    let small: Vec<u64> = (1..=64).collect();
    let floats: Vec<u64> = (1..=64)
        .map(|i| u64::from((i as f32 * 0.5).to_bits()))
        .collect();
    let low = |v: &[u64]| v.iter().map(|x| *x as u32).collect::<Vec<_>>();
    let sum = low(&values).iter().fold(0u32, |s, x| s.wrapping_add(*x));
    let signed = |v: &[u64]| v.iter().map(|x| *x as i32).collect::<Vec<_>>();
    let start: u64 = 0x0000_0001_1234_5678;
    let s32 = start as u32;
    let red = |op: &str| format!("red.global.{op} [%out], %x32;");
    let wide = |op: &str| format!("red.global.{op} [%out], %x64;");
    let keep = |x: u32| start >> 32 << 32 | u64::from(x);
    let table: Vec<(String, &[u64], u64, u64)> = vec![
        (red("add.u32"), &values, start, keep(s32.wrapping_add(sum))),
        (
            red("min.u32"),
            &values,
            start,
            keep(low(&values).into_iter().fold(s32, u32::min)),
        ),
        (
            red("max.u32"),
            &values,
            start,
            keep(low(&values).into_iter().fold(s32, u32::max)),
        ),
        (
            red("min.s32"),
            &values,
            start,
            keep(signed(&values).into_iter().fold(s32 as i32, i32::min) as u32),
        ),
        (
            red("max.s32"),
            &values,
            start,
            keep(signed(&values).into_iter().fold(s32 as i32, i32::max) as u32),
        ),
        (
            red("and.b32"),
            &values,
            start,
            keep(low(&values).into_iter().fold(s32, |a, b| a & b)),
        ),
        (
            red("or.b32"),
            &values,
            start,
            keep(low(&values).into_iter().fold(s32, |a, b| a | b)),
        ),
        (
            red("xor.b32"),
            &values,
            start,
            keep(low(&values).into_iter().fold(s32, |a, b| a ^ b)),
        ),
        (red("add.f32"), &floats, 0, u64::from(1040f32.to_bits())),
        (
            wide("add.u64"),
            &values,
            start,
            values.iter().fold(start, |s, x| s.wrapping_add(*x)),
        ),
        (
            wide("min.s64"),
            &values,
            start,
            values.iter().fold(start as i64, |a, b| a.min(*b as i64)) as u64,
        ),
        (
            wide("max.u64"),
            &values,
            start,
            values.iter().fold(start, |a, b| a.max(*b)),
        ),
        (
            wide("xor.b64"),
            &values,
            start,
            values.iter().fold(start, |a, b| a ^ b),
        ),
        // Counts to 10 and begins again; 64 steps from 3.
        (
            "atom.global.inc.u32 %old32, [%out], 10;".into(),
            &small,
            3,
            (3 + 64) % 11,
        ),
        // Down from 3 to 0, then from 10.
        (
            "atom.global.dec.u32 %old32, [%out], 10;".into(),
            &small,
            3,
            3 + 11 * 6 - 64,
        ),
        // Only one of them finds the 5.
        (
            "atom.global.cas.b32 %old32, [%out], 5, 9;".into(),
            &small,
            5,
            9,
        ),
        (
            "atom.global.cas.b32 %old32, [%out], 6, 9;".into(),
            &small,
            5,
            5,
        ),
        (
            "@%first atom.global.exch.b32 %old32, [%out], 42;".into(),
            &small,
            5,
            42,
        ),
        (
            "@%first atom.global.exch.b64 %old64, [%out], %x64;".into(),
            &small,
            5,
            1,
        ),
        (
            "@%first atom.global.cas.b64 %old64, [%out], 5, 1234567890123;".into(),
            &small,
            5,
            1_234_567_890_123,
        ),
        // What was there comes back: 0 to 63 once each, squared and summed.
        (
            "add.u64 %out, %out, 4; atom.global.add.u32 %old32, [%out], 1; sub.u64 %out, %out, 4; \
             mul.lo.u32 %old32, %old32, %old32; red.global.add.u32 [%out], %old32;"
                .into(),
            &small,
            0,
            64 << 32 | (0..64).map(|i| i * i).sum::<u64>(),
        ),
        // In shared memory.
        (
            "mov.u64 %new64, 0; @%first st.shared.u64 [cell], %new64; bar.sync 0; \
             atom.shared.add.u32 %old32, [cell], %x32; bar.sync 0; \
             ld.shared.u64 %new64, [cell]; @%first st.global.u64 [%out], %new64;"
                .into(),
            &small,
            0,
            64 * 65 / 2,
        ),
    ];
    let case = |(op, values, start, want): (String, &[u64], u64, u64)| {
        let float = op.contains("f32");
        let case = Case::new(
            "atomics",
            &op.clone(),
            &text("atomic", &[("THE_ATOMIC", &op)]),
            "atomic",
            vec![
                Out(start.to_le_bytes().into()),
                In(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ],
            want.to_le_bytes().into(),
        )
        .block(64);
        if float {
            case.compare(Compare::Floats(Float::F32, 4))
        } else {
            case
        }
    };
    table.into_iter().map(case).collect()
}

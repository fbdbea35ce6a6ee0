use super::*;

fn fill(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed;
    (0..n)
        .map(|_| {
            s = s
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn naive(m: usize, n: usize, k: usize, a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
    let mut c = vec![0f64; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k)
                .map(|l| {
                    f64::from(a.data[i * a.rs + l * a.cs]) * f64::from(b.data[l * b.rs + j * b.cs])
                })
                .sum();
        }
    }
    c
}

#[test]
fn agrees_with_plain_loops_in_every_layout() {
    for (m, n, k) in [
        (1, 1, 1),
        (7, 17, 3),
        (6, 16, 256),
        (13, 131, 517),
        (97, 48, 64),
    ] {
        let (a, b) = (fill(m * k, 1), fill(k * n, 2));
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            let am = if ta {
                Mat::rows(&a, m).t()
            } else {
                Mat::rows(&a, k)
            };
            let bm = if tb {
                Mat::rows(&b, k).t()
            } else {
                Mat::rows(&b, n)
            };
            let mut c = vec![f32::NAN; m * n];
            let seg = [Segment { a: am, b: bm, k }];
            gemm(
                Dest {
                    data: &mut c,
                    ld: n,
                },
                None,
                (m, n),
                &seg,
                Start::Zero,
                |_, _, _, _| {},
            );
            for (got, want) in c.iter().zip(naive(m, n, k, am, bm)) {
                assert!(
                    (f64::from(*got) - want).abs() <= 1e-5 * (k as f64).sqrt(),
                    "{m} {n} {k}"
                );
            }
        }
    }
}

/// Tiles of every number of rows, and of one to three panels, whole and not, by every kernel that this
/// machine can run.
#[test]
fn every_kernel_is_right_and_vectors_of_any_width_give_the_same_bits() {
    let here: &[Isa] = match Isa::detect() {
        Isa::Avx512 => &[Isa::Portable, Isa::Avx2, Isa::Avx512],
        Isa::Avx2 => &[Isa::Portable, Isa::Avx2],
        Isa::Portable => &[Isa::Portable],
    };
    let sizes = [(1, 5), (30, 64), (119, 300), (160, 256)];
    for (m, (n, k)) in (1..=20).flat_map(|m| sizes.map(|size| (m, size))) {
        let (a, b, old) = (fill(m * k, 7), fill(k * n, 8), fill(m * n, 9));
        for a in [Mat::rows(&a, k), Mat::rows(&a, m).t()] {
            let b = Mat::rows(&b, k).t();
            let product = |isa: Isa| {
                let mut c = old.clone();
                let dest = Dest {
                    data: &mut c,
                    ld: n,
                };
                let segments = [Segment { a, b, k }];
                let shared = checked(dest, None, (m, n), &segments);
                let block = Block {
                    row: 0,
                    rows: m,
                    col: 0,
                    cols: n,
                };
                let finish = |_: usize, _: usize, _: &mut [f32], _: &mut [f32]| {};
                let start = Start::Accumulate;
                run_block(isa, shared, block, &segments, start, &mut vec![], &finish);
                c
            };
            let plain = naive(m, n, k, a, b);
            for &isa in here {
                for ((got, old), sum) in product(isa).iter().zip(&old).zip(&plain) {
                    let want = sum + f64::from(*old);
                    assert!(
                        (f64::from(*got) - want).abs() <= 1e-5 * (k as f64).sqrt(),
                        "{isa:?} {m} {n} {k}"
                    );
                }
            }
            if here.contains(&Isa::Avx512) {
                assert_eq!(product(Isa::Avx2), product(Isa::Avx512), "{m} {n} {k}");
            }
        }
    }
    if !here.contains(&Isa::Avx512) {
        eprintln!("skipped: the kernels for AVX-512, which this machine does not have");
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let (n, k) = (37, 700);
    let (a, b) = (fill(50 * k, 3), fill(k * n, 4));
    let seg = |row: usize| Segment {
        a: Mat::rows(&a[row * k..], k),
        b: Mat::rows(&b, k).t(),
        k,
    };
    let mut all = vec![0f32; 50 * n];
    gemm(
        Dest {
            data: &mut all,
            ld: n,
        },
        None,
        (50, n),
        &[seg(0)],
        Start::Zero,
        |_, _, _, _| {},
    );
    for row in [0, 5, 6, 29, 49] {
        let mut one = vec![0f32; n];
        gemm_serial(
            Dest {
                data: &mut one,
                ld: n,
            },
            (1, n),
            &[seg(row)],
            Start::Zero,
        );
        assert_eq!(one, all[row * n..(row + 1) * n]);
    }
}

#[test]
fn finish_sees_every_element_once() {
    let (m, n, k) = (11, 150, 300);
    let (a, b) = (fill(m * k, 5), fill(k * n, 6));
    let seg = [Segment {
        a: Mat::rows(&a, k),
        b: Mat::rows(&b, n),
        k,
    }];
    let mut c = vec![0f32; m * n];
    let mut plain = c.clone();
    gemm(
        Dest {
            data: &mut plain,
            ld: n,
        },
        None,
        (m, n),
        &seg,
        Start::Zero,
        |_, _, _, _| {},
    );
    let mut twice = vec![0f32; m * n];
    let second = Some(Dest {
        data: &mut twice,
        ld: n,
    });
    gemm(
        Dest {
            data: &mut c,
            ld: n,
        },
        second,
        (m, n),
        &seg,
        Start::Zero,
        |_, _, run, other| {
            for (x, y) in run.iter_mut().zip(other) {
                *x += 1.0;
                *y += 2.0 * *x;
            }
        },
    );
    for (i, y) in plain.iter().enumerate() {
        assert_eq!((c[i], twice[i]), (y + 1.0, 2.0 * (y + 1.0)));
    }
}

use crosstune::ops::gemm::*;
use std::time::Instant;
fn main() {
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            for (m, n, k, tb) in [
                (1200, 768, 768, true),
                (1200, 2304, 768, true),
                (1200, 3072, 768, true),
                (1200, 768, 3072, true),
                (1200, 768, 3072, false),
                (1200, 3072, 768, false),
                (1200, 4096, 1024, true),
                (1200, 1024, 4096, false),
                (92, 384, 384, true),
                (92, 1536, 384, true),
            ] {
                let a = vec![0.5f32; m * k];
                let b = vec![0.25f32; n * k];
                let mut c = vec![0f32; m * n];
                let seg = [Segment {
                    a: Mat::rows(&a, k),
                    b: if tb {
                        Mat::rows(&b, k).t()
                    } else {
                        Mat::rows(&b, n)
                    },
                    k,
                }];
                let mut best = f64::MAX;
                for _ in 0..8 {
                    let t = Instant::now();
                    gemm(
                        Dest {
                            data: &mut c,
                            ld: n,
                        },
                        m,
                        n,
                        &seg,
                        Start::Zero,
                        |_, _, _| {},
                    );
                    best = best.min(t.elapsed().as_secs_f64());
                }
                println!(
                    "threads {threads} {m}x{n}x{k} tb={tb} {:.1} GFLOP/s {:.2} ms",
                    2.0 * (m * n * k) as f64 / best / 1e9,
                    best * 1e3
                );
            }
        });
    }
}

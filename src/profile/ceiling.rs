//! What the place of a run can at most: a large copy and a large product, measured there.
//!
//! The product is our own, the fastest that this program has, so a share says how far an op is from
//! the best of ours, not from the best that the hardware can.

use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use crate::ops::gemm::{Dest, Mat, Segment, Start, gemm};
use crate::ops::philox::Stream;

/// Seconds from which a measurement is long enough, by a host's clock.
const ENOUGH: f64 = 2e-2;

/// Rates that nothing in a run should exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes a second, read and written, of a large copy.
    pub copy: f64,
    /// Bytes of that copy, one side.
    pub copy_bytes: usize,
    /// Operations a second of a large product.
    pub product: f64,
    /// M, N and K of that product.
    pub product_side: usize,
}

impl Ceilings {
    /// Seconds that so many bytes and operations take at least.
    pub fn seconds(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.copy).max(flops / self.product)
    }
}

/// Grows a measurement until it takes `enough` seconds, or is of the largest size. Gives the size and
/// the seconds of one call.
fn grow<E>(
    enough: f64,
    sizes: impl Iterator<Item = usize>,
    mut measure: impl FnMut(usize) -> Result<f64, E>,
) -> Result<(usize, f64), E> {
    let mut last = (0, f64::INFINITY);
    for size in sizes {
        last = (size, measure(size)?);
        if last.1 >= enough {
            break;
        }
    }
    Ok(last)
}

/// Sides of a square product, from one that a virtual machine can.
fn sides() -> impl Iterator<Item = usize> {
    [128, 512, 1024, 2048, 4096, 8192].into_iter()
}

/// Of a pool's threads.
pub fn of_pool(pool: &rayon::ThreadPool) -> Ceilings {
    // Beyond most caches.
    const COPY: usize = 256 << 20;
    let best = |run: &mut (dyn FnMut() + Send)| {
        let mut times = [0.0; 4].map(|_: f64| {
            let start = Instant::now();
            pool.install(&mut *run);
            start.elapsed().as_secs_f64()
        });
        // The first one warms up.
        times[1..].sort_by(f64::total_cmp);
        times[1]
    };
    let copy_s = {
        let from = vec![1f32; COPY / 4];
        let mut to = vec![0f32; COPY / 4];
        best(&mut || {
            let parts = to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16));
            parts.for_each(|(to, from)| to.copy_from_slice(from));
        })
    };
    let product = |n: usize| -> Result<f64, std::convert::Infallible> {
        let a = Stream::named(1, "ceiling.a").uniform(n * n, 1.0);
        let b = Stream::named(1, "ceiling.b").uniform(n * n, 1.0);
        let mut out = vec![0f32; n * n];
        Ok(best(&mut || {
            let dest = Dest {
                data: &mut out,
                ld: n,
            };
            let segment = Segment {
                a: Mat::rows(&a, n),
                b: Mat::rows(&b, n).t(),
                k: n,
            };
            gemm(dest, None, (n, n), &[segment], Start::Zero, |_, _, _, _| {});
        }))
    };
    let Ok(product) = grow(ENOUGH, sides(), product);
    Ceilings::new((COPY, copy_s), product)
}

impl Ceilings {
    fn new((copy_bytes, copy_s): (usize, f64), (side, product_s): (usize, f64)) -> Ceilings {
        Ceilings {
            copy: 2.0 * copy_bytes as f64 / copy_s,
            copy_bytes,
            product: 2.0 * (side as f64).powi(3) / product_s,
            product_side: side,
        }
    }
}

#[cfg(feature = "cuda")]
pub use on_device::of_device;

#[cfg(feature = "cuda")]
mod on_device {
    use half::f16;

    use super::{Ceilings, grow, sides};
    use crate::cuda::device::Device;
    use crate::cuda::ops::linear::{Forward, Part, Tile, forward};
    use crate::cuda::ops::{Context, DeviceTensor};
    use crate::cuda::step_params::StepBuffer;
    use crate::cuda::{DevicePtr, Driver, Result};
    use crate::exec::MemberStep;
    use crate::graph::Bucket;
    use crate::ops::philox::Stream;
    use crate::text::pack::{Batch, Layout, MemberTexts, Rows, Text};

    /// Tokens of a text of the product's batch.
    const TEXT: usize = 32;
    /// Seconds from which a measurement is long enough, by a device's events.
    const ENOUGH: f64 = 2e-3;
    /// Calls of one measurement at most.
    const CALLS: f64 = 20.0;

    /// Of a device, by its events; a copy by the driver and a product by our kernel.
    ///
    /// # Errors
    /// If the device fails or has no room.
    pub fn of_device(device: &Device) -> Result<Ceilings> {
        let opened = device.lock();
        let driver = opened.driver();
        // Caches hold tens of megabytes, so a smaller copy counts only where it takes long.
        let sizes = [1 << 20, 16 << 20, 256 << 20];
        let copy = grow(ENOUGH, sizes.into_iter(), |bytes| copy(driver, bytes))?;
        let product = grow(ENOUGH, sides(), |side| product(driver, side))?;
        Ok(Ceilings::new(copy, product))
    }

    /// Gives allocations back whatever happened.
    struct Room<'a> {
        driver: &'a dyn Driver,
        owned: Vec<DevicePtr>,
    }

    impl Room<'_> {
        fn alloc(&mut self, bytes: usize) -> Result<DevicePtr> {
            let ptr = self.driver.alloc(bytes, "a ceiling's measurement")?;
            self.owned.push(ptr);
            Ok(ptr)
        }
    }

    impl Drop for Room<'_> {
        fn drop(&mut self) {
            for ptr in self.owned.drain(..) {
                // A failure here is the echo of one that a call returned.
                let _ = self.driver.free(ptr);
            }
        }
    }

    /// Seconds of a call, of many where one is short.
    fn timed(driver: &dyn Driver, run: &dyn Fn() -> Result<()>) -> Result<f64> {
        let of = |n: usize| -> Result<f64> {
            let from = driver.record()?;
            (0..n).try_for_each(|_| run())?;
            let to = driver.record()?;
            let ms = driver.elapsed_ms(from, to)?;
            driver.drop_event(from)?;
            driver.drop_event(to)?;
            Ok(f64::from(ms) / 1e3 / n as f64)
        };
        // The first call loads the kernel.
        of(1)?;
        let once = of(1)?;
        if once >= ENOUGH {
            return Ok(once);
        }
        of((ENOUGH / once.max(1e-7)).clamp(3.0, CALLS) as usize)
    }

    fn copy(driver: &dyn Driver, bytes: usize) -> Result<f64> {
        let mut room = Room {
            driver,
            owned: vec![],
        };
        let (to, from) = (room.alloc(bytes)?, room.alloc(bytes)?);
        driver.fill(from, 0x3C, bytes)?;
        timed(driver, &|| driver.copy(to, from, bytes))
    }

    fn product(driver: &dyn Driver, n: usize) -> Result<f64> {
        let mut room = Room {
            driver,
            owned: vec![],
        };
        let mut matrix = |name: &str| -> Result<DeviceTensor> {
            let ptr = room.alloc(n * n * 2)?;
            let values = Stream::named(1, name).uniform(n * n, 1.0);
            let halves: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
            driver.copy_in(ptr, bytemuck::cast_slice(&halves))?;
            Ok(DeviceTensor::f16(ptr, n, n))
        };
        let (inp, weight, out) = (matrix("inp")?, matrix("weight")?, matrix("out")?);
        let bucket = Bucket {
            tokens: n,
            seqs: n / TEXT,
            items: n / TEXT,
            members: 1,
        };
        let step = StepBuffer::new(room.alloc(StepBuffer::bytes(&bucket))?, bucket, TEXT);
        step.upload(driver, &batch(n), &[MemberStep::default()])?;
        let op = Forward {
            rows: Rows::Tokens,
            out,
            act: None,
            inp,
            parts: &[Part {
                low: None,
                weight,
                bias: None,
                lora: None,
            }],
            tile: Tile::of(n),
        };
        let cx = Context {
            driver,
            step: &step,
        };
        timed(driver, &|| forward(cx, &op))
    }

    /// A batch of that many tokens.
    fn batch(tokens: usize) -> Batch {
        let ids = [5; TEXT];
        let text = |i: usize| Text {
            ids: &ids,
            role: 0,
            item: i as u32,
        };
        let member = MemberTexts {
            anchors: (0..tokens / TEXT).map(text).collect(),
            partners: vec![],
        };
        let layout = Layout {
            position_offset: 0,
            prompt: 0,
        };
        Batch::pack(&[member], layout, vec![])
    }
}

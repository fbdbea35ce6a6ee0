//! Launch wrappers: each checks every tensor against its kernel's contract, computes the grid for
//! the bucket and launches. They never allocate and never wait.

pub mod activation;
pub mod adam;
pub mod add;
pub mod attention;
pub mod contrastive;
pub mod embedding;
pub mod gelu;
pub mod l2_norm;
pub mod layer_norm;
pub mod linear;
pub mod linear_weight;
pub mod mse;
pub mod phm;
pub mod pool;
pub mod vision_embedding;

use super::step_params::{StepBuffer, kind};
use super::{Arg, DevicePtr, Driver, DriverError, Geometry, Result, embedded};
use crate::ops::philox::Dropout;
use crate::tensor::Dtype;
use crate::text::pack::Rows;

/// What every launch needs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Where it runs.
    pub driver: &'a dyn Driver,
    /// The step that it reads.
    pub step: &'a StepBuffer,
}

/// A tensor on the device: (rows, cols), or (members, rows, cols).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceTensor {
    /// Its first number, at a multiple of 16 bytes.
    pub ptr: DevicePtr,
    /// Of its numbers.
    pub dtype: Dtype,
    /// Copies, one a member; 0 where there is one for all.
    pub members: usize,
    /// Rows of a copy; of an activation, the bucket's.
    pub rows: usize,
    /// Numbers of a row that mean something; those between them and `ld` are zero.
    pub cols: usize,
    /// Numbers from row to row.
    pub ld: usize,
}

impl DeviceTensor {
    /// An f16 matrix whose rows are padded to 8 numbers.
    pub fn f16(ptr: DevicePtr, rows: usize, cols: usize) -> DeviceTensor {
        DeviceTensor {
            dtype: Dtype::F16,
            ld: cols.next_multiple_of(8),
            ..DeviceTensor::f32(ptr, rows, cols)
        }
    }

    /// An f32 matrix without padding.
    pub fn f32(ptr: DevicePtr, rows: usize, cols: usize) -> DeviceTensor {
        DeviceTensor {
            ptr,
            dtype: Dtype::F32,
            members: 0,
            rows,
            cols,
            ld: cols,
        }
    }

    /// The same with a copy for each member.
    pub fn per_member(self, members: usize) -> DeviceTensor {
        DeviceTensor { members, ..self }
    }

    /// Numbers that it takes, padding included.
    pub fn len(&self) -> usize {
        self.members.max(1) * self.rows * self.ld
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers from a member's copy to the next; 0 where there is one for all.
    fn stride(&self) -> i64 {
        match self.members {
            0 => 0,
            _ => (self.rows * self.ld) as i64,
        }
    }
}

impl From<DeviceTensor> for Arg {
    fn from(t: DeviceTensor) -> Arg {
        Arg::Ptr(t.ptr)
    }
}

/// What a kernel expects of a tensor.
struct Want {
    dtype: Dtype,
    members: usize,
    rows: usize,
    cols: usize,
    ld: usize,
}

/// The checks of one wrapper.
#[derive(Clone, Copy)]
struct Check(&'static str);

impl Check {
    /// An f16 matrix of rows that lie `ld` apart.
    fn rows(
        self,
        name: &str,
        t: &DeviceTensor,
        (rows, cols): (usize, usize),
        ld: usize,
    ) -> Result<()> {
        let dtype = Dtype::F16;
        self.is(
            name,
            t,
            &Want {
                dtype,
                members: 0,
                rows,
                cols,
                ld,
            },
        )?;
        self.that(t.ld >= t.cols && t.ld.is_multiple_of(8), || {
            format!(
                "rows of {name} are {} apart, expected a multiple of 8 from {}",
                t.ld, t.cols
            )
        })
    }

    /// An f32 tensor without padding, for each member or for none.
    fn f32(self, name: &str, t: &DeviceTensor, shape: (usize, usize, usize)) -> Result<()> {
        let (members, rows, cols) = shape;
        self.is(
            name,
            t,
            &Want {
                dtype: Dtype::F32,
                members,
                rows,
                cols,
                ld: cols,
            },
        )
    }

    /// An f16 matrix for each member.
    fn table(self, name: &str, t: &DeviceTensor, shape: (usize, usize, usize)) -> Result<()> {
        let (members, rows, cols) = shape;
        let ld = cols.next_multiple_of(8);
        self.is(
            name,
            t,
            &Want {
                dtype: Dtype::F16,
                members,
                rows,
                cols,
                ld,
            },
        )
    }

    fn is(self, name: &str, t: &DeviceTensor, want: &Want) -> Result<()> {
        let got = (t.dtype, t.members, t.rows, t.cols, t.ld);
        let expected = (want.dtype, want.members, want.rows, want.cols, want.ld);
        self.that(got == expected, || {
            format!(
                "{name} is {} members, rows, columns, stride {:?}, expected {} {:?}",
                t.dtype,
                (t.members, t.rows, t.cols, t.ld),
                want.dtype,
                (want.members, want.rows, want.cols, want.ld)
            )
        })?;
        self.place(name, t.ptr)
    }

    /// An address that kernels may read 16 bytes at.
    fn place(self, name: &str, ptr: DevicePtr) -> Result<()> {
        let ok = ptr.0.is_multiple_of(16) && ptr != DevicePtr::NULL;
        self.that(ok, || {
            format!(
                "{name} is at {:#x}, expected a multiple of 16, not 0",
                ptr.0
            )
        })
    }

    fn that(self, ok: bool, reason: impl FnOnce() -> String) -> Result<()> {
        if ok {
            return Ok(());
        }
        Err(DriverError::Failed {
            call: self.0.into(),
            reason: reason(),
        })
    }
}

/// A launch of a kernel of `kernels/<file>.cu`.
struct Launch {
    file: &'static str,
    kernel: &'static str,
    grid: [usize; 3],
    block: [u32; 3],
}

impl Launch {
    fn run(&self, cx: Context<'_>, args: &[Arg]) -> Result<()> {
        let file = embedded::file(self.file).ok_or_else(|| DriverError::Failed {
            call: self.kernel.into(),
            reason: format!("there is no kernels/{}.cu in this binary", self.file),
        })?;
        let geometry = Geometry {
            grid: self.grid.map(|n| n as u32),
            block: self.block,
            shared_bytes: 0,
        };
        let kernel = cx.driver.kernel(file, self.kernel)?;
        cx.driver.launch(kernel, geometry, args)
    }
}

fn ptr(t: Option<DeviceTensor>) -> Arg {
    Arg::Ptr(t.map_or(DevicePtr::NULL, |t| t.ptr))
}

fn int(n: usize) -> Arg {
    Arg::I32(n as i32)
}

fn rows_arg(rows: Rows) -> Arg {
    int(kind(rows))
}

/// Threshold, scale and site of a dropout; without one, all is kept.
fn dropout(dropout: Option<Dropout>) -> [Arg; 3] {
    let none = [Arg::U32(0), Arg::F32(1.0), Arg::U32(0)];
    dropout.map_or(none, |d| {
        [
            Arg::U32(d.threshold()),
            Arg::F32(d.scale()),
            Arg::U32(d.site),
        ]
    })
}

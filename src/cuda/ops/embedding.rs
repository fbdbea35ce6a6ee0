//! Launches of `kernels/embedding.cu`.

use super::{Check, Context, DeviceTensor, Launch, dropout, int, layer_norm};
use crate::cuda::{Arg, Result};
use crate::ops::philox::Dropout;
use crate::tensor::Dtype;
use crate::text::pack::Rows;

/// Rows of a block.
const ROWS: usize = 8;

/// The tables. Every id of a step is one of their rows.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// (V, C) f16
    pub word: DeviceTensor,
    /// (P, C) f16
    pub position: DeviceTensor,
    /// (token types, C) f16
    pub token_type: DeviceTensor,
}

/// `out = dropout(LN(word[id] + position[place] + token_type[type]))`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// (T, C) f16 `=`
    pub out: DeviceTensor,
    /// Three of them.
    pub tables: Tables,
    /// (C) f16 or f32, or (G, C).
    pub weight: DeviceTensor,
    /// (C) f16 or f32, or (G, C).
    pub bias: DeviceTensor,
    /// Added to the variance.
    pub eps: f32,
    /// On the result, in training.
    pub dropout: Option<Dropout>,
}

/// The gradients of [`Forward`].
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// (T, C) f16 `=` of the sum of the three rows; may be `dout`.
    pub dz: DeviceTensor,
    /// (G, rows, C) f32 `+=`, in the order word, position, token type.
    pub dtables: [Option<DeviceTensor>; 3],
    /// (G, C) f32 `+=`
    pub dweight: Option<DeviceTensor>,
    /// (G, C) f32 `+=`
    pub dbias: Option<DeviceTensor>,
    /// As [`layer_norm::Backward::partials`].
    pub partials: Option<DeviceTensor>,
    /// (T, C) f16 scratch: the sum of the three rows.
    pub z: DeviceTensor,
    /// (T, 2) f32 scratch: its mean and reciprocal standard deviation.
    pub stats: DeviceTensor,
    /// (T, C) f16
    pub dout: DeviceTensor,
    /// As the forward's.
    pub tables: Tables,
    /// As the forward's.
    pub weight: DeviceTensor,
    /// As the forward's.
    pub eps: f32,
    /// As the forward's.
    pub dropout: Option<Dropout>,
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("embedding_forward");
    let (c, ld) = op.tables.check(check)?;
    check.rows("out", &op.out, (cx.step.rows(Rows::Tokens), c), ld)?;
    layer_norm::param(check, cx, "weight", &op.weight, c)?;
    layer_norm::param(check, cx, "bias", &op.bias, c)?;
    let half = |t: &DeviceTensor| i32::from(t.dtype == Dtype::F16);
    let [threshold, scale, site] = dropout(op.dropout);
    let args = [
        op.out.into(),
        op.tables.word.into(),
        op.tables.position.into(),
        op.tables.token_type.into(),
        op.weight.into(),
        op.bias.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        Arg::Ptr(cx.step.ids()),
        int(c),
        int(ld),
        Arg::I32(half(&op.weight) | half(&op.bias) << 1),
        Arg::I64(op.weight.stride()),
        Arg::I64(op.bias.stride()),
        Arg::F32(op.eps),
        threshold,
        scale,
        site,
    ];
    launch(cx, "embedding_forward_f16").run(cx, &args)
}

/// Launches the kernel that makes the sum again, those of the layer norm's gradient, and one for
/// each table whose gradient is wanted.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("embedding_backward");
    let (c, ld) = op.tables.check(check)?;
    let rows = cx.step.rows(Rows::Tokens);
    for (name, t) in [("dz", op.dz), ("z", op.z), ("dout", op.dout)] {
        check.rows(name, &t, (rows, c), ld)?;
    }
    check.f32("stats", &op.stats, (0, rows, 2))?;
    let [threshold, scale, site] = dropout(op.dropout);
    let args = [
        op.z.into(),
        op.stats.into(),
        op.dz.into(),
        op.dout.into(),
        op.tables.word.into(),
        op.tables.position.into(),
        op.tables.token_type.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        Arg::Ptr(cx.step.ids()),
        int(c),
        int(ld),
        Arg::F32(op.eps),
        threshold,
        scale,
        site,
    ];
    launch(cx, "embedding_again_f16").run(cx, &args)?;
    let norm = layer_norm::Backward {
        dz: op.dz,
        dinp: None,
        dweight: op.dweight,
        dbias: op.dbias,
        partials: op.partials,
        dout: op.dz,
        z: op.z,
        stats: op.stats,
        weight: op.weight,
        dropout: None,
    };
    layer_norm::backward(cx, &norm)?;
    table_grads(check, cx, op)
}

fn table_grads(check: Check, cx: Context<'_>, op: &Backward) -> Result<()> {
    let tables = op.tables.named();
    for (i, ((name, table), grad)) in tables.iter().zip(&op.dtables).enumerate() {
        let Some(grad) = grad else { continue };
        let shape = (cx.step.bucket().members, table.rows, table.cols);
        check.f32(&format!("gradient of {name}"), grad, shape)?;
        let launch = Launch {
            grid: [cx.step.rows(Rows::Tokens), 1, 1],
            block: [128, 1, 1],
            ..launch(cx, "embedding_backward_table_f32")
        };
        let args = [
            (*grad).into(),
            op.dz.into(),
            Arg::Ptr(cx.step.params()),
            Arg::Ptr(cx.step.tokens()),
            Arg::Ptr(cx.step.ids()),
            int(i),
            int(table.rows),
            int(table.cols),
            int(table.ld),
        ];
        launch.run(cx, &args)?;
    }
    Ok(())
}

impl Tables {
    fn named(&self) -> [(&'static str, DeviceTensor); 3] {
        [
            ("word", self.word),
            ("position", self.position),
            ("token_type", self.token_type),
        ]
    }

    /// C and the stride of rows, which all three share.
    fn check(&self, check: Check) -> Result<(usize, usize)> {
        let (c, ld) = (self.word.cols, self.word.ld);
        layer_norm::width(check, c)?;
        for (name, t) in self.named() {
            check.that(t.members <= 1, || {
                format!("{name} has a copy for each of {} members", t.members)
            })?;
            check.rows(name, &DeviceTensor { members: 0, ..t }, (t.rows, c), ld)?;
        }
        Ok((c, ld))
    }
}

fn launch(cx: Context<'_>, kernel: &'static str) -> Launch {
    Launch {
        file: "embedding",
        kernel,
        grid: [cx.step.rows(Rows::Tokens).div_ceil(ROWS), 1, 1],
        block: [256, 1, 1],
    }
}

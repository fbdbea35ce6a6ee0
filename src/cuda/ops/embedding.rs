//! Launches of `kernels/embedding.cu`.

use super::{Check, Context, DeviceTensor, Launch, add, dropout, int, layer_norm, ptr};
use crate::cuda::{Arg, Result};
use crate::ops::philox::Dropout;
use crate::tensor::Dtype;
use crate::text::pack::{Batch, Rows};

/// Rows of a block.
const ROWS: usize = 8;

/// The tables: one copy, which may be the only member's. Every id of a step is one of their rows
/// ([`check_ids`]).
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// (V, C) f16
    pub word: DeviceTensor,
    /// (P, C) f16
    pub position: DeviceTensor,
    /// (token types, C) f16, if there are such.
    pub token_type: Option<DeviceTensor>,
}

/// `out = dropout(LN(word[id] + position[place] + token_type[type]))`; in the slots of a soft prompt,
/// its vectors stand in place of `word[id]`.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// (T, C) f16 `=`
    pub out: DeviceTensor,
    /// (T, C) f16 `=` the sum of the rows, where it is read on.
    pub sum: Option<DeviceTensor>,
    /// Two or three of them.
    pub tables: Tables,
    /// (G, k, C) f32, where the step's texts have k slots of a soft prompt.
    pub prompt: Option<DeviceTensor>,
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
    /// (T, C) f16 `=` of the sum of the rows; may be `dout`.
    pub dz: DeviceTensor,
    /// (G, rows, C) f32 `+=`, in the order word, position, token type.
    pub dtables: [Option<DeviceTensor>; 3],
    /// (G, k, C) f32 `+=`
    pub dprompt: Option<DeviceTensor>,
    /// (G, C) f32 `+=`
    pub dweight: Option<DeviceTensor>,
    /// (G, C) f32 `+=`
    pub dbias: Option<DeviceTensor>,
    /// As [`layer_norm::Backward::partials`].
    pub partials: Option<DeviceTensor>,
    /// (T, C) f16 scratch: the sum of the rows.
    pub z: DeviceTensor,
    /// (T, 2) f32 scratch: its mean and reciprocal standard deviation.
    pub stats: DeviceTensor,
    /// (T, C) f16
    pub dout: DeviceTensor,
    /// (T, C) f16: what the sum itself has got, where it was read on.
    pub dsum: Option<DeviceTensor>,
    /// As the forward's.
    pub tables: Tables,
    /// As the forward's.
    pub prompt: Option<DeviceTensor>,
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
    let (c, ld) = op.tables.check(check, cx)?;
    check_prompt(check, cx, "prompt", op.prompt, c)?;
    for (name, t) in [("out", Some(op.out)), ("sum", op.sum)] {
        t.map_or(Ok(()), |t| {
            check.rows(name, &t, (cx.step.rows(Rows::Tokens), c), ld)
        })?;
    }
    layer_norm::param(check, cx, "weight", &op.weight, c)?;
    layer_norm::param(check, cx, "bias", &op.bias, c)?;
    let half = |t: &DeviceTensor| i32::from(t.dtype == Dtype::F16);
    let [threshold, scale, site] = dropout(op.dropout);
    let args = [
        op.out.into(),
        ptr(op.sum),
        op.tables.word.into(),
        op.tables.position.into(),
        ptr(op.tables.token_type),
        ptr(op.prompt),
        op.weight.into(),
        op.bias.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        Arg::Ptr(cx.step.ids()),
        int(cx.step.prompt()),
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

/// Launches the kernel that makes the sum again, those of the layer norm's gradient, that which adds
/// what the sum has got besides, and one for each table whose gradient is wanted.
///
/// # Errors
/// If a tensor is not as its field says, before anything is launched, or if a launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let norm = layer_norm::Backward {
        rows: Rows::Tokens,
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
    check_backward(cx, op)?;
    layer_norm::check_backward(cx, &norm)?;
    sum_again(cx, op)?;
    layer_norm::backward(cx, &norm)?;
    if let Some(dsum) = op.dsum {
        let sum = add::Forward {
            rows: Rows::Tokens,
            out: op.dz,
            a: op.dz,
            b: dsum,
        };
        add::forward(cx, &sum)?;
    }
    let [word, position, token_type] = op.dtables;
    let grads = [word, position, token_type, op.dprompt];
    for (table, grad) in grads.into_iter().enumerate() {
        grad.map_or(Ok(()), |grad| table_grad(cx, op, table, grad))?;
    }
    Ok(())
}

fn check_backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("embedding_backward");
    let (c, ld) = op.tables.check(check, cx)?;
    check_prompt(check, cx, "prompt", op.prompt, c)?;
    let rows = cx.step.rows(Rows::Tokens);
    for (name, t) in [
        ("dz", Some(op.dz)),
        ("z", Some(op.z)),
        ("dout", Some(op.dout)),
        ("dsum", op.dsum),
    ] {
        t.map_or(Ok(()), |t| check.rows(name, &t, (rows, c), ld))?;
    }
    check.f32("stats", &op.stats, (0, rows, 2))?;
    for ((name, table), grad) in op.tables.named().into_iter().zip(op.dtables) {
        let Some(grad) = grad else { continue };
        let shape = (cx.step.bucket().members, table.map_or(0, |t| t.rows), c);
        check.f32(&format!("gradient of {name}"), &grad, shape)?;
    }
    let wanted = op.dprompt.is_some();
    check.that(!wanted || op.prompt.is_some(), || {
        "the gradient of a prompt is wanted, but there is none".into()
    })?;
    op.dprompt.map_or(Ok(()), |t| {
        check_prompt(check, cx, "gradient of prompt", Some(t), c)
    })
}

fn sum_again(cx: Context<'_>, op: &Backward) -> Result<()> {
    let [threshold, scale, site] = dropout(op.dropout);
    let args = [
        op.z.into(),
        op.stats.into(),
        op.dz.into(),
        op.dout.into(),
        op.tables.word.into(),
        op.tables.position.into(),
        ptr(op.tables.token_type),
        ptr(op.prompt),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        Arg::Ptr(cx.step.ids()),
        int(cx.step.prompt()),
        int(op.z.cols),
        int(op.z.ld),
        Arg::F32(op.eps),
        threshold,
        scale,
        site,
    ];
    launch(cx, "embedding_again_f16").run(cx, &args)
}

/// `table` counts as the kernel does.
fn table_grad(cx: Context<'_>, op: &Backward, table: usize, grad: DeviceTensor) -> Result<()> {
    let launch = Launch {
        grid: [cx.step.rows(Rows::Tokens), 1, 1],
        block: [128, 1, 1],
        ..launch(cx, "embedding_backward_table_f32")
    };
    let args = [
        grad.into(),
        op.dz.into(),
        Arg::Ptr(cx.step.params()),
        Arg::Ptr(cx.step.tokens()),
        Arg::Ptr(cx.step.ids()),
        int(table),
        int(grad.rows),
        int(grad.cols),
        int(op.dz.ld),
    ];
    launch.run(cx, &args)
}

/// Fails unless every id of a batch is a row of its table: kernels read where the ids say.
///
/// # Errors
/// Names the first id that is past its table.
pub fn check_ids(tables: &Tables, batch: &Batch) -> Result<()> {
    let ids = [&batch.ids, &batch.positions, &batch.types];
    for ((name, table), ids) in tables.named().into_iter().zip(ids) {
        let Some(table) = table else { continue };
        let past = ids.iter().position(|id| *id as usize >= table.rows);
        Check("embedding").that(past.is_none(), || {
            let t = past.unwrap_or(0);
            format!(
                "token {t} takes row {} of {name}, expected one of its {} rows",
                ids[t], table.rows
            )
        })?;
    }
    Ok(())
}

/// (G, k, C) f32 where the step has a prompt of k slots, nothing where it has none.
fn check_prompt(
    check: Check,
    cx: Context<'_>,
    name: &str,
    prompt: Option<DeviceTensor>,
    c: usize,
) -> Result<()> {
    let slots = cx.step.prompt();
    let rows = prompt.map_or(0, |t| t.rows);
    check.that(rows == slots && prompt.is_some() == (slots > 0), || {
        format!("{name} has {rows} vectors, expected the step's {slots} slots")
    })?;
    let shape = (cx.step.bucket().members, slots, c);
    prompt.map_or(Ok(()), |t| check.f32(name, &t, shape))
}

impl Tables {
    fn named(&self) -> [(&'static str, Option<DeviceTensor>); 3] {
        [
            ("word", Some(self.word)),
            ("position", Some(self.position)),
            ("token_type", self.token_type),
        ]
    }

    /// C and the stride of rows, which all share.
    fn check(&self, check: Check, cx: Context<'_>) -> Result<(usize, usize)> {
        let members = cx.step.bucket().members;
        let (c, ld) = (self.word.cols, self.word.ld);
        layer_norm::width(check, c)?;
        for (name, t) in self.named() {
            let Some(t) = t else { continue };
            check.that(t.members == 0 || (t.members, members) == (1, 1), || {
                format!(
                    "{name} has {} copies for {members} members, expected one for all",
                    t.members
                )
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

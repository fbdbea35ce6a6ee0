//! Launches of `kernels/attention.cu`.

use super::{Check, Context, DeviceTensor, Launch, dropout, int, ptr};
use crate::cuda::{Arg, Result};
use crate::ops::attention::Mask;
use crate::ops::philox::Dropout;
use crate::text::pack::Rows;

/// Queries and keys of a tile; a longer text takes several blocks.
const TILE: usize = 32;
/// Heads and queries of a text: they share a word in the names of random numbers.
const MAX_PLACES: usize = 1 << 16;

/// `out = dropout(softmax(Q K^T / sqrt(HS))) V` within each text, over the keys that a query sees.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// (T, NH HS) f16
    pub out: DeviceTensor,
    /// (T, NH) f32 log-sum-exp of each query's scores.
    pub lse: DeviceTensor,
    /// (T, 3 NH HS) f16 queries, keys and values side by side.
    pub qkv: DeviceTensor,
    /// NH; a head's size is a multiple of 8 up to 128.
    pub heads: usize,
    /// Which tokens a query sees.
    pub mask: Mask,
    /// On the probabilities, in training.
    pub dropout: Option<Dropout>,
}

/// The gradient of [`Forward`].
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// (T, 3 NH HS) f16 `=`
    pub dqkv: DeviceTensor,
    /// (T, NH) f32 scratch, where the bucket has texts of more than 32 tokens.
    pub delta: Option<DeviceTensor>,
    /// (T, 3 NH HS) f16
    pub qkv: DeviceTensor,
    /// (T, NH HS) f16
    pub dout: DeviceTensor,
    /// (T, NH) f32 as the forward left it.
    pub lse: DeviceTensor,
    /// As the forward's.
    pub heads: usize,
    /// As the forward's.
    pub mask: Mask,
    /// As the forward's.
    pub dropout: Option<Dropout>,
}

impl Backward {
    /// Whether a bucket with texts of `longest` tokens needs [`Backward::delta`].
    pub fn needs_delta(longest: usize) -> bool {
        longest > TILE
    }
}

/// Launches the forward kernel.
///
/// # Errors
/// If a tensor is not as its field says, or the launch fails.
pub fn forward(cx: Context<'_>, op: &Forward) -> Result<()> {
    let check = Check("attention_forward");
    let heads = Heads::of(check, cx, &op.qkv, op.heads)?;
    heads.rows(check, cx, "out", &op.out, 1)?;
    heads.stats(check, cx, "lse", &op.lse)?;
    let [threshold, scale, site] = dropout(op.dropout);
    let args = [
        op.out.into(),
        op.lse.into(),
        op.qkv.into(),
        Arg::Ptr(cx.step.seqs()),
        Arg::Ptr(cx.step.params()),
        int(heads.count),
        int(heads.size),
        causal(op.mask),
        threshold,
        scale,
        site,
    ];
    let kernel = heads.pick([
        "attention_forward_32_f16",
        "attention_forward_64_f16",
        "attention_forward_128_f16",
    ]);
    heads.launch(cx, kernel).run(cx, &args)
}

/// Launches the backward kernel, before it the one for long texts where there may be some.
///
/// # Errors
/// If a tensor is not as its field says, or a launch fails.
pub fn backward(cx: Context<'_>, op: &Backward) -> Result<()> {
    let check = Check("attention_backward");
    let heads = Heads::of(check, cx, &op.qkv, op.heads)?;
    heads.rows(check, cx, "dqkv", &op.dqkv, 3)?;
    heads.rows(check, cx, "dout", &op.dout, 1)?;
    heads.stats(check, cx, "lse", &op.lse)?;
    let is_long = Backward::needs_delta(cx.step.longest());
    check.that(op.delta.is_some() == is_long, || {
        format!(
            "delta is {:?}, texts have up to {} tokens",
            op.delta,
            cx.step.longest()
        )
    })?;
    let common = [
        Arg::Ptr(cx.step.seqs()),
        Arg::Ptr(cx.step.params()),
        int(heads.count),
        int(heads.size),
        causal(op.mask),
    ];
    let common = [&common[..], &dropout(op.dropout)].concat();
    if let Some(delta) = &op.delta {
        heads.stats(check, cx, "delta", delta)?;
        let kernel = heads.pick([
            "attention_backward_queries_32_f16",
            "attention_backward_queries_64_f16",
            "attention_backward_queries_128_f16",
        ]);
        let tensors = [op.dqkv, *delta, op.qkv, op.dout, op.lse].map(Arg::from);
        let args = [&tensors[..], &common].concat();
        heads.launch(cx, kernel).run(cx, &args)?;
    }
    let kernel = heads.pick([
        "attention_backward_32_f16",
        "attention_backward_64_f16",
        "attention_backward_128_f16",
    ]);
    let tensors = [op.dqkv, op.qkv, op.dout, op.lse].map(Arg::from);
    let args = [&tensors[..], &[ptr(op.delta)], &common].concat();
    heads.launch(cx, kernel).run(cx, &args)
}

fn causal(mask: Mask) -> Arg {
    int((mask == Mask::Causal).into())
}

/// NH and HS.
#[derive(Clone, Copy)]
struct Heads {
    count: usize,
    size: usize,
}

impl Heads {
    /// Those of a qkv.
    fn of(check: Check, cx: Context<'_>, qkv: &DeviceTensor, count: usize) -> Result<Heads> {
        let size = qkv.cols / (3 * count).max(1);
        let whole = size * 3 * count == qkv.cols && size.is_multiple_of(8);
        check.that(whole && (8..=128).contains(&size), || {
            format!(
                "qkv has {} columns for {count} heads, expected 3 for each number of a head's 8 \
                 to 128, a multiple of 8",
                qkv.cols
            )
        })?;
        check.that(
            count < MAX_PLACES && cx.step.longest() <= MAX_PLACES,
            || format!("{count} heads, texts of {} tokens", cx.step.longest()),
        )?;
        let heads = Heads { count, size };
        heads.rows(check, cx, "qkv", qkv, 3)?;
        Ok(heads)
    }

    /// (T, parts NH HS) f16 without padding.
    fn rows(
        self,
        check: Check,
        cx: Context<'_>,
        name: &str,
        t: &DeviceTensor,
        parts: usize,
    ) -> Result<()> {
        let c = parts * self.count * self.size;
        check.rows(name, t, (cx.step.rows(Rows::Tokens), c), c)
    }

    /// (T, NH) f32
    fn stats(self, check: Check, cx: Context<'_>, name: &str, t: &DeviceTensor) -> Result<()> {
        check.f32(name, t, (0, cx.step.rows(Rows::Tokens), self.count))
    }

    /// The kernel for heads of up to 32, 64 or 128 numbers.
    fn pick(self, kernels: [&'static str; 3]) -> &'static str {
        kernels[usize::from(self.size > 32) + usize::from(self.size > 64)]
    }

    fn launch(self, cx: Context<'_>, kernel: &'static str) -> Launch {
        // A step without texts still launches.
        let tiles = cx.step.longest().div_ceil(TILE).max(1);
        Launch {
            file: "attention",
            kernel,
            grid: [cx.step.rows(Rows::Seqs), self.count, tiles],
            block: [64, 1, 1],
        }
    }
}

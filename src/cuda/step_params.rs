//! What changes from step to step, as kernels read it: one block of device memory that is copied in
//! before a replay. `kernels/step_params.cuh` is the other side of every struct here.

use bytemuck::{Pod, Zeroable, bytes_of, cast_slice};

use super::{DevicePtr, Driver, DriverError, Result};
use crate::exec::MemberStep;
use crate::graph::Bucket;
use crate::text::pack::{Batch, MemberRows, Rows};

/// Tokens of a chunk: sums over tokens start at a member's first and are made chunk by chunk.
pub const CHUNK: usize = 32;
/// Items of a tile of the contrastive loss.
pub const ITEM_TILE: usize = 64;

/// `StepParams`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct StepParams {
    n_rows: [u32; 3],
    n_members: u32,
}

/// `MemberParams`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct MemberParams {
    seed: u64,
    step: u32,
    loss_scale: f32,
    rows: [[u32; 2]; 3],
    chunk_start: u32,
    tile_start: u32,
    weights: [f32; 3],
    stop_partner: u32,
    mse: f32,
    unused: [u32; 3],
}

/// `TokenParams`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct TokenParams {
    member: u32,
    place: u32,
    what: u32,
    seq: u32,
}

/// `AdamParams`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct AdamParams {
    lr: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    log_beta1: f32,
    log_beta2: f32,
    eps: f32,
    weight_decay: f32,
    clip_norm: f32,
    active: u32,
    head_lr: f32,
    unused: u32,
}

/// `TokenIds`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct TokenIds {
    word: u32,
    position: u32,
    token_type: u32,
    slot: u32,
}

/// `SeqParams`
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(16))]
struct SeqParams {
    first: u32,
    len: u32,
    member: u32,
    what: u32,
}

/// The index of a kind of rows in `n_rows` and `rows`.
pub(super) fn kind(rows: Rows) -> usize {
    match rows {
        Rows::Tokens => 0,
        Rows::Seqs => 1,
        Rows::Items => 2,
    }
}

/// The block on the device: the counts, the members, the tokens, the texts, the tokens' ids
/// and the members' optimisers, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct StepBuffer {
    ptr: DevicePtr,
    bucket: Bucket,
    longest: usize,
    prompt: usize,
}

impl StepBuffer {
    /// Bytes of the block of a bucket.
    pub fn bytes(bucket: &Bucket) -> usize {
        adams_at(bucket) + bucket.members * size_of::<AdamParams>()
    }

    /// The block at `ptr`, an allocation of [`StepBuffer::bytes`], for texts of up to `longest`
    /// tokens.
    pub fn new(ptr: DevicePtr, bucket: Bucket, longest: usize) -> StepBuffer {
        StepBuffer {
            ptr,
            bucket,
            longest,
            prompt: 0,
        }
    }

    /// The same for texts that each hold `prompt` slots of a soft prompt.
    pub fn with_prompt(self, prompt: usize) -> StepBuffer {
        StepBuffer { prompt, ..self }
    }

    /// The bucket it is for.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Rows of the bucket.
    pub fn rows(&self, rows: Rows) -> usize {
        [self.bucket.tokens, self.bucket.seqs, self.bucket.items][kind(rows)]
    }

    /// Tokens of the longest text that a step may have, slots of a prompt counted.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Slots of a soft prompt in each text.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// Blocks that chunks of tokens can take: a member's last one may be short.
    pub fn max_chunks(&self) -> usize {
        self.bucket.tokens / CHUNK + self.bucket.members
    }

    /// Blocks that tiles of items can take.
    pub fn max_item_tiles(&self) -> usize {
        self.bucket.items / ITEM_TILE + self.bucket.members
    }

    pub(super) fn params(&self) -> DevicePtr {
        self.ptr
    }

    pub(super) fn tokens(&self) -> DevicePtr {
        self.ptr.offset(tokens_at(&self.bucket))
    }

    pub(super) fn seqs(&self) -> DevicePtr {
        self.ptr.offset(seqs_at(&self.bucket))
    }

    pub(super) fn ids(&self) -> DevicePtr {
        self.ptr.offset(ids_at(&self.bucket))
    }

    pub(super) fn adams(&self) -> DevicePtr {
        self.ptr.offset(adams_at(&self.bucket))
    }

    /// Copies a step in.
    ///
    /// # Errors
    /// If the step is larger than the bucket, a text longer than the longest, if texts hold another
    /// number of slots of a soft prompt than [`StepBuffer::prompt`], or if the copy fails.
    pub fn upload(&self, driver: &dyn Driver, batch: &Batch, steps: &[MemberStep]) -> Result<()> {
        driver.copy_in(self.ptr, &self.pack(batch, steps)?)
    }

    /// Whether a step fits.
    fn check(&self, batch: &Batch, steps: &[MemberStep]) -> Result<()> {
        if batch.prompt != self.prompt {
            return Err(DriverError::Failed {
                call: "step".into(),
                reason: format!(
                    "each text has {} slots of a soft prompt, expected {}",
                    batch.prompt, self.prompt
                ),
            });
        }
        let n_rows = [batch.tokens(), batch.seqs(), batch.items()];
        let (b, longest) = (&self.bucket, batch.longest());
        let room = [b.tokens, b.seqs, b.items];
        let members = (batch.members.len(), steps.len());
        let fits = n_rows.iter().zip(room).all(|(n, room)| *n <= room);
        if fits && longest <= self.longest && members == (b.members, b.members) {
            return Ok(());
        }
        Err(DriverError::Failed {
            call: "step".into(),
            reason: format!(
                "{n_rows:?} tokens, texts and items of {members:?} members, the longest text of \
                 {longest} tokens, do not fit {b:?} and {} tokens",
                self.longest
            ),
        })
    }

    fn pack(&self, batch: &Batch, steps: &[MemberStep]) -> Result<Vec<u8>> {
        self.check(batch, steps)?;
        let b = &self.bucket;
        let head = StepParams {
            n_rows: [batch.tokens(), batch.seqs(), batch.items()].map(|n| n as u32),
            n_members: b.members as u32,
        };
        let tokens: Vec<TokenParams> = (0..batch.tokens()).map(|t| token(batch, t)).collect();
        let seqs: Vec<SeqParams> = (0..batch.seqs()).map(|s| seq(batch, s)).collect();
        let ids: Vec<TokenIds> = (0..batch.tokens()).map(|t| ids(batch, t)).collect();
        let mut out = vec![0u8; StepBuffer::bytes(b)];
        let mut put = |at: usize, part: &[u8]| out[at..][..part.len()].copy_from_slice(part);
        put(0, bytes_of(&head));
        put(
            size_of::<StepParams>(),
            cast_slice(&members_of(batch, steps)),
        );
        put(tokens_at(b), cast_slice(&tokens));
        put(seqs_at(b), cast_slice(&seqs));
        put(ids_at(b), cast_slice(&ids));
        let adams: Vec<AdamParams> = steps.iter().map(adam).collect();
        put(adams_at(b), cast_slice(&adams));
        Ok(out)
    }
}

fn tokens_at(bucket: &Bucket) -> usize {
    size_of::<StepParams>() + bucket.members * size_of::<MemberParams>()
}

fn seqs_at(bucket: &Bucket) -> usize {
    tokens_at(bucket) + bucket.tokens * size_of::<TokenParams>()
}

fn ids_at(bucket: &Bucket) -> usize {
    seqs_at(bucket) + bucket.seqs * size_of::<SeqParams>()
}

fn adams_at(bucket: &Bucket) -> usize {
    ids_at(bucket) + bucket.tokens * size_of::<TokenIds>()
}

fn members_of(batch: &Batch, steps: &[MemberStep]) -> Vec<MemberParams> {
    let (mut chunk_start, mut tile_start) = (0, 0);
    let params = |(m, s): (&MemberRows, &MemberStep)| {
        let w = &s.weights;
        let params = MemberParams {
            seed: s.seed,
            step: s.step,
            loss_scale: s.loss_scale,
            rows: [&m.tokens, &m.seqs, &m.items].map(|r| [r.start as u32, r.end as u32]),
            chunk_start,
            tile_start,
            weights: [w.image_anchor, w.partner_anchor, w.image_partner],
            stop_partner: w.stop_partner.into(),
            mse: w.mse,
            unused: [0; 3],
        };
        chunk_start += m.tokens.len().div_ceil(CHUNK) as u32;
        tile_start += m.items.len().div_ceil(ITEM_TILE) as u32;
        params
    };
    batch.members.iter().zip(steps).map(params).collect()
}

fn adam(step: &MemberStep) -> AdamParams {
    let a = &step.adam;
    AdamParams {
        lr: a.lr as f32,
        // Of the f64: in f32 they would be off by 1e-5 of themselves.
        rest1: (1.0 - a.beta1) as f32,
        beta2: a.beta2 as f32,
        rest2: (1.0 - a.beta2) as f32,
        log_beta1: a.beta1.ln() as f32,
        log_beta2: a.beta2.ln() as f32,
        eps: a.eps as f32,
        weight_decay: a.weight_decay as f32,
        clip_norm: a.clip_norm as f32,
        active: step.active.into(),
        head_lr: a.head_lr.unwrap_or(a.lr) as f32,
        unused: 0,
    }
}

fn token(batch: &Batch, t: usize) -> TokenParams {
    let seq = batch.token_seq[t];
    TokenParams {
        member: batch.seq_member[seq as usize],
        place: batch.places[t],
        what: what(batch, seq as usize),
        seq,
    }
}

fn ids(batch: &Batch, t: usize) -> TokenIds {
    TokenIds {
        word: batch.ids[t],
        position: batch.positions[t],
        token_type: batch.types[t],
        slot: batch.slot(t).map_or(0, |slot| slot as u32 + 1),
    }
}

fn seq(batch: &Batch, seq: usize) -> SeqParams {
    let range = batch.segment(seq);
    SeqParams {
        first: range.start as u32,
        len: range.len() as u32,
        member: batch.seq_member[seq],
        what: what(batch, seq),
    }
}

/// Names a text's random numbers, but for site and place.
fn what(batch: &Batch, seq: usize) -> u32 {
    u32::from(batch.roles[seq]) << 20 | (batch.seq_items[seq] & 0xF_FFFF)
}

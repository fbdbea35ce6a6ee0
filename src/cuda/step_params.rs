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

/// The index of a kind of rows in `n_rows` and `rows`.
pub(super) fn kind(rows: Rows) -> usize {
    match rows {
        Rows::Tokens => 0,
        Rows::Seqs => 1,
        Rows::Items => 2,
    }
}

/// The block on the device: the counts, the members, the tokens, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct StepBuffer {
    ptr: DevicePtr,
    bucket: Bucket,
}

impl StepBuffer {
    /// Bytes of the block of a bucket.
    pub fn bytes(bucket: &Bucket) -> usize {
        tokens_at(bucket) + bucket.tokens * size_of::<TokenParams>()
    }

    /// The block at `ptr`, an allocation of [`StepBuffer::bytes`].
    pub fn new(ptr: DevicePtr, bucket: Bucket) -> StepBuffer {
        StepBuffer { ptr, bucket }
    }

    /// The bucket it is for.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Rows of the bucket.
    pub fn rows(&self, rows: Rows) -> usize {
        [self.bucket.tokens, self.bucket.seqs, self.bucket.items][kind(rows)]
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

    /// Copies a step in.
    ///
    /// # Errors
    /// If the step is larger than the bucket, or the copy fails.
    pub fn upload(&self, driver: &dyn Driver, batch: &Batch, steps: &[MemberStep]) -> Result<()> {
        driver.copy_in(self.ptr, &self.pack(batch, steps)?)
    }

    fn pack(&self, batch: &Batch, steps: &[MemberStep]) -> Result<Vec<u8>> {
        let n_rows = [batch.tokens(), batch.seqs(), batch.items()];
        let b = &self.bucket;
        let room = [b.tokens, b.seqs, b.items];
        let members = (batch.members.len(), steps.len());
        if n_rows.iter().zip(room).any(|(n, room)| *n > room) || members != (b.members, b.members) {
            return Err(DriverError::Failed {
                call: "step".into(),
                reason: format!(
                    "{n_rows:?} tokens, texts and items of {members:?} members do not fit {b:?}"
                ),
            });
        }
        let mut out = vec![0u8; StepBuffer::bytes(b)];
        let head = StepParams {
            n_rows: n_rows.map(|n| n as u32),
            n_members: b.members as u32,
        };
        let tokens: Vec<TokenParams> = (0..batch.tokens()).map(|t| token(batch, t)).collect();
        let parts = [bytes_of(&head), cast_slice(&members_of(batch, steps))].concat();
        out[..parts.len()].copy_from_slice(&parts);
        let tokens: &[u8] = cast_slice(&tokens);
        out[tokens_at(b)..][..tokens.len()].copy_from_slice(tokens);
        Ok(out)
    }
}

fn tokens_at(bucket: &Bucket) -> usize {
    size_of::<StepParams>() + bucket.members * size_of::<MemberParams>()
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
        };
        chunk_start += m.tokens.len().div_ceil(CHUNK) as u32;
        tile_start += m.items.len().div_ceil(ITEM_TILE) as u32;
        params
    };
    batch.members.iter().zip(steps).map(params).collect()
}

fn token(batch: &Batch, t: usize) -> TokenParams {
    let seq = batch.token_seq[t];
    let (role, item) = (batch.roles[seq as usize], batch.seq_items[seq as usize]);
    TokenParams {
        member: batch.seq_member[seq as usize],
        place: batch.places[t],
        what: u32::from(role) << 20 | (item & 0xF_FFFF),
        seq,
    }
}

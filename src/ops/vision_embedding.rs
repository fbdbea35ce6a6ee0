//! The tokens of a picture: a class token, then its patches, each with the embedding of its place
//! (Dosovitskiy et al., "An image is worth 16x16 words", 2021).
//!
//! `out[t] = (class at place 0, else patches[t]) + position[place]`. The patches' own embedding, a
//! convolution whose stride is its size, is a linear layer before; its row of a class token is not
//! read. Pictures are what texts are elsewhere: segments of a packed batch.

use rayon::prelude::*;

use super::Node;
use super::fast::vector;
use super::real::Real;
use crate::exec::cpu::CpuMem;
use crate::exec::reference::RefMem;
use crate::graph::backward::Backward;
use crate::graph::{Graph, Role, ValueId};

/// The op. It has no gradient: what it reads is frozen in every use.
#[derive(Clone, Debug)]
pub struct VisionEmbedding {
    /// (T, C)
    pub patches: ValueId,
    /// (C)
    pub class: ValueId,
    /// (P, C): a class token's, then those of the patches by row and column.
    pub position: ValueId,
    /// (T, C) `=`; may take the place of `patches`.
    pub out: ValueId,
}

impl VisionEmbedding {
    /// Adds the op; returns its result.
    pub fn push(
        g: &mut Graph,
        name: &str,
        patches: ValueId,
        (class, position): (ValueId, ValueId),
    ) -> ValueId {
        let shape = g.get(patches).shape.clone();
        let out = g.value(name, shape, Role::Temp);
        let op = VisionEmbedding {
            patches,
            class,
            position,
            out,
        };
        g.nodes.push(op.into());
        out
    }
}

impl Node for VisionEmbedding {
    fn reads(&self) -> Vec<ValueId> {
        vec![self.patches, self.class, self.position]
    }

    fn writes(&self) -> Vec<ValueId> {
        vec![self.out]
    }

    fn inplace(&self) -> Vec<(ValueId, ValueId)> {
        vec![(self.out, self.patches)]
    }

    /// # Panics
    /// Always: a model builder made something below it trainable.
    fn grad(&self, bw: &mut Backward<'_>) {
        let name = &bw.graph.get(self.out).name;
        panic!(
            "{name}: patches, class token and positions are frozen, nothing below may be trained"
        );
    }

    fn reference<F: Real>(&self, mem: &mut RefMem<'_, F>) {
        let (patches, class) = (mem.get(self.patches), mem.get(self.class));
        let (position, c) = (mem.get(self.position), mem.channels(self.out));
        let places = &mem.batch.places;
        let mut out = vec![F::zero(); places.len() * c];
        for (t, &place) in places.iter().enumerate() {
            for j in 0..c {
                let token = if place == 0 {
                    class[j]
                } else {
                    patches[t * c + j]
                };
                out[t * c + j] = token + position[place as usize * c + j];
            }
        }
        mem.set(self.out, out);
    }

    fn cpu(&self, mem: &mut CpuMem<'_>) {
        let c = mem.channels(self.out);
        let batch = mem.batch;
        mem.carry(self.out, self.patches);
        let reads = [Some(self.class), Some(self.position)];
        let (r, mut w) = mem.bind(&reads, &[Some(self.out)]);
        let (class, position) = (r[0], r[1]);
        let out = &mut w[0][..batch.tokens() * c];
        let rows = out.par_chunks_mut(c).zip(&batch.places);
        rows.for_each(|(row, &place)| {
            if place == 0 {
                row.copy_from_slice(class);
            }
            let position = &position[place as usize * c..][..c];
            vector(
                #[inline(always)]
                || row.iter_mut().zip(position).for_each(|(x, p)| *x += p),
            );
        });
    }
}

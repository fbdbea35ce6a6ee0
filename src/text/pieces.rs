//! Pieces of a batch: texts that are too many tokens for one pass go through the tower in several.

use std::ops::Range;

use super::pack::{Batch, MemberRows};

/// The texts of one pass: of each member a range of its texts, which may be empty.
pub type Piece = Vec<Range<usize>>;

impl Batch {
    /// Cuts the texts into passes of at most `max_tokens` packed tokens; a longer text is a pass of
    /// its own.
    ///
    /// Where a member's texts are cut depends on them alone. A pass takes pieces of several members,
    /// and a member's pieces stay in their order.
    pub fn pieces(&self, max_tokens: usize) -> Vec<Piece> {
        let none: Piece = self.members.iter().map(|m| empty(m.seqs.start)).collect();
        let mut passes: Vec<(usize, Piece)> = Vec::new();
        for (g, m) in self.members.iter().enumerate() {
            let mut next = 0;
            for seqs in self.cut(&m.seqs, max_tokens) {
                let tokens = self.tokens_of(&seqs).len();
                let room = |(n, _): &(usize, Piece)| n + tokens <= max_tokens;
                let found = passes[next..].iter().position(room);
                let at = found.map_or(passes.len(), |i| next + i);
                if at == passes.len() {
                    passes.push((0, none.clone()));
                }
                passes[at].0 += tokens;
                passes[at].1[g] = seqs;
                next = at + 1;
            }
        }
        passes.into_iter().map(|(_, piece)| piece).collect()
    }

    /// Runs of texts of at most `max_tokens` tokens each.
    fn cut(&self, seqs: &Range<usize>, max_tokens: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for s in seqs.clone() {
            match runs.last_mut() {
                Some(run) if self.tokens_of(&(run.start..s + 1)).len() <= max_tokens => {
                    run.end = s + 1;
                }
                _ => runs.push(s..s + 1),
            }
        }
        runs
    }

    /// The packed tokens of some texts.
    fn tokens_of(&self, seqs: &Range<usize>) -> Range<usize> {
        self.cu_seqlens[seqs.start]..self.cu_seqlens[seqs.end]
    }

    /// The batch of a piece: texts without items or images, each with the names of its random
    /// numbers.
    pub fn piece(&self, piece: &Piece) -> Batch {
        let mut b = Batch {
            prompt: self.prompt,
            ..nothing()
        };
        for seqs in piece {
            let (token0, seq0) = (b.ids.len(), b.roles.len());
            let tokens = self.tokens_of(seqs);
            b.ids.extend(&self.ids[tokens.clone()]);
            b.positions.extend(&self.positions[tokens.clone()]);
            b.types.extend(&self.types[tokens.clone()]);
            b.places.extend(&self.places[tokens.clone()]);
            let seq = |t: &u32| t - seqs.start as u32 + seq0 as u32;
            b.token_seq.extend(self.token_seq[tokens].iter().map(seq));
            b.roles.extend(&self.roles[seqs.clone()]);
            b.seq_items.extend(&self.seq_items[seqs.clone()]);
            b.seq_member.extend(&self.seq_member[seqs.clone()]);
            for s in seqs.clone() {
                let end = b.cu_seqlens[b.cu_seqlens.len() - 1] + self.segment(s).len();
                b.cu_seqlens.push(end);
            }
            b.members.push(MemberRows {
                tokens: token0..b.ids.len(),
                seqs: seq0..b.roles.len(),
                items: empty(0),
            });
        }
        b
    }

    /// The batch without its tokens: what an objective needs, whose texts are features already.
    pub fn without_tokens(&self) -> Batch {
        let member = |m: &MemberRows| MemberRows {
            tokens: empty(0),
            ..m.clone()
        };
        Batch {
            cu_seqlens: vec![0; self.cu_seqlens.len()],
            roles: self.roles.clone(),
            seq_items: self.seq_items.clone(),
            seq_member: self.seq_member.clone(),
            members: self.members.iter().map(member).collect(),
            images: self.images.clone(),
            ..nothing()
        }
    }
}

/// A batch of no members. Every field is named: a new one must be thought of here.
fn nothing() -> Batch {
    Batch {
        prompt: 0,
        ids: vec![],
        positions: vec![],
        types: vec![],
        places: vec![],
        token_seq: vec![],
        cu_seqlens: vec![0],
        roles: vec![],
        seq_items: vec![],
        seq_member: vec![],
        members: vec![],
        images: vec![],
    }
}

fn empty(at: usize) -> Range<usize> {
    at..at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pack::{Layout, MemberTexts, Text};

    /// A batch of members whose texts have these lengths.
    fn batch(members: &[&[usize]]) -> Batch {
        let ids: Vec<u32> = (0..100).collect();
        let texts = members.iter().enumerate().map(|(g, lengths)| {
            let text = |(i, n): (usize, &usize)| Text {
                ids: &ids[10 * g..10 * g + n],
                role: g as u8,
                item: i as u32,
            };
            MemberTexts {
                anchors: lengths.iter().enumerate().map(text).collect(),
                partners: vec![],
            }
        });
        let layout = Layout {
            position_offset: 2,
            prompt: 0,
        };
        Batch::pack(&texts.collect::<Vec<_>>(), layout, vec![])
    }

    #[test]
    fn members_are_cut_alone_and_share_passes() {
        let b = batch(&[&[3, 4, 2, 9, 1], &[], &[1, 1, 5]]);
        let pieces = b.pieces(7);
        // Texts 0 to 4 belong to the first member, 5 to 7 to the last: of 7 + 2 + 9 + 1 tokens and of
        // 7, which fit beside none of the first three.
        let want: [Piece; 5] = [
            vec![0..2, 5..5, 5..5],
            vec![2..3, 5..5, 5..5],
            vec![3..4, 5..5, 5..5],
            vec![4..5, 5..5, 5..5],
            vec![0..0, 5..5, 5..8],
        ];
        assert_eq!(pieces, want);
        // A member's cuts are those of the member alone.
        let alone = batch(&[&[1, 1, 5]]).pieces(7);
        assert_eq!((alone.len(), &alone[0][0]), (1, &(0..3)));
        let shared = batch(&[&[3, 4], &[2, 5, 1]]).pieces(9);
        assert_eq!(shared, [vec![0..2, 2..2], vec![0..0, 2..5]]);
        let shared = batch(&[&[3, 4], &[2, 5, 1]]).pieces(15);
        assert_eq!(shared, [vec![0..2, 2..5]]);
        let shared = batch(&[&[3, 4], &[2, 6, 1]]).pieces(8);
        assert_eq!(
            shared,
            [vec![0..2, 2..2], vec![0..0, 2..4], vec![0..0, 4..5]]
        );
    }

    #[test]
    fn a_piece_is_packed_as_the_whole() {
        let b = batch(&[&[3, 4, 2], &[1, 5]]);
        let p = b.piece(&vec![1..3, 4..5]);
        assert_eq!(p.cu_seqlens, [0, 4, 6, 11]);
        assert_eq!(p.ids, [0, 1, 2, 3, 0, 1, 10, 11, 12, 13, 14]);
        assert_eq!(p.positions[..5], [2, 3, 4, 5, 2]);
        assert_eq!(p.token_seq, [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2]);
        assert_eq!(
            (&p.seq_items[..], &p.roles[..]),
            (&[1, 2, 1][..], &[0, 0, 1][..])
        );
        assert_eq!(p.seq_member, [0, 0, 1]);
        assert_eq!(p.members[1].tokens, 6..11);
        let whole = b.piece(&vec![0..3, 3..5]);
        assert_eq!((&whole.ids, &whole.token_seq), (&b.ids, &b.token_seq));
        assert_eq!(whole.cu_seqlens, b.cu_seqlens);
        let prompted = Batch {
            prompt: 2,
            ..b.clone()
        };
        assert_eq!(prompted.piece(&vec![1..3, 4..5]).prompt, 2);
        let bare = b.without_tokens();
        assert_eq!((bare.tokens(), bare.seqs(), bare.items()), (0, 5, 5));
        assert_eq!(bare.members[1].seqs, 3..5);
    }
}

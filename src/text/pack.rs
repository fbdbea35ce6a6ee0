//! Packing: all texts of a step become one flat list of tokens, never padded.

use std::ops::Range;

use crate::graph::Bucket;

/// One text of a step.
#[derive(Clone, Debug)]
pub struct Text<'a> {
    /// Token ids with the special tokens.
    pub ids: &'a [u32],
    /// Which of an item's four texts it is, 0 to 3: names its random numbers.
    pub role: u8,
    /// Position of its item in the member's batch: names its random numbers.
    pub item: u32,
}

/// What one member brings to a step: anchors first, then partners in the same order, if any.
#[derive(Clone, Debug, Default)]
pub struct MemberTexts<'a> {
    /// One text an item, paired with its image.
    pub anchors: Vec<Text<'a>>,
    /// Empty, or one text an item for the text loss.
    pub partners: Vec<Text<'a>>,
}

/// Rows of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRows {
    /// Its packed tokens.
    pub tokens: Range<usize>,
    /// Its texts.
    pub seqs: Range<usize>,
    /// Its items.
    pub items: Range<usize>,
}

impl MemberRows {
    /// Texts that are paired with images.
    pub fn anchors(&self) -> Range<usize> {
        self.seqs.start..self.seqs.start + self.items.len()
    }

    /// Texts that are paired with anchors; empty for a baseline.
    pub fn partners(&self) -> Range<usize> {
        self.seqs.start + self.items.len()..self.seqs.end
    }
}

/// The structure of a step: which token belongs to which text, which text to which member.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Slots of a soft prompt in each text, k: its places 1 to k.
    pub prompt: usize,
    /// Token ids (T); 0 in the slots of a prompt, where nothing reads them.
    pub ids: Vec<u32>,
    /// Rows of the position table (T).
    pub positions: Vec<u32>,
    /// Rows of the token type table (T).
    pub types: Vec<u32>,
    /// Place of each token in its text, slots of a prompt counted (T): names its random numbers.
    pub places: Vec<u32>,
    /// Text of each token (T).
    pub token_seq: Vec<u32>,
    /// Offsets of the texts (S + 1).
    pub cu_seqlens: Vec<usize>,
    /// Role of each text (S).
    pub roles: Vec<u8>,
    /// Item of each text in its member's batch (S).
    pub seq_items: Vec<u32>,
    /// Member of each text (S).
    pub seq_member: Vec<u32>,
    /// Rows of each member (G).
    pub members: Vec<MemberRows>,
    /// Image features, not normalised (N, E). Empty for encoding.
    pub images: Vec<f32>,
}

/// Where the tokens of a text go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The row of the position table that a text's first token takes: 2 for XLM-R, 0 for BERT.
    pub position_offset: u32,
    /// Slots for a soft prompt after each text's first token, k.
    pub prompt: usize,
}

/// Which rows an op runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Packed tokens.
    Tokens,
    /// Texts.
    Seqs,
    /// Items.
    Items,
}

/// A run of rows of one member, of at most the asked size, counted from the member's first row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The member.
    pub member: usize,
    /// First row.
    pub start: usize,
    /// One past the last row.
    pub end: usize,
}

impl Batch {
    /// Packs the texts of all members, none of which is empty. `images` is (N, E) in the members'
    /// item order, or empty.
    ///
    /// The slots of a prompt are tokens like any other: they have positions and places of their own
    /// and count when a text is pooled.
    pub fn pack(members: &[MemberTexts<'_>], layout: Layout, images: Vec<f32>) -> Batch {
        let slots = vec![0; layout.prompt];
        let mut b = Batch {
            prompt: layout.prompt,
            cu_seqlens: vec![0],
            images,
            ..Batch::default()
        };
        let mut item = 0;
        for (g, m) in members.iter().enumerate() {
            let (token0, seq0, item0) = (b.ids.len(), b.roles.len(), item);
            for text in m.anchors.iter().chain(&m.partners) {
                let seq = b.roles.len() as u32;
                let (first, rest) = text.ids.split_at(1);
                let ids = first.iter().chain(&slots).chain(rest);
                for (place, &id) in ids.enumerate() {
                    b.ids.push(id);
                    b.places.push(place as u32);
                    b.positions.push(place as u32 + layout.position_offset);
                    b.types.push(0);
                    b.token_seq.push(seq);
                }
                b.cu_seqlens.push(b.ids.len());
                b.roles.push(text.role);
                b.seq_items.push(text.item);
                b.seq_member.push(g as u32);
            }
            item += m.anchors.len();
            b.members.push(MemberRows {
                tokens: token0..b.ids.len(),
                seqs: seq0..b.roles.len(),
                items: item0..item,
            });
        }
        b
    }

    /// Which vector of the prompt a token's place is the slot of, if it is one.
    #[inline(always)]
    pub fn slot(&self, token: usize) -> Option<usize> {
        let place = self.places[token] as usize;
        (1..=self.prompt).contains(&place).then(|| place - 1)
    }

    /// Number of packed tokens, T.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of texts, S.
    pub fn seqs(&self) -> usize {
        self.roles.len()
    }

    /// Number of items, N.
    pub fn items(&self) -> usize {
        self.members.last().map_or(0, |m| m.items.end)
    }

    /// The longest text.
    pub fn longest(&self) -> usize {
        self.cu_seqlens
            .windows(2)
            .map(|w| w[1] - w[0])
            .max()
            .unwrap_or(0)
    }

    /// The smallest bucket that holds this batch.
    pub fn bucket(&self) -> Bucket {
        Bucket::holding(self.tokens(), self.seqs(), self.items(), self.members.len())
    }

    /// True number of rows.
    pub fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens(),
            Rows::Seqs => self.seqs(),
            Rows::Items => self.items(),
        }
    }

    /// Rows of one member.
    pub fn member_rows(&self, rows: Rows, member: usize) -> Range<usize> {
        let m = &self.members[member];
        match rows {
            Rows::Tokens => m.tokens.clone(),
            Rows::Seqs => m.seqs.clone(),
            Rows::Items => m.items.clone(),
        }
    }

    /// The member of a row.
    pub fn member_of(&self, rows: Rows, row: usize) -> usize {
        match rows {
            Rows::Tokens => self.seq_member[self.token_seq[row] as usize] as usize,
            Rows::Seqs => self.seq_member[row] as usize,
            Rows::Items => self.members.partition_point(|m| m.items.end <= row),
        }
    }

    /// The tokens of a text.
    pub fn segment(&self, seq: usize) -> Range<usize> {
        self.cu_seqlens[seq]..self.cu_seqlens[seq + 1]
    }

    /// All rows, cut at the members and every `size` rows from a member's first: the grain of every
    /// reduction over rows.
    pub fn chunks(&self, rows: Rows, size: usize) -> Vec<Chunk> {
        let mut out = Vec::new();
        for member in 0..self.members.len() {
            let range = self.member_rows(rows, member);
            for start in range.clone().step_by(size) {
                out.push(Chunk {
                    member,
                    start,
                    end: range.end.min(start + size),
                });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(prompt: usize) -> Layout {
        Layout {
            position_offset: 2,
            prompt,
        }
    }

    #[test]
    fn a_prompt_has_its_slots_after_each_first_token() {
        let ids: [&[u32]; 2] = [&[5, 7, 9], &[6]];
        let anchors = ids.map(|ids| Text {
            ids,
            role: 0,
            item: 0,
        });
        let member = MemberTexts {
            anchors: anchors.to_vec(),
            partners: vec![],
        };
        let b = Batch::pack(&[member], layout(2), vec![]);
        assert_eq!(b.ids, [5, 0, 0, 7, 9, 6, 0, 0]);
        assert_eq!(b.cu_seqlens, [0, 5, 8]);
        assert_eq!(b.places, [0, 1, 2, 3, 4, 0, 1, 2]);
        assert_eq!(b.positions, [2, 3, 4, 5, 6, 2, 3, 4]);
        let slots: Vec<Option<usize>> = (0..8).map(|t| b.slot(t)).collect();
        let (one, two) = (Some(0), Some(1));
        assert_eq!(slots, [None, one, two, None, None, None, one, two]);
    }

    #[test]
    fn members_texts_and_chunks_are_cut_where_they_begin() {
        let ids: Vec<Vec<u32>> = vec![vec![0, 7, 2], vec![0, 2], vec![0, 8, 9, 2]];
        let text = |i: usize| Text {
            ids: &ids[i],
            role: 0,
            item: i as u32,
        };
        let a = MemberTexts {
            anchors: vec![text(0), text(1)],
            partners: vec![text(1), text(2)],
        };
        let c = MemberTexts {
            anchors: vec![text(2)],
            partners: vec![],
        };
        let b = Batch::pack(&[a, c], layout(0), vec![]);
        assert_eq!(b.cu_seqlens, [0, 3, 5, 7, 11, 15]);
        assert_eq!(b.positions[..5], [2, 3, 4, 2, 3]);
        assert_eq!(b.members[0].anchors(), 0..2);
        assert_eq!(b.members[0].partners(), 2..4);
        assert_eq!(b.members[1].tokens, 11..15);
        assert_eq!(b.members[1].partners(), 5..5);
        assert_eq!(b.items(), 3);
        assert_eq!(b.member_of(Rows::Tokens, 10), 0);
        assert_eq!(b.member_of(Rows::Items, 2), 1);
        let chunks = b.chunks(Rows::Tokens, 4);
        assert_eq!(chunks.len(), 4);
        assert_eq!(
            chunks[2],
            Chunk {
                member: 0,
                start: 8,
                end: 11
            }
        );
        assert_eq!(
            chunks[3],
            Chunk {
                member: 1,
                start: 11,
                end: 15
            }
        );
    }
}

//! `kernels/linear.cu` and `kernels/lora.cu`

use crosstune::cuda::ops::DeviceTensor;
use crosstune::cuda::ops::linear::{BranchGrad, LoraBackward, Tile, lora_backward};
use crosstune::text::pack::Rows;

use crate::linear_case::{Layer, OP, layer, qkv};
use crate::rig::*;

const QKV: usize = 6;
const TILES: [Tile; 2] = [Tile::Small, Tile::Large];

#[test]
fn linear_agrees_with_the_loops() {
    for tile in TILES {
        for (c, oc, rank, members) in [
            (1, 1, 1, ONE),
            (8, 8, 8, ALONE),
            (37, 41, 5, SEVERAL),
            (64, 136, 16, SEVERAL),
            (96, 40, 20, SEVERAL),
            (40, 64, 0, SEVERAL),
        ] {
            agrees(&layer(c, oc, rank, tile), members);
        }
    }
}

#[test]
fn linear_agrees_at_real_size() {
    agrees(&layer(768, 768, 8, Tile::Small), REAL);
    agrees(&layer(768, 256, 8, Tile::Large), REAL);
}

#[test]
fn linear_side_by_side_agrees_with_the_loops() {
    for tile in TILES {
        for i in 0..QKV {
            agrees(&qkv(i, tile), if i == 1 { ALONE } else { SEVERAL });
        }
    }
}

#[test]
fn linear_of_texts_and_items_agrees_with_the_loops() {
    for (rows, i, tile) in [
        (Rows::Seqs, 0, Tile::Small),
        (Rows::Items, 1, Tile::Large),
        (Rows::Seqs, 2, Tile::Large),
        (Rows::Items, 3, Tile::Small),
    ] {
        let case = qkv(i, tile);
        agrees(&Layer { rows, ..case }, SEVERAL);
    }
}

#[test]
fn linear_gives_the_same_bits_in_any_tile() {
    for i in 0..QKV {
        let give = |tile| outputs(&qkv(i, tile), SEVERAL);
        assert!(give(Tile::Small) == give(Tile::Large), "{i}");
    }
}

/// Layers side by side give what each gives alone.
#[test]
fn linear_gives_the_same_bits_side_by_side() {
    let case = qkv(0, Tile::Small);
    let all = outputs(&case, SEVERAL);
    let width = case.width();
    let alone = Layer {
        parts: vec![case.parts[0]],
        ..case
    };
    let alone = outputs(&alone, SEVERAL);
    let own = alone[0].values().chunks(24);
    for (row, own) in all[0].values().chunks(width).zip(own) {
        assert_eq!(&row[..24], own);
    }
}

#[test]
fn linear_repeats_its_bits() {
    for tile in TILES {
        repeats(&layer(72, 37, 12, tile), SEVERAL);
    }
    repeats(&qkv(3, Tile::Large), SEVERAL);
    repeats(&qkv(4, Tile::Small), SEVERAL);
}

#[test]
fn linear_of_a_member_is_the_same_alone() {
    for tile in TILES {
        alone_as_in_company(&layer(72, 37, 12, tile), SEVERAL);
        for i in 0..QKV {
            alone_as_in_company(&qkv(i, tile), SEVERAL);
        }
    }
}

#[test]
fn linear_replays_with_other_sizes() {
    let steps: [&[Member]; 3] = [ALONE, &[Member(1, false, 3, 8)], REAL];
    replays(&layer(40, 37, 4, Tile::Small), &steps);
    replays(&layer(40, 37, 4, Tile::Large), &steps);
    replays(&qkv(2, Tile::Small), &steps);
    replays(&qkv(5, Tile::Small), &steps);
}

/// Whatever is a member's own may be infinite or not a number: it stays its own.
#[test]
fn linear_keeps_a_members_infinities_to_itself() {
    let spoils = [
        (0, "lora_b0", f32::INFINITY),
        (0, "lora_a2", f32::NAN),
        (2, "weight1", f32::INFINITY),
        (3, "bias0", f32::NAN),
        (5, "weight0", f32::NAN),
        (5, "lora_a0", f32::INFINITY),
    ];
    for ((i, name, value), tile) in spoils.into_iter().flat_map(|s| TILES.map(|t| (s, t))) {
        let case = qkv(i, tile);
        let world = World::new(SEVERAL);
        let sound = outputs(&case, SEVERAL);
        let d = Device::of(&world, None);
        load(&case, &d, &world);
        let (t, mut numbers) = d.read(name);
        for row in numbers[..t.rows * t.ld].chunks_mut(t.ld) {
            row[..t.cols].fill(value);
        }
        d.overwrite(name, &numbers);
        case.launch(&d).expect("launched");
        let spoilt = case.read(&d, &world);
        for (a, b) in sound.iter().zip(&spoilt) {
            for g in 1..SEVERAL.len() {
                let same = a.of_member(&world, g) == b.of_member(&world, g);
                assert!(same, "{name} {tile:?} member {g}: {a:?}");
            }
        }
        let finite = |o: &Out| o.values().iter().all(|x| x.is_finite());
        assert!(!spoilt.iter().all(finite), "{name}");
    }
}

/// `out` in columns of something wider.
#[test]
fn linear_writes_columns_of_something_wider() {
    let case = Layer {
        act: None,
        ..qkv(0, Tile::Small)
    };
    let world = World::new(ALONE);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let wide = d.poison_rows("wide", Rows::Tokens, 120);
    let own = DeviceTensor {
        ptr: wide.ptr.offset(24 * 2),
        cols: 72,
        ..wide
    };
    case.forward(&d, own).expect("launched");
    let wide = d.out_rows(OP, "wide", Rows::Tokens, &world);
    let want = outputs(&case, ALONE);
    for (wide, row) in wide.values().chunks(120).zip(want[0].values().chunks(72)) {
        assert_eq!(&wide[24..96], row);
        assert!(wide[..24].iter().chain(&wide[96..]).all(|x| x.is_nan()));
    }
}

/// Gradients add up, so a call that can't be done whole must do nothing.
#[test]
fn linear_launches_nothing_where_a_tensor_is_wrong() {
    let case = qkv(0, Tile::Small);
    let world = World::new(ALONE);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let (parts, mut branches) = (case.parts(&d), case.branches(&d));
    let refused = |branches: &[Option<BranchGrad>]| {
        let op = LoraBackward {
            rows: Rows::Tokens,
            dout: d.get("dout"),
            inp: d.get("inp"),
            parts: &parts,
            branches,
        };
        lora_backward(d.context(), &op)
            .expect_err("refused")
            .to_string()
    };
    let last = branches[2].as_mut().expect("a branch");
    last.dlora_b = Some(d.get("dlora_a2"));
    let why = refused(&branches);
    assert!(why.contains("dlora_b is F32 members"), "{why}");
    let why = refused(&branches[..2]);
    assert!(why.contains("gradients of branches"), "{why}");
    let (_, v) = d.read("v0");
    assert!(v.iter().all(|x| x.is_nan()));
}

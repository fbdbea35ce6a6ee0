//! What the virtual machine counts, exactly: sectors moved for nothing, bank conflicts, matrix FLOPs.

use crosstune::cuda::ops::linear::Tile;
use crosstune::ops::activation::Kind;
use crosstune::ops::contrastive::Pair;
use crosstune::text::pack::Rows;

use crate::activation::Act;
use crate::attention::Heads;
use crate::contrastive::Loss;
use crate::embedding::Embed;
use crate::gelu::Gelu;
use crate::l2_norm::Unit;
use crate::layer_norm::{Norm, Params};
use crate::linear_case::layer;
use crate::linear_weight::Weight;
use crate::mse::Mse;
use crate::phm::{self, Dinp};
use crate::pool::Pool;
use crate::rig::*;

/// Asserts that no kernel of a case, its launches together, moves more than `sectors` times what its
/// bytes fill, nor has more than `conflicts` bank conflicts a shared request.
fn frugal(case: &dyn Case, members: &[Member], (sectors, conflicts): (f64, f64)) {
    for (kernel, c) in counted(case, members) {
        let t = c.total;
        let moved = t.sectors_moved as f64 / t.sectors_needed as f64;
        let passes = t.bank_conflicts as f64 / t.shared_requests.max(1) as f64;
        println!("{kernel}: {moved:.2} of the sectors needed, {passes:.3} conflicts a request");
        assert!(moved <= sectors, "{case:?}: {kernel} {moved}");
        assert!(passes <= conflicts, "{case:?}: {kernel} {passes}");
    }
}

#[test]
fn memory_bound_kernels_move_what_they_need() {
    let norm = |params, drop| Norm {
        c: 768,
        params,
        drop,
        in_place: false,
    };
    frugal(&norm(Params::FrozenF16, Some(0.1)), REAL, (1.0, 0.0));
    // f32 weights are read in two halves of 16 bytes, the second from L1.
    frugal(&norm(Params::PerMember, None), REAL, (1.6, 0.0));
    let gelu = Gelu {
        c: 768,
        in_place: false,
    };
    frugal(&gelu, REAL, (1.0, 0.0));
    for kind in [Kind::GeluTanh, Kind::Relu] {
        let act = Act {
            kind,
            c: 24,
            in_place: true,
        };
        frugal(&act, REAL, (1.0, 0.0));
    }
    frugal(&Pool { c: 768 }, REAL, (1.0, 0.0));
    let unit = Unit {
        rows: Rows::Seqs,
        e: 512,
        in_place: false,
    };
    frugal(&unit, REAL, (1.0, 0.0));
    frugal(&Mse { e: 512 }, REAL, (1.0, 0.0));
    let embed = Embed {
        c: 768,
        params: Params::FrozenF16,
        drop: Some(0.1),
        in_place: false,
        prompt: 0,
    };
    frugal(&embed, REAL, (1.0, 0.0));
    // A lane has eight f32 numbers in a row of a prompt's gradient, and searches ids of 16 bytes.
    frugal(&Embed { prompt: 8, ..embed }, REAL, (2.0, 0.0));
}

/// What is moved in vain are rules: n numbers in a row.
#[test]
fn phm_moves_what_it_needs() {
    for (k, oc) in [(768, 48), (48, 768)] {
        frugal(&phm::layer(4, k, oc, Dinp::Added), REAL, (1.1, 0.0));
    }
}

/// What is moved in vain are log-sum-exps: 4 bytes of a sector of 32, which its neighbours are in.
#[test]
fn attention_has_no_bank_conflicts() {
    let case = Heads {
        heads: 2,
        size: 64,
        drop: Some(0.1),
    };
    frugal(&case, REAL, (1.05, 0.0));
}

/// The little that is moved in vain is low-rank: rows of 16 bytes.
#[test]
fn products_have_no_bank_conflicts() {
    for tile in [Tile::Small, Tile::Large] {
        frugal(&layer(256, 256, 8, tile), REAL, (1.35, 0.35));
    }
    let weight = Weight {
        rows: Rows::Tokens,
        c: 128,
        oc: 128,
    };
    frugal(&weight, REAL, (1.0, 0.0));
    let loss = Loss {
        pair: Pair::ImageAnchor,
        e: 512,
        dimage: false,
    };
    frugal(&loss, &[Member(128, false, 1, 1)], (1.1, 0.0));
}

/// Whole tiles of 64 tokens, K and one step of 16 for the branch, and not one instruction more.
#[test]
fn products_do_only_what_they_must() {
    let flops: Vec<u64> = counted(&layer(256, 256, 8, Tile::Small), REAL)
        .iter()
        .filter(|(kernel, _)| *kernel == "linear_forward_small_f16")
        .map(|(_, c)| c.total.matrix_flops)
        .collect();
    let rows = World::new(REAL).count(Rows::Tokens).next_multiple_of(64) as u64;
    let want = 2 * rows * 256 * (256 + 16);
    assert!(
        flops.iter().all(|f| *f <= want),
        "{flops:?}, at most {want}"
    );
}

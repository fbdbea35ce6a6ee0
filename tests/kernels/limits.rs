//! What no kernel may cost. Each limit tells the kernels that break it; tests/kernels/worse.rs shows
//! that it does.

use crosstune::cuda::ops::linear::Tile;
use crosstune::cuda::report::{Code, Work};
use crosstune::text::pack::Rows;

use crate::linear_case::layer;
use crate::report::report;
use crate::rig::*;

/// A kernel, and why it is exempt.
type Exempt = (&'static str, &'static str);

/// Files whose kernels multiply matrices.
const PRODUCTS: [&str; 5] = [
    "attention",
    "contrastive",
    "linear",
    "linear_weight",
    "lora",
];

/// In these files, what is no product of matrices.
const NO_PRODUCT: &[Exempt] = &[
    ("contrastive_loss_f32", "a sum of terms"),
    ("linear_backward_bias_f32", "a sum of rows"),
    (
        "lora_backward_params_f16",
        "f32 sums of R numbers a row: memory bound",
    ),
];

/// Kernels whose code loads, or stores, nothing by 16 bytes a lane.
const NARROW_CODE: &[Exempt] = &[
    ("adam_copy_f16 stores", "f16 copies leave by 8 bytes"),
    ("adam_factors_f32 loads", "a reduction: partials one a lane"),
    (
        "adam_partials_f32 stores",
        "a reduction: one number a block",
    ),
    ("contrastive_forward_f16 stores", "numbers of a row"),
    (
        "contrastive_loss_f32 loads",
        "a reduction: terms one a lane",
    ),
    (
        "contrastive_loss_f32 stores",
        "a reduction: one number a member",
    ),
    (
        "layer_norm_backward_params_f32 loads",
        "a reduction: a column of partials a lane",
    ),
    (
        "layer_norm_backward_params_f32 stores",
        "a reduction: a column a lane",
    ),
    (
        "linear_backward_bias_f32 stores",
        "a reduction: a column a lane",
    ),
    (
        "linear_backward_weight_f32 stores",
        "pairs of f32 as mma.sync leaves them: whole sectors",
    ),
    (
        "lora_backward_params_f16 stores",
        "a reduction: R numbers a row",
    ),
    ("lora_project_f16 stores", "R numbers a row"),
    ("lora_project_backward_f16 stores", "R numbers a row"),
    ("mse_forward_f32 stores", "a reduction: one number a member"),
    (
        "phm_backward_params_f32 loads",
        "a reduction: n numbers a row",
    ),
    (
        "phm_backward_params_f32 stores",
        "a reduction: n numbers a row",
    ),
];

/// Memory-bound kernels that move little by 16 bytes a lane.
const NARROW_TRAFFIC: &[Exempt] = &[
    ("adam_copy_f16", "f16 copies leave by 8 bytes"),
    (
        "adam_factors_f32",
        "a reduction: partials one a lane, settings",
    ),
    ("adam_partials_f32", "index reads: which tensor a block has"),
    ("contrastive_loss_f32", "a reduction: terms one a lane"),
    (
        "embedding_backward_table_f32",
        "index reads: ids of all tokens before",
    ),
    (
        "layer_norm_backward_params_f32",
        "a reduction: a column of partials a lane",
    ),
    (
        "mse_backward_f16",
        "index reads: a row of 64 numbers has one member",
    ),
    ("mse_forward_f32", "index reads: few rows of 64 numbers"),
    ("phm_backward_f16", "n numbers a row of rules, f32 sums"),
    ("phm_backward_params_f32", "a reduction: n numbers a row"),
    ("phm_forward_f16", "n numbers a row of rules, f32 sums"),
    (
        "pool_backward_f16",
        "index reads: a row of 128 numbers has one text",
    ),
];

/// Sectors moved for each one needed.
const SECTORS: f64 = 1.1;
/// The share of its sectors that a memory-bound kernel moves by 16 bytes a lane.
const WIDE: f64 = 0.75;

/// What breaks a limit.
pub struct Found {
    pub kernel: String,
    /// Where, and how far.
    pub what: String,
}

fn found(kernel: &str, what: String) -> Found {
    Found {
        kernel: kernel.into(),
        what,
    }
}

/// Kernels whose registers ran out.
pub fn spills(code: &[Code]) -> Vec<Found> {
    let spilt = code.iter().filter(|c| c.spill_bytes + c.stack_bytes > 0);
    let what = |c: &Code| {
        let (arch, spilt, stack) = (&c.architecture, c.spill_bytes, c.stack_bytes);
        found(
            &c.kernel,
            format!("on {arch}: {spilt} bytes spilt, a stack of {stack}"),
        )
    };
    spilt.map(what).collect()
}

/// Kernels without tensor instructions in files of products.
pub fn no_tensor_instruction(code: &[Code]) -> Vec<Found> {
    let products = code.iter().filter(|c| PRODUCTS.contains(&&*c.file));
    let by_hand = products.filter(|c| c.sass.as_ref().is_some_and(|s| s.tensor == 0));
    by_hand
        .map(|c| found(&c.kernel, format!("on {}", c.architecture)))
        .collect()
}

/// Kernels without loads, or without stores, of 16 bytes a lane.
pub fn narrow_code(code: &[Code]) -> Vec<Found> {
    let mut out = vec![];
    for c in code {
        let Some(s) = &c.sass else { continue };
        if !s.loads.contains_key(&128) && !s.copies.contains_key(&128) {
            out.push(found(
                &format!("{} loads", c.kernel),
                format!("on {}: {:?}", c.architecture, s.loads),
            ));
        }
        if !s.stores.contains_key(&128) {
            out.push(found(
                &format!("{} stores", c.kernel),
                format!("on {}: {:?}", c.architecture, s.stores),
            ));
        }
    }
    out
}

/// Kernels that are no products and move little of what they move by 16 bytes a lane.
pub fn narrow_traffic(work: &[Work]) -> Vec<Found> {
    let is_product =
        |w: &Work| PRODUCTS.contains(&&*w.file) && !NO_PRODUCT.iter().any(|e| e.0 == w.kernel);
    let narrow = work
        .iter()
        .filter(|w| !is_product(w) && w.counted.vector_share() < WIDE);
    let what = |w: &Work| format!("in {}: {:.2}", w.case, w.counted.vector_share());
    narrow.map(|w| found(&w.kernel, what(w))).collect()
}

/// Kernels that move more than [`SECTORS`] for each one needed.
pub fn wasted_sectors(work: &[Work]) -> Vec<Found> {
    let wasteful = work.iter().filter(|w| w.counted.sector_ratio() > SECTORS);
    let what = |w: &Work| format!("in {}: {:.3}", w.case, w.counted.sector_ratio());
    wasteful.map(|w| found(&w.kernel, what(w))).collect()
}

/// Kernels of products with bank conflicts, in the main loop or beside it.
pub fn conflicts(work: &[Work]) -> Vec<Found> {
    let products = work.iter().filter(|w| PRODUCTS.contains(&&*w.file));
    let found = products.filter(|w| w.counted.bank_conflicts > 0).map(|w| {
        let (n, of) = (w.counted.bank_conflicts, w.counted.shared_requests);
        found(&w.kernel, format!("in {}: {n} in {of} requests", w.case))
    });
    found.collect()
}

/// Only what is exempt may be found, and all of that must be.
fn only(limit: &str, found: &[Found], exempt: &[Exempt]) {
    let names: Vec<&str> = exempt.iter().map(|e| e.0).collect();
    let others = found.iter().filter(|f| !names.contains(&&*f.kernel));
    let others: Vec<String> = others.map(|f| format!("{} {}", f.kernel, f.what)).collect();
    assert!(others.is_empty(), "{limit}:\n{}", others.join("\n"));
    for name in names {
        let needed = found.iter().any(|f| f.kernel == name);
        assert!(needed, "{limit}: {name} is exempt and needs not be");
    }
}

/// Whether the build could read machine code.
fn has_sass() -> bool {
    let has = report().disassembler.is_some();
    let all = report().code.iter().all(|c| c.sass.is_some());
    assert!(all == has, "machine code of some kernels was not read");
    if !has {
        println!("SKIPPED: no cuobjdump beside nvcc (scripts/cuda.sh installs it)");
    }
    has
}

#[test]
fn no_kernel_spills() {
    only("spills", &spills(&report().code), &[]);
}

#[test]
fn products_use_tensor_instructions() {
    if has_sass() {
        let found = no_tensor_instruction(&report().code);
        only("no tensor instruction", &found, NO_PRODUCT);
    }
}

#[test]
fn code_has_accesses_of_16_bytes() {
    if has_sass() {
        only("narrow code", &narrow_code(&report().code), NARROW_CODE);
    }
}

#[test]
fn traffic_moves_in_16_bytes() {
    only(
        "narrow traffic",
        &narrow_traffic(&report().work),
        NARROW_TRAFFIC,
    );
}

#[test]
fn sectors_are_used() {
    only(
        "sectors for each one needed",
        &wasted_sectors(&report().work),
        &[],
    );
}

#[test]
fn main_loops_have_no_bank_conflicts() {
    let work = &report().work;
    only("bank conflicts", &conflicts(work), &[]);
    // That the lines are there to be looked at.
    let reads = |w: &Work| w.lines.iter().any(|l| l.file.ends_with("mma.cuh"));
    for file in PRODUCTS {
        assert!(work.iter().any(|w| w.file == file && reads(w)), "{file}");
    }
}

/// Warps hide each other's waits: so many registers a thread let twelve warps of attention with heads
/// of 64 live on a multiprocessor of 65,536, and 32 of a Compacter's.
#[test]
fn registers_leave_room_for_other_blocks() {
    for (kernel, limit) in [
        ("attention_forward_64_f16", 128),
        ("attention_backward_queries_64_f16", 128),
        ("attention_backward_64_f16", 168),
        ("phm_forward_f16", 64),
        ("phm_backward_f16", 64),
    ] {
        let found: Vec<&Code> = report()
            .code
            .iter()
            .filter(|c| c.kernel == kernel)
            .collect();
        assert!(!found.is_empty(), "no kernel {kernel}");
        assert!(found.iter().all(|c| c.registers <= limit), "{found:?}");
    }
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
    let holds = !flops.is_empty() && flops.iter().all(|f| *f <= want);
    assert!(holds, "{flops:?}, at most {want}");
}

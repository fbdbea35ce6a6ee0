//! A correct kernel with one instruction removed or changed: the virtual machine must say what is
//! wrong, and at which line of the source.

use crosstune::cuda::embedded;

use crate::attention::Heads;
use crate::layer_norm::{Norm, PerMember};
use crate::linear_case::layer;
use crate::rig::*;
use crosstune::cuda::ops::linear::Tile;
use crosstune::ops::attention::Mask;
use crosstune::text::pack::Rows;

/// Which instruction of a kernel's PTX is changed: the `nth` whose text holds `has`.
struct Plant<'a> {
    file: &'a str,
    kernel: &'a str,
    has: &'a str,
    nth: usize,
    /// The instruction in its place.
    becomes: fn(&str) -> String,
}

impl Plant<'_> {
    fn text(&self) -> String {
        let file = embedded::file(self.file).expect("an embedded file");
        let start = file.ptx.find(&format!(".entry {}(", self.kernel));
        let start = start.unwrap_or_else(|| panic!("no kernel {}", self.kernel));
        let (before, body) = file.ptx.split_at(start);
        let mut seen = 0;
        let mut changed = false;
        let lines: Vec<String> = body
            .lines()
            .map(|line| {
                if !changed && line.contains(self.has) && line.trim_end().ends_with(';') {
                    seen += 1;
                    if seen == self.nth {
                        changed = true;
                        return (self.becomes)(line);
                    }
                }
                line.into()
            })
            .collect();
        assert!(changed, "{} has no {}", self.kernel, self.has);
        format!("{before}{}", lines.join("\n"))
    }

    /// Runs the changed kernel: the fault must be of this kind, and at a line that holds `source`.
    fn is_found(&self, case: &dyn Case, members: &[Member], kind: &str, source: &str) {
        let world = World::new(members);
        let d = Device::of(&world, None);
        let Some(vm) = d.vm() else {
            println!("skipped: a GPU takes no edited kernels and finds no faults");
            return;
        };
        vm.replace(self.file, self.text());
        load(case, &d, &world);
        let fault = match case.launch(&d) {
            Ok(()) => panic!("{}: {kind} was not found", self.kernel),
            Err(e) => e.to_string(),
        };
        assert!(
            fault.contains(self.kernel) && fault.contains(kind),
            "expected {kind}: {fault}"
        );
        let place = fault
            .split(" at ")
            .nth(1)
            .and_then(|p| p.split([',', ' ']).next());
        let (path, line) = place.and_then(|p| p.rsplit_once(':')).expect("a place");
        let text = std::fs::read_to_string(path).expect("the source that was compiled");
        let line = line.parse::<usize>().expect("a line");
        let line = text.lines().nth(line - 1).unwrap_or("");
        assert!(
            line.contains(source),
            "expected a line with {source}: {fault}\n{line}"
        );
    }
}

const NORM: &Norm = &Norm {
    c: 72,
    params: PerMember,
    drop: None,
    rows: Rows::Tokens,
    resid: true,
    in_place: false,
};

fn removed(_: &str) -> String {
    String::new()
}

const PRODUCT: &str = "linear_forward_small_f16";

#[test]
fn a_missing_wait_is_found() {
    let plant = Plant {
        file: "linear",
        kernel: PRODUCT,
        has: "cp.async.wait_group 1",
        nth: 1,
        becomes: removed,
    };
    plant.is_found(
        &layer(64, 64, 8, Tile::Small),
        SEVERAL,
        "cp.async not waited for",
        "shared_addr(p)",
    );
}

#[test]
fn a_missing_barrier_is_found() {
    let plant = Plant {
        file: "layer_norm",
        kernel: "layer_norm_backward_params_f32",
        has: "bar.sync",
        nth: 1,
        becomes: removed,
    };
    plant.is_found(NORM, SEVERAL, "uninitialised read", "sums[y][k][x]");
}

/// The probabilities that a lane leaves are operands of all.
#[test]
fn a_missing_barrier_between_warps_is_found() {
    let plant = Plant {
        file: "attention",
        kernel: "attention_backward_32_f16",
        has: "bar.sync",
        nth: 3,
        becomes: removed,
    };
    let case = Heads {
        heads: 1,
        size: 32,
        drop: None,
        mask: Mask::All,
    };
    plant.is_found(&case, SEVERAL, "race in shared memory", "shared_addr(p)");
}

#[test]
fn a_missing_initialisation_is_found() {
    let plant = Plant {
        file: "layer_norm",
        kernel: "layer_norm_backward_params_f32",
        has: "st.shared.f32",
        nth: 1,
        becomes: removed,
    };
    plant.is_found(NORM, SEVERAL, "uninitialised read", "sums[y][k][x]");
}

#[test]
fn a_wrong_mask_is_found() {
    let plant = Plant {
        file: "layer_norm",
        kernel: "layer_norm_forward_f16",
        has: "shfl.sync",
        nth: 1,
        becomes: |line| match line.rsplit_once(',') {
            Some((before, _mask)) => format!("{before}, 1;"),
            None => line.into(),
        },
    };
    plant.is_found(NORM, SEVERAL, "missing lanes", "shfl_bfly_sync");
}

#[test]
fn a_wrong_alignment_is_found() {
    let plant = Plant {
        file: "layer_norm",
        kernel: "layer_norm_forward_f16",
        has: "st.global.v4",
        nth: 1,
        becomes: |line| line.replace("],", "+4],"),
    };
    plant.is_found(NORM, SEVERAL, "misaligned access", "store16");
}

#[test]
fn a_wrong_bound_is_found() {
    let plant = Plant {
        file: "layer_norm",
        kernel: "layer_norm_forward_f16",
        has: "st.global.v4",
        nth: 1,
        becomes: |line| line.replace("],", "+1048576],"),
    };
    plant.is_found(NORM, SEVERAL, "out of bounds", "store16");
}

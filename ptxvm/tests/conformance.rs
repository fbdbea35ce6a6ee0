//! The conformance suite in the virtual machine; crosstune's tests run it through its driver.

#[path = "../conformance/mod.rs"]
mod suite;

use ptxvm::{Launch, Machine, Options};
use suite::{Argument, Case};

/// Runs a case; what it wrote, or why it did not end.
fn run(case: &Case, order_seed: Option<u64>) -> Result<Vec<u8>, String> {
    let mut machine = Machine::new(Options {
        order_seed,
        ..Options::default()
    });
    let program = machine
        .load(&case.ptx)
        .map_err(|e| format!("{}: {e}", case.name))?;
    let mut out = None;
    let mut args = Vec::new();
    for argument in &case.args {
        args.push(match argument {
            Argument::Out(before) => {
                let address = machine.alloc(case.want.len(), "out");
                if !before.is_empty() {
                    machine
                        .copy_in(address, before)
                        .map_err(|e| e.to_string())?;
                }
                out = Some(address);
                address.to_le_bytes().to_vec()
            }
            Argument::In(bytes) => {
                let address = machine.alloc(bytes.len(), "in");
                machine.copy_in(address, bytes).map_err(|e| e.to_string())?;
                address.to_le_bytes().to_vec()
            }
            Argument::U32(x) => x.to_le_bytes().to_vec(),
            Argument::U64(x) => x.to_le_bytes().to_vec(),
        });
    }
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    let launch = Launch {
        grid: [case.grid, 1, 1],
        block: [case.block, 1, 1],
        shared_bytes: case.shared_bytes,
    };
    machine
        .launch(&program, case.kernel, launch, &args)
        .map_err(|fault| format!("{}: {fault}", case.name))?;
    let mut got = vec![0; case.want.len()];
    machine
        .copy_out(out.ok_or("no output")?, &mut got)
        .map_err(|e| e.to_string())?;
    Ok(got)
}

/// Every case of a family, in order and in two orders of warps and blocks drawn at random.
fn family(name: &str) {
    let cases: Vec<Case> = suite::cases()
        .into_iter()
        .filter(|c| c.family == name)
        .collect();
    assert!(!cases.is_empty(), "no family {name}");
    let failures: Vec<String> = cases
        .iter()
        .flat_map(|case| {
            [None, Some(1), Some(99)].map(|seed| run(case, seed).and_then(|got| case.check(&got)))
        })
        .filter_map(Result::err)
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} runs:\n{}",
        failures.len(),
        3 * cases.len(),
        failures.join("\n")
    );
}

/// A test for each family, and one that none is forgotten.
macro_rules! families {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            family($name);
        })*

        #[test]
        fn every_family_has_its_test() {
            let tested = [$($name),*];
            // A driver that knows files by their names takes cases by theirs.
            let mut texts = std::collections::HashMap::new();
            for case in suite::cases() {
                let text = texts.entry(case.name.clone()).or_insert(case.ptx.clone());
                assert_eq!(*text, case.ptx, "two cases of one name");
                assert!(tested.contains(&case.family), "{}: {}", case.family, case.name);
            }
        }
    };
}

families! {
    integer_arithmetic: "integer arithmetic",
    logic_and_shifts: "logic and shifts",
    bit_fields: "bit fields",
    sixteen_bits: "16 bits",
    sixty_four_bits: "64 bits",
    wide_products: "wide products",
    carries: "carries",
    comparisons: "comparisons",
    predicates: "predicates",
    f32_arithmetic: "f32 arithmetic",
    f32_fma: "f32 fma",
    min_and_max: "min and max",
    flushing: "flushing",
    float_orderings: "float orderings",
    f16: "f16",
    bf16: "bf16",
    approximations: "approximations",
    f64: "f64",
    cvt: "cvt",
    loads_and_stores: "loads and stores",
    kinds_of_memory: "kinds of memory",
    atomics: "atomics",
    shuffles: "shuffles",
    votes: "votes",
    matches: "matches",
    reductions: "reductions",
    divergence_and_barriers: "divergence and barriers",
    matrix_products: "matrix products",
    ldmatrix: "ldmatrix",
    cp_async: "cp.async",
}

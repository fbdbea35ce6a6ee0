//! What the compiler says of the kernels.

use crosstune::cuda::embedded::FILES;

#[test]
fn no_kernel_spills() {
    for file in FILES {
        let resources = file.resources();
        assert!(!resources.is_empty(), "{}", file.name);
        for r in resources {
            assert_eq!((r.spill_store_bytes, r.spill_load_bytes), (0, 0), "{r:?}");
        }
    }
}

/// A kernel whose name says f16 and which moves rows does it in 16 bytes at a time.
#[test]
fn activations_move_in_16_bytes() {
    for file in FILES.iter().filter(|f| f.ptx.contains("_f16(")) {
        assert!(
            file.ptx.contains("ld.global.v4") || file.ptx.contains("cp.async"),
            "{}",
            file.name
        );
        assert!(file.ptx.contains("st.global.v4"), "{}", file.name);
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
        let all = FILES.iter().flat_map(|f| f.resources());
        let found: Vec<_> = all.filter(|r| r.kernel == kernel).collect();
        assert!(!found.is_empty(), "no kernel {kernel}");
        assert!(found.iter().all(|r| r.registers <= limit), "{found:?}");
    }
}

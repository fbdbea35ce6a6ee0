//! What the machine counts, exactly, for patterns whose cost is known.

use ptxvm::{Counters, Counts, Launch, Machine, Options};

/// A kernel in which lane t of each warp has %t, with the lines of `body` numbered from 1.
fn count(body: &str, blocks: u32, threads: u32) -> Counters {
    let mut text = String::from(
        r#"
.version 8.0
.target sm_80
.address_size 64
.file 1 "counted.cu"
.visible .entry counted(.param .u64 inp)
{
    .shared .align 16 .b8 tile[16384];
    .reg .pred %p;
    .reg .b32 %t, %x, %y, %z, %w, %at32, %warp;
    .reg .b64 %inp, %at;
"#,
    );
    for (i, line) in body.trim().lines().enumerate() {
        text += &format!(".loc 1 {} 1\n{line}\n", i + 1);
    }
    text += "}\n";
    let mut machine = Machine::new(Options::default());
    let program = machine.load(&text).expect("the text is PTX");
    let inp = machine.alloc(1 << 16, "inp");
    machine.copy_in(inp, &vec![0; 1 << 16]).expect("it fits");
    let launch = Launch::new([blocks, 1, 1], [threads, 1, 1]);
    machine
        .launch(&program, "counted", launch, &[&inp.to_le_bytes()])
        .unwrap_or_else(|fault| panic!("{fault}"))
}

fn line(counters: &Counters, n: u32) -> Counts {
    let found = counters.lines.iter().find(|(loc, _)| loc.line == n);
    *found
        .unwrap_or_else(|| panic!("nothing counted on line {n}"))
        .1
}

/// One access of global memory by a warp: `stride` and `offset` in bytes; sectors moved, needed.
fn global(access: &str, stride: u32, offset: u32) -> (u64, u64) {
    let counters = count(
        &format!(
            "ld.param.u64 %inp, [inp]; mov.u32 %t, %tid.x;
mul.wide.u32 %at, %t, {stride}; add.u64 %inp, %inp, %at;
mov.u32 %x, 0; mov.u32 %y, 0; mov.u32 %z, 0; mov.u32 %w, 0;
{} [%inp+{offset}]{};
ret;",
            access.split('@').next().unwrap_or_default(),
            access.split('@').nth(1).unwrap_or_default()
        ),
        1,
        32,
    );
    let c = line(&counters, 4);
    assert_eq!((c.instructions, c.lanes, c.global_requests), (1, 32, 1));
    assert_eq!(c.sectors_moved, counters.total.sectors_moved);
    (c.sectors_moved, c.sectors_needed)
}

#[test]
fn sectors_of_loads() {
    let word = "ld.global.u32 %x,";
    // Coalesced: 32 words of 4 bytes are four sectors of 32.
    assert_eq!(global(word, 4, 0), (4, 4));
    // Shifted by a word they reach into a fifth.
    assert_eq!(global(word, 4, 4), (5, 4));
    // Every second word: twice the sectors.
    assert_eq!(global(word, 8, 0), (8, 4));
    // A sector each.
    assert_eq!(global(word, 32, 0), (32, 4));
    assert_eq!(global(word, 1024, 0), (32, 4));
    // All the same word.
    assert_eq!(global(word, 0, 0), (1, 1));
    // Bytes, halves, longs.
    assert_eq!(global("ld.global.u8 %x,", 1, 0), (1, 1));
    assert_eq!(global("ld.global.u16 %x,", 2, 0), (2, 2));
    assert_eq!(global("ld.global.u64 %at,", 8, 0), (8, 8));
    // float4: 512 bytes.
    assert_eq!(
        global("ld.global.v4.f32 {%x, %y, %z, %w},", 16, 0),
        (16, 16)
    );
    // A quarter of each struct of 64 bytes.
    assert_eq!(
        global("ld.global.v4.f32 {%x, %y, %z, %w},", 64, 0),
        (32, 16)
    );
}

#[test]
fn sectors_of_stores_and_atomics() {
    assert_eq!(global("st.global.u32 @, %x", 4, 0), (4, 4));
    assert_eq!(
        global("st.global.v4.u32 @, {%x, %y, %z, %w}", 16, 0),
        (16, 16)
    );
    assert_eq!(global("st.global.u16 @, %x", 64, 0), (32, 2));
    assert_eq!(global("red.global.add.u32 @, %x", 0, 0), (1, 1));
    assert_eq!(global("red.global.add.u32 @, %x", 4, 0), (4, 4));
}

#[test]
fn lanes_in_any_order_move_the_same_sectors() {
    let counters = count(
        "ld.param.u64 %inp, [inp]; mov.u32 %t, %tid.x;
mul.lo.u32 %t, %t, 5; and.b32 %t, %t, 31; mul.wide.u32 %at, %t, 4; add.u64 %inp, %inp, %at;
ld.global.u32 %x, [%inp];
ret;",
        1,
        32,
    );
    let c = line(&counters, 3);
    assert_eq!((c.sectors_moved, c.sectors_needed), (4, 4));
}

#[test]
fn bytes_and_idle_lanes() {
    let counters = count(
        "ld.param.u64 %inp, [inp]; mov.u32 %t, %tid.x; setp.lt.u32 %p, %t, 8;
mul.wide.u32 %at, %t, 4; add.u64 %inp, %inp, %at;
@%p ld.global.u32 %x, [%inp];
@%p st.global.u32 [%inp], %x;
@!%p bra past;
past:
ret;",
        1,
        32,
    );
    let c = line(&counters, 3);
    assert_eq!(
        (c.instructions, c.lanes, c.sectors_moved, c.sectors_needed),
        (1, 8, 1, 1)
    );
    assert_eq!((c.global_read_bytes, c.global_write_bytes), (32, 0));
    let c = line(&counters, 4);
    assert_eq!((c.global_read_bytes, c.global_write_bytes), (0, 32));
}

/// Conflicts of one access of shared memory, the lanes `stride` bytes apart.
fn conflicts(access: &str, stride: u32) -> u64 {
    let counters = count(
        &format!(
            "mov.u32 %t, %tid.x; mov.u32 %x, 0; mov.u32 %y, 0; mov.u32 %z, 0; mov.u32 %w, 0;
mul.lo.u32 %at32, %t, {stride};
{access}
ret;"
        ),
        1,
        32,
    );
    let c = line(&counters, 3);
    assert_eq!((c.instructions, c.shared_requests), (1, 1));
    assert_eq!((c.sectors_moved, c.global_requests), (0, 0));
    c.bank_conflicts
}

#[test]
fn bank_conflicts() {
    let word = "st.shared.u32 [%at32], %x;";
    assert_eq!(conflicts(word, 4), 0);
    // Two lanes a bank, four, all: as many passes, one of which is due.
    assert_eq!(conflicts(word, 8), 1);
    assert_eq!(conflicts(word, 16), 3);
    assert_eq!(conflicts(word, 128), 31);
    // Rows padded by a word.
    assert_eq!(conflicts(word, 132), 0);
    assert_eq!(conflicts(word, 12), 0);
    // All lanes one word.
    assert_eq!(conflicts(word, 0), 0);
    // Halves of a word share it.
    assert_eq!(conflicts("st.shared.u16 [%at32], %x;", 2), 0);
    // Long and vector accesses side by side: in two and four parts, each without a conflict.
    let vector = "st.shared.v4.u32 [%at32], {%x, %y, %z, %w};";
    assert_eq!(conflicts("st.shared.v2.u32 [%at32], {%x, %y};", 8), 0);
    assert_eq!(conflicts(vector, 16), 0);
    // Rows of 128 bytes: the eight lanes of each quarter want the same four banks.
    assert_eq!(conflicts(vector, 128), 4 * 7);
    // Rows padded by 16 bytes.
    assert_eq!(conflicts(vector, 144), 0);
}

#[test]
fn matrices_and_barriers() {
    let body = "mov.u32 %t, %tid.x; mov.u32 %x, 0; mov.u32 %y, 0; mov.u32 %z, 0; mov.u32 %w, 0;
mul.lo.u32 %at32, %t, 64; mov.u32 %warp, 0;
st.shared.v4.u32 [%at32], {%x, %y, %z, %w};
bar.sync 0;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%x, %y, %z, %w}, [%at32];
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%x, %y, %z, %w}, {%x, %y, %z, %w}, {%x, %y}, {%x, %y, %z, %w};
mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%x, %y, %z, %w}, {%x, %y}, {%x}, {%x, %y, %z, %w};
ret;";
    let counters = count(body, 3, 64);
    // Two warps in each of three blocks.
    let warps = 6;
    assert_eq!(line(&counters, 6).matrix_flops, warps * 2 * 16 * 8 * 16);
    assert_eq!(line(&counters, 7).matrix_flops, warps * 2 * 16 * 8 * 8);
    assert_eq!(counters.total.matrix_flops, warps * 2 * 16 * 8 * 24);
    assert_eq!(line(&counters, 4).barriers, warps);
    assert_eq!(counters.total.barriers, warps);
    // Eight rows 64 bytes apart: two of them fit the banks, so four passes instead of one.
    let c = line(&counters, 5);
    assert_eq!(
        (c.shared_requests, c.bank_conflicts),
        (warps, warps * 4 * 3)
    );
    assert_eq!(line(&counters, 1).instructions, warps * 5);
    assert_eq!(counters.total.instructions, warps * 13);
    assert_eq!(counters.total.lanes, warps * 13 * 32);
}

#[test]
fn loops_and_branches() {
    let body = "mov.u32 %t, %tid.x; mov.u32 %x, 0; and.b32 %y, %t, 1; setp.eq.u32 %p, %y, 0;
@%p bra even;
add.u32 %x, %x, 1;
even:
add.u32 %x, %x, 2;
again:
add.u32 %x, %x, 1;
setp.lt.u32 %p, %x, 10;
@%p bra again;
ret;";
    let counters = count(body, 1, 32);
    // The odd lanes only.
    let c = line(&counters, 3);
    assert_eq!((c.instructions, c.lanes), (1, 16));
    // All lanes again.
    let c = line(&counters, 5);
    assert_eq!((c.instructions, c.lanes), (1, 32));
    // From 3 or 2 up to 10: the odd lanes leave after 7 rounds, the even ones after 8.
    let c = line(&counters, 7);
    assert_eq!((c.instructions, c.lanes), (8, 7 * 32 + 16));
}

#[test]
fn asynchronous_copies() {
    let body = "ld.param.u64 %inp, [inp]; mov.u32 %t, %tid.x; setp.lt.u32 %p, %t, 16;
mul.wide.u32 %at, %t, 16; add.u64 %inp, %inp, %at; mul.lo.u32 %at32, %t, 16; selp.u32 %x, 16, 0, %p;
cp.async.cg.shared.global [%at32], [%inp], 16, %x;
cp.async.wait_all;
ret;";
    let c = line(&count(body, 1, 32), 3);
    // Half of the lanes read nothing.
    assert_eq!(
        (c.sectors_moved, c.sectors_needed, c.global_read_bytes),
        (8, 8, 256)
    );
    assert_eq!((c.shared_requests, c.bank_conflicts), (1, 0));
}

#[test]
fn the_same_launch_counts_the_same() {
    let body = "ld.param.u64 %inp, [inp]; mov.u32 %t, %tid.x;
mul.wide.u32 %at, %t, 4; add.u64 %inp, %inp, %at;
red.global.add.u32 [%inp], 1;
ret;";
    let once = count(body, 5, 96);
    assert_eq!(once, count(body, 5, 96));
    let sum = once.lines.values().fold(Counts::default(), |mut sum, c| {
        sum += *c;
        sum
    });
    assert_eq!(sum, once.total);
}

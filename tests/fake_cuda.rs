//! The GPU driver's calls, with no GPU: against `fake_cuda/cuda.c`, a driver that checks its callers.
//! It is found by `LD_LIBRARY_PATH`, so what needs it runs in a process of its own.
#![cfg(all(feature = "cuda", target_os = "linux"))]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crosstune::cuda::gpu::GpuDriver;
use crosstune::cuda::{Arg, DevicePtr, Driver, DriverError, EventId, Geometry, KernelFile};

/// A fat binary by its header: 16 bytes long, nothing after it.
static FATBIN: [u8; 16] = [0x50, 0xED, 0x55, 0xBA, 1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const FILE: KernelFile = KernelFile {
    name: "fill",
    fatbin: &FATBIN,
    ptx: "",
    ptxas: "",
    sass: "",
};
const GEOMETRY: Geometry = Geometry {
    grid: [1, 1, 1],
    block: [32, 1, 1],
    shared_bytes: 0,
};

/// The folder with the fake driver, compiled once.
fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_cuda");
        std::fs::create_dir_all(&folder).expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda/cuda.c");
        // Renamed when whole: another run of this test may be loading it.
        let fresh = folder.join(format!("{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
        let built = cc
            .arg(&fresh)
            .arg(source)
            .status()
            .expect("cc, as for nvcc");
        assert!(built.success());
        std::fs::rename(fresh, folder.join("libcuda.so")).expect("renamed");
        folder
    })
}

fn with_fake(mut command: Command, machine: &str) -> Output {
    command.env("LD_LIBRARY_PATH", library());
    command.env("FAKE_CUDA", machine).output().expect("runs")
}

fn doctor(machine: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crosstune"));
    command.args(["doctor", "--device=cuda:0"]);
    let ran = with_fake(command, machine);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (ran.status.code(), text(ran.stdout), text(ran.stderr))
}

#[test]
fn doctor_checks_a_gpu() {
    let (code, stdout, stderr) = doctor("hopper");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let gpu = "cuda:0: Fake, 1.0 GiB, compute capability 9.0";
    for line in [
        "CUDA driver: supports CUDA 13.0",
        gpu,
        "Fake (cuda:0): works",
    ] {
        assert!(stdout.contains(line), "{line} is not in {stdout}");
    }
    assert!(stdout.contains("released with 0 live"), "{stdout}");
}

#[test]
fn a_machine_that_can_not_is_one_sentence_and_exit_code_2() {
    let none = "does not start (see nvidia-smi and CUDA_VISIBLE_DEVICES): no device";
    let old = "the driver supports CUDA 12.4, this binary needs 13.0";
    let volta = "Fake has compute capability 7.0, expected 8.0 or higher";
    for (machine, why) in [("none", none), ("old", old), ("volta", volta)] {
        let (code, stdout, stderr) = doctor(machine);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(
            stderr.starts_with("error: cuda:0: ") && stderr.contains(why),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn every_call_is_one_that_a_driver_accepts() {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args([
        "--ignored",
        "--exact",
        "in_a_process_of_its_own",
        "--nocapture",
    ]);
    let ran = with_fake(command, "hopper");
    let text = [&ran.stdout[..], &ran.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(ran.status.success(), "{text}");
    assert!(text.contains("released with 0 live"), "{text}");
}

#[test]
#[ignore = "run by every_call_is_one_that_a_driver_accepts, with the fake driver"]
fn in_a_process_of_its_own() {
    // Whoever runs all ignored tests on a GPU has another driver.
    if std::env::var_os("FAKE_CUDA").is_none() {
        return;
    }
    let driver = GpuDriver::open(0).expect("the fake opens");
    assert_eq!(driver.name(), "Fake (cuda:0)");
    let untouched = driver.memory().expect("told");
    assert_eq!((untouched.free, untouched.total), (1 << 30, 1 << 30));
    copies(&driver);
    kernels(&driver);
    capture(&driver);
    assert_eq!(driver.memory().expect("told"), untouched);
    // Left to be freed with the driver.
    driver.alloc(10, "left").expect("room");
}

fn floats(driver: &GpuDriver, from: DevicePtr, n: usize) -> Vec<f32> {
    let mut bytes = vec![0; n * 4];
    driver.copy_out(from, &mut bytes).expect("copied");
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|w| f32::from_le_bytes(*w)).collect()
}

fn why<T>(result: Result<T, DriverError>) -> String {
    result.err().expect("refused").to_string()
}

fn copies(driver: &GpuDriver) {
    // Longer than the staging memory, then many short ones: together they go round it.
    let long: Vec<u8> = (0..9_000_000).map(|i| (i % 249) as u8).collect();
    let memory = driver.alloc(long.len(), "long").expect("room");
    let free = driver.memory().expect("told").free;
    assert_eq!(free, (1 << 30) - 9_000_000);
    driver.copy_in(memory, &long).expect("copied");
    let mut got = vec![0; long.len()];
    driver.copy_out(memory, &mut got).expect("copied");
    assert!(got == long);
    let mut short = vec![0u8; 900_000];
    for i in 0..10 {
        short.fill(i as u8 + 1);
        let to = memory.offset(i * short.len());
        driver.copy_in(to, &short).expect("copied");
    }
    driver.copy_out(memory, &mut got).expect("copied");
    let wanted = (0..9_000_000).map(|i| (i / 900_000 + 1) as u8);
    assert!(got.iter().copied().eq(wanted));

    driver.copy_in(memory, &[]).expect("nothing is fine");
    driver.fill(memory, 1, 0).expect("nothing is fine");
    let end = memory.offset(long.len());
    let refused = why(driver.copy_in(memory.offset(1), &long));
    assert!(
        refused.starts_with("copy_in: 9000000 bytes at"),
        "{refused}"
    );
    assert!(why(driver.copy_out(end, &mut [0])).contains("lie in no allocation"));
    assert!(why(driver.fill(end, 0, 1)).contains("lie in no allocation"));
    let refused = why(driver.fill(memory, 0, usize::MAX));
    assert!(refused.contains("lie in no allocation"), "{refused}");
    driver.fill(memory, 7, 256).expect("filled");
    let second = memory.offset(256);
    driver.copy(second, memory, 256).expect("copied");
    let mut bytes = [0; 256];
    driver.copy_out(second, &mut bytes).expect("copied out");
    assert_eq!(bytes, [7; 256]);
    driver.copy(second, memory, 0).expect("nothing is fine");
    for (to, from) in [(memory, end), (end, memory)] {
        assert!(why(driver.copy(to, from, 1)).contains("lie in no allocation"));
    }
    assert!(why(driver.free(memory.offset(256))).contains("not the start"));
    driver.free(memory).expect("freed");
    assert!(why(driver.free(memory)).contains("not the start"));
    let full = driver.alloc(1 << 40, "weights");
    let text = "Fake (cuda:0): no room for 1099511627776 bytes more (weights)";
    assert_eq!(why(full), text);
}

fn kernels(driver: &GpuDriver) {
    let out = driver.alloc(16 * 4, "out").expect("room");
    let kernel = driver.kernel(&FILE, "fill_f32").expect("found");
    assert_eq!(driver.kernel(&FILE, "fill_f32").expect("found"), kernel);
    let args = [Arg::Ptr(out), Arg::F32(2.5), Arg::I32(16)];
    let from = driver.record().expect("recorded");
    driver.launch(kernel, GEOMETRY, &args).expect("launched");
    let to = driver.record().expect("recorded");
    assert_eq!(driver.elapsed_ms(from, to).expect("timed"), 1.5);
    driver.record_again(from).expect("moved");
    assert!(why(driver.record_again(EventId(99))).contains("an event of another driver"));
    driver.drop_event(from).expect("given back");
    for refused in [driver.drop_event(from), driver.record_again(from)] {
        assert!(why(refused).contains("given back"));
    }
    assert!(why(driver.elapsed_ms(from, to)).contains("given back"));
    assert_eq!(floats(driver, out, 16), [2.5; 16]);

    // More than 48 KiB has to be asked for; more than there is can't be had.
    let shared = |shared_bytes| Geometry {
        shared_bytes,
        ..GEOMETRY
    };
    driver
        .launch(kernel, shared(100_000), &args)
        .expect("launched");
    for bytes in [300_000, u32::MAX] {
        let refused = why(driver.launch(kernel, shared(bytes), &args));
        assert!(refused.contains("allows a block 232448"), "{refused}");
    }
    let refused = why(driver.launch(kernel, GEOMETRY, &args[..2]));
    assert_eq!(refused, "fill_f32: 2 arguments, the kernel takes 3");
    let refused = why(driver.launch(
        kernel,
        GEOMETRY,
        &[Arg::Ptr(out), Arg::U64(0), Arg::I32(16)],
    ));
    assert_eq!(
        refused,
        "fill_f32: argument 1 has 8 bytes, the kernel takes 4"
    );
    let stray = Arg::Ptr(DevicePtr(64));
    let refused = why(driver.launch(kernel, GEOMETRY, &[stray, Arg::F32(2.5), Arg::I32(16)]));
    assert!(refused.contains("argument 0"), "{refused}");
    let empty = Geometry {
        grid: [0, 1, 1],
        ..GEOMETRY
    };
    let refused = why(driver.launch(kernel, empty, &args));
    assert!(refused.starts_with("fill_f32: grid [0, 1, 1]"), "{refused}");
    assert!(why(driver.kernel(&FILE, "absent")).contains("CUDA_ERROR_NOT_FOUND"));
    let cut = KernelFile {
        fatbin: &FATBIN[..15],
        ..FILE
    };
    // Another file by its address.
    let whole = driver.kernel(
        &KernelFile {
            fatbin: b"no",
            ..cut
        },
        "fill_f32",
    );
    assert!(why(whole).contains("neither a whole fat binary"));
    driver.free(out).expect("freed");
}

fn capture(driver: &GpuDriver) {
    let out = driver.alloc(8 * 4, "out").expect("room");
    let kernel = driver.kernel(&FILE, "fill_f32").expect("found");
    driver.fill(out, 0, 32).expect("filled");
    driver.begin_capture().expect("begun");
    assert!(why(driver.begin_capture()).contains("under way"));
    driver.fill(out, 0, 32).expect("noted");
    let args = [Arg::Ptr(out), Arg::F32(-1.0), Arg::I32(3)];
    driver.launch(kernel, GEOMETRY, &args).expect("noted");
    let graph = driver.end_capture().expect("ended");
    assert_eq!(floats(driver, out, 8), [0.0; 8]);
    driver.fill(out, 0xFF, 32).expect("filled");
    driver.replay(graph).expect("replayed");
    assert_eq!(
        floats(driver, out, 8),
        [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    );

    assert!(why(driver.end_capture()).contains("no capture is under way"));
    // A call that does not belong is refused, and the capture with it.
    let spoilers: [(&str, &dyn Fn() -> String); 7] = [
        ("memory", &|| why(driver.memory())),
        ("drop_graph", &|| why(driver.drop_graph(graph))),
        ("alloc", &|| why(driver.alloc(4, "x"))),
        ("free", &|| why(driver.free(out))),
        ("copy_in", &|| why(driver.copy_in(out, &[0]))),
        ("copy_out", &|| why(driver.copy_out(out, &mut [0]))),
        ("record", &|| why(driver.record())),
    ];
    for (call, spoil) in spoilers {
        driver.begin_capture().expect("begun");
        assert_eq!(spoil(), format!("{call}: not while capturing"));
        assert!(why(driver.end_capture()).contains(&format!("{call} failed in it")));
    }
    driver.begin_capture().expect("begun");
    assert!(driver.launch(kernel, GEOMETRY, &args[..1]).is_err());
    assert!(why(driver.end_capture()).contains("launch failed in it"));
    driver.synchronize().expect("done");

    // A list that there is no room for; the next one is as good as any.
    driver.begin_capture().expect("begun");
    (0..65).for_each(|_| driver.fill(out, 0, 32).expect("noted"));
    let full = driver.end_capture();
    assert!(matches!(&full, Err(DriverError::NoRoomToCapture { .. })));
    let text = "Fake (cuda:0): no room for a captured list of launches";
    assert_eq!(why(full), text);
    driver.begin_capture().expect("begun");
    let next = driver.end_capture().expect("ended");
    driver.drop_graph(next).expect("given back");

    // Given back while it may still be running, and only once.
    driver.replay(graph).expect("replayed");
    driver.drop_graph(graph).expect("given back");
    assert!(why(driver.drop_graph(graph)).contains("given back"));
    assert!(why(driver.replay(graph)).contains("given back"));
    driver.free(out).expect("freed");
}

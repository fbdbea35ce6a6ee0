//! CLIP's towers on a device against the CPU: in the virtual machine or, with
//! `CROSSTUNE_TEST_DEVICE=cuda:N`, on a GPU.
#![cfg(feature = "cuda")]

mod common;

use common::golden::floats;
use common::kernel_model::{config, data, executor, member};
use common::tiny::{self, MemberData};
use common::towers::{LEAST, Tower, write};
use common::world::World;
use common::{device, goldens, max_diff};
use crosstune::adapter::Adapter;
use crosstune::cuda::device::Device;
use crosstune::device::{DeviceChoice, VmArena};
use crosstune::engine::EngineOptions;
use crosstune::engine::vision::VisionEngine;
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, MemberStep};
use crosstune::model::text::DropoutRates;
use crosstune::ops::gelu::Gelu;
use crosstune::train::program::TrainProgram;
use crosstune::weights::checkpoint::Checkpoint;
use crosstune::weights::config::{Encoder, TextConfig};

/// Losses of f16 steps of the text tower against f32 ones, over the largest; measured 1.1e-3.
const LOSS: f32 = 4e-3;
/// The gradient of the first step, over its tensor's norm, of the worst tensor; measured 3.7e-2 with
/// LoRA everywhere, 2.1e-2 with Compacters, at most 3.6e-3 without either.
const GRAD: f32 = 0.1;
/// Of features, over the largest; measured 1.8e-3 (golden), 5.8e-4 (wide).
const FEATURES: f32 = 5e-3;

/// Steps of a run.
const STEPS: u32 = 4;

/// A CLIP text tower of two blocks; texts take up to two tiles of attention.
fn clip() -> TextConfig {
    TextConfig {
        encoder: Encoder::Clip(Gelu::Quick),
        max_positions: 48,
        ..config()
    }
}

/// Every kind of adapter, and all tensors.
fn adapters() -> [(&'static str, Adapter); 5] {
    [
        ("everything", tiny::everything(3)),
        ("bottleneck", Adapter::bottleneck(7)),
        ("compacter", tiny::compacter(4, 6)),
        ("prompt", Adapter::prompt(3)),
        ("full", Adapter::full()),
    ]
}

/// What some steps left.
#[derive(Debug, PartialEq)]
struct Trace {
    losses: Vec<f32>,
    /// Of the first step, by tensor.
    grads: Vec<Vec<f32>>,
    values: Vec<f32>,
}

fn run(
    adapter: &Adapter,
    seeds: &[u64],
    bind: impl FnOnce(&TrainProgram, &TrainState) -> Box<dyn Executor>,
) -> Trace {
    let c = clip();
    let program = TrainProgram::new(&c, true, adapter, DropoutRates::NONE);
    let mut state = tiny::state(&program.graph, seeds);
    let mut exec = bind(&program, &state);
    let (mut losses, mut grads) = (vec![], vec![]);
    for step in 0..STEPS {
        let data: Vec<MemberData> = seeds
            .iter()
            .map(|g| data(&c, g * 10 + u64::from(step), 4, 40))
            .collect();
        let batch = tiny::pack(&data.iter().collect::<Vec<_>>(), adapter.layout(&c));
        let steps: Vec<MemberStep> = seeds.iter().map(|g| member(*g, step)).collect();
        exec.run(&mut state, &batch, &steps).expect("ran");
        let l = &program.losses;
        for id in [l.image_anchor, l.mse, l.partner_anchor, l.image_partner] {
            losses.extend(exec.output(id).expect("read"));
        }
        if step == 0 {
            exec.store(&mut state).expect("stored");
            let all = 0..state.tensors.len();
            let of = |t: usize| state.grads[state.range(t, 0)].to_vec();
            grads = all.map(of).collect();
        }
    }
    exec.store(&mut state).expect("stored");
    let values = state.values;
    Trace {
        losses,
        grads,
        values,
    }
}

fn on(device: &Device, adapter: &Adapter, seeds: &[u64], capture: bool) -> Trace {
    run(adapter, seeds, |program, state| {
        let exec = executor(device, program, state);
        match capture {
            true => Box::new(exec),
            false => Box::new(exec.without_capture()),
        }
    })
}

fn on_cpu(adapter: &Adapter, seeds: &[u64]) -> Trace {
    run(adapter, seeds, |program, state| {
        let (graph, frozen) = (program.graph.clone(), tiny::frozen(&program.graph));
        Box::new(CpuExecutor::new(graph, frozen, state, tiny::pool(2)))
    })
}

/// Error of the worst tensor over its norm. One whose true gradient is next to nothing, as a key's
/// bias, holds rounding alone and is left out.
fn gradient_error(got: &[Vec<f32>], want: &[Vec<f32>]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
    let rows: Vec<(f32, f32)> = got
        .iter()
        .zip(want)
        .map(|(got, want)| {
            let off = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
            (off, norm(&mut want.iter().copied()))
        })
        .collect();
    let largest = rows.iter().map(|r| r.1).fold(0f32, f32::max);
    let alive = rows.iter().filter(|r| r.1 > 1e-5 * largest);
    // A NaN is the worst, and `max` would lose it.
    alive.map(|(off, size)| off / size).fold(0f32, |m, e| {
        if e.is_nan() { f32::INFINITY } else { m.max(e) }
    })
}

/// The larger of 1 and the largest number.
fn scale(x: &[f32]) -> f32 {
    x.iter().fold(1f32, |m, v| m.max(v.abs()))
}

#[test]
fn steps_of_clips_text_tower_are_those_of_the_cpu() {
    for (name, adapter) in adapters() {
        // Full training has one member.
        let seeds: &[u64] = if name == "full" { &[1] } else { &[1, 2] };
        let want = on_cpu(&adapter, seeds);
        let packed = on(&device(VmArena::Packed), &adapter, seeds, true);
        let loss = max_diff(&packed.losses, &want.losses) / scale(&want.losses);
        let grad = gradient_error(&packed.grads, &want.grads);
        println!("{name}: losses {loss:.1e}, gradient {grad:.1e}");
        assert!(loss <= LOSS && grad <= GRAD, "{name}");
        let spread = on(&device(VmArena::Spread), &adapter, seeds, false);
        assert!(packed == spread, "{name}: packed and spread differ");
        if seeds.len() > 1 {
            let alone = on(&device(VmArena::Packed), &adapter, &seeds[..1], true);
            assert_eq!(alone.grads, packed.grads, "{name}");
        }
    }
}

/// Towers of the golden one's kind, and one that is wider than the norms' narrow kernels.
const WIDE: Tower = Tower {
    hidden: 1040,
    heads: 13,
    ..LEAST
};

fn options(device: DeviceChoice) -> EngineOptions {
    EngineOptions {
        device,
        ..EngineOptions::default()
    }
}

/// The device of the tests, as the command line names it.
fn choice(arena: VmArena) -> DeviceChoice {
    match std::env::var("CROSSTUNE_TEST_DEVICE") {
        Ok(name) => name.parse().expect("cuda:N"),
        Err(_) => DeviceChoice::Vm(arena),
    }
}

fn check_tower(folder: &std::path::Path, pixels: &[f32], want: Option<Vec<f32>>, name: &str) {
    let engine = |device| VisionEngine::open(folder, None, options(device)).expect("opens");
    let want = want.unwrap_or_else(|| {
        let mut cpu = engine(DeviceChoice::Cpu);
        cpu.encode(pixels).expect("encodes")
    });
    let mut tower = engine(choice(VmArena::Packed));
    let got = tower.encode(pixels).expect("encodes");
    let off = max_diff(&got, &want) / scale(&want);
    println!("{name}: features {off:.1e}");
    assert!(off <= FEATURES, "{name}");
    let again = engine(choice(VmArena::Spread)).encode(pixels);
    assert_eq!(got, again.expect("encodes"), "{name}: packed and spread");
    // A picture alone.
    let side = tower.config().image_size();
    let alone = tower.encode(&pixels[..3 * side * side]).expect("encodes");
    assert_eq!(alone, got[..alone.len()], "{name}: in company");
}

#[test]
fn pictures_have_the_features_of_the_cpu() {
    let least = Tower {
        hidden: 16,
        ..LEAST
    };
    for (name, tower) in [("least", least), ("wide", WIDE)] {
        let dir = tempfile::tempdir().expect("a folder");
        write(
            dir.path(),
            &[("config.json", tower.config())],
            &tower.tensors(),
        );
        check_tower(dir.path(), &tower.pixels(3), None, name);
    }
}

/// Rows stay in registers.
#[test]
fn a_tower_that_is_too_wide_is_refused() {
    let tower = Tower {
        hidden: 1544,
        heads: 193,
        ..LEAST
    };
    let dir = tempfile::tempdir().expect("a folder");
    let files = [("config.json", tower.config())];
    write(dir.path(), &files, &tower.tensors());
    let opened = VisionEngine::open(dir.path(), None, options(choice(VmArena::Packed)));
    let error = opened.err().expect("refused").to_string();
    let says = "found 1544 channels, expected at most 1536; use --device cpu";
    assert!(error.contains(says), "{error}");
}

#[test]
fn pictures_have_the_features_of_pytorch() {
    let Some(at) = goldens() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let copy = |from: &str, to: &str| {
        std::fs::copy(at.join(from), dir.path().join(to)).expect("copied");
    };
    copy("vit_config.json", "config.json");
    copy("vit_model.safetensors", "model.safetensors");
    let io = Checkpoint::open(&at.join("vit_io.safetensors")).expect("opens");
    let (pixels, want) = (floats(&io, "pixel_values"), floats(&io, "image_embeds"));
    check_tower(dir.path(), &pixels, Some(want), "golden");
}

/// 257 tokens, 384 channels, 12 blocks, layer scale folded in, patches of 588 numbers.
#[test]
fn a_real_tower_gives_the_features_of_the_cpu() {
    let Some(all) = std::env::var_os("CROSSTUNE_CHECKPOINTS") else {
        println!("SKIPPED: CROSSTUNE_CHECKPOINTS names no folder of real checkpoints");
        return;
    };
    let at = std::path::PathBuf::from(all).join("vit-s14");
    if !at.join("model.safetensors").is_file() {
        println!("SKIPPED: {} is absent", at.display());
        return;
    }
    let pixels: Vec<f32> = (0..3 * 224 * 224)
        .map(|i| (i as f32 * 0.37).sin())
        .collect();
    let [want, got] = [DeviceChoice::Cpu, choice(VmArena::Packed)].map(|device| {
        let tower = VisionEngine::open(&at, Some(224), options(device));
        tower.expect("opens").encode(&pixels).expect("encodes")
    });
    let off = max_diff(&got, &want) / scale(&want);
    println!("ViT-S/14: features {off:.1e}");
    assert!(off <= FEATURES);
}

/// A cache does not mix what a device gave with what the CPU did.
#[test]
fn the_command_line_takes_towers_to_a_device() {
    let world = World::new();
    let tower = Tower {
        hidden: 16,
        ..LEAST
    };
    write(
        &world.path("vit"),
        &[("config.json", tower.config())],
        &tower.tensors(),
    );
    std::fs::create_dir(world.path("photos")).expect("made");
    let file = std::fs::File::create(world.path("photos/a.png")).expect("made");
    let mut png = png::Encoder::new(file, 20, 14);
    png.set_color(png::ColorType::Rgb);
    let mut png = png.write_header().expect("written");
    let pixels: Vec<u8> = (0..20 * 14 * 3u32).map(|i| (i * 7 % 251) as u8).collect();
    png.write_image_data(&pixels).expect("written");
    png.finish().expect("written");
    let features = |device: &str| {
        let ran = world.run([
            "features",
            "--vision=vit",
            "--images=photos",
            "--cache=cache",
            "--out=x.safetensors",
            "--force",
            "--json",
            device,
        ]);
        ran.ok().json()["computed"].as_u64().expect("a number")
    };
    let name = std::env::var("CROSSTUNE_TEST_DEVICE").unwrap_or("vm".into());
    let there = format!("--device={name}");
    assert_eq!(features("--device=cpu"), 1);
    assert_eq!(features(&there), 1);
    assert_eq!((features(&there), features("--device=cpu")), (0, 0));
}

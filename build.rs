//! With feature `cuda`: compiles `kernels/*.cu` and writes `$OUT_DIR/kernels.rs`, which
//! `src/cuda/embedded.rs` includes. Without it: nothing.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;

/// Machine code for these, PTX for whatever comes later.
const TARGETS: [(&str, &str); 3] = [
    ("compute_80", "sm_80"),
    ("compute_90a", "sm_90a"),
    ("compute_80", "compute_80"),
];
/// What the virtual machine runs; -lineinfo lets it name source lines.
const PTX_ARCH: &str = "compute_80";
const FLAGS: [&str; 3] = ["-std=c++17", "-O3", "-lineinfo"];
/// What reads machine code, beside nvcc or nowhere.
const DISASSEMBLERS: [&str; 2] = ["cuobjdump", "nvdisasm"];
/// Where scripts/cuda.sh puts nvcc.
const WHEELS: &str = ".cuda/nvidia/cu13/bin/nvcc";
/// What decides which compiler runs and how. PATH is not watched: it changes all the time.
const VARIABLES: [&str; 5] = [
    "NVCC",
    "CUDA_HOME",
    "NVCC_CCBIN",
    "NVCC_PREPEND_FLAGS",
    "NVCC_APPEND_FLAGS",
];

type Result<T> = std::result::Result<T, String>;

// The library reads what this one writes; each uses a part.
#[allow(dead_code)]
#[path = "src/cuda/sass.rs"]
mod sass;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    for name in VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let nvcc = Nvcc::find()?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    let (sources, headers) = inputs()?;

    let queue = Mutex::new(sources.iter());
    let failed = Mutex::new(Vec::new());
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    thread::scope(|scope| {
        for _ in 0..jobs.unwrap_or(1).min(sources.len()) {
            scope.spawn(|| {
                // The lock is held while the next file is taken, not while it is compiled.
                let next = || queue.lock().ok()?.next();
                while let Some(source) = next() {
                    if let Err(e) = compile(&nvcc, source, headers, &out_dir) {
                        failed.lock().map(|mut f| f.push(e)).unwrap_or_default();
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().map_err(|e| e.to_string())?;
    failed.sort();
    if !failed.is_empty() {
        return Err(failed.join("; "));
    }
    // Tests compile kernels made worse with the same compiler.
    println!("cargo::rustc-env=CROSSTUNE_NVCC={}", nvcc.path.display());
    let cuobjdump = nvcc
        .cuobjdump
        .as_ref()
        .map(|c| c.path.display().to_string());
    println!(
        "cargo::rustc-env=CROSSTUNE_CUOBJDUMP={}",
        cuobjdump.unwrap_or_default()
    );
    write_index(&nvcc, &sources, &out_dir)
}

/// A compiler that answers.
struct Nvcc {
    path: PathBuf,
    /// Such as 13.0.
    release: String,
    /// What it says of itself; part of what the outputs depend on.
    identity: String,
    /// What reads its machine code, where it was installed too.
    cuobjdump: Option<Cuobjdump>,
}

/// The disassembler.
struct Cuobjdump {
    path: PathBuf,
    /// Such as 13.2.
    release: String,
}

impl Nvcc {
    fn find() -> Result<Nvcc> {
        let given = |name| env::var_os(name).filter(|v| !v.is_empty());
        // Who names a compiler means that one: nothing else is tried.
        if let Some(nvcc) = given("NVCC") {
            return Nvcc::at(nvcc.into()).map_err(|e| format!("NVCC is wrong: {e}"));
        }
        if let Some(home) = given("CUDA_HOME") {
            let path = Path::new(&home).join("bin/nvcc");
            return Nvcc::at(path).map_err(|e| format!("CUDA_HOME is wrong: {e}"));
        }
        let on_path = env::split_paths(&given("PATH").unwrap_or_default())
            .map(|folder| folder.join("nvcc"))
            .find(|path| path.is_file());
        if let Some(path) = on_path {
            return Nvcc::at(path).map_err(|e| format!("nvcc on PATH is wrong: {e}"));
        }
        if Path::new(WHEELS).is_file() {
            println!("cargo::rerun-if-changed=.cuda/installed.txt");
            let path = fs::canonicalize(WHEELS).map_err(|e| format!("{WHEELS}: {e}"))?;
            return Nvcc::at(path);
        }
        Err(format!(
            "feature `cuda` needs nvcc: NVCC and CUDA_HOME are not set, there is none on PATH and \
             no {WHEELS}; run scripts/cuda.sh to install it there"
        ))
    }

    fn at(path: PathBuf) -> Result<Nvcc> {
        let shown = path.display();
        let (identity, release) = version(&path).map_err(|e| format!("{shown} {e}"))?;
        let release =
            release.ok_or_else(|| format!("{shown} is not nvcc: `--version` gives no release"))?;
        Ok(Nvcc {
            cuobjdump: Cuobjdump::beside(&path)?,
            release,
            path,
            identity,
        })
    }
}

impl Cuobjdump {
    fn beside(nvcc: &Path) -> Result<Option<Cuobjdump>> {
        let [path, reader] = DISASSEMBLERS.map(|name| nvcc.with_file_name(name));
        if !path.is_file() || !reader.is_file() {
            return Ok(None);
        }
        let (_, release) = version(&path).map_err(|e| format!("{} {e}", path.display()))?;
        let release = release.unwrap_or_else(|| "unknown".into());
        Ok(Some(Cuobjdump { path, release }))
    }

    /// The opcodes of a fat binary.
    fn opcodes(&self, fatbin: &Path) -> Result<String> {
        let ran = Command::new(&self.path).arg("-sass").arg(fatbin).output();
        let shown = self.path.display();
        let ran = ran.map_err(|e| format!("{shown}: {e}"))?;
        let said = String::from_utf8_lossy(&ran.stdout);
        let opcodes = sass::count(&said);
        if !ran.status.success() || opcodes.is_empty() {
            let error = String::from_utf8_lossy(&ran.stderr);
            return Err(format!("{shown} -sass {}: {error}", fatbin.display()));
        }
        Ok(sass::to_text(&opcodes))
    }
}

/// What a CUDA program says of itself, and the release in it.
fn version(path: &Path) -> Result<(String, Option<String>)> {
    let ran = Command::new(path).arg("--version").output();
    let ran = ran.map_err(|e| format!("cannot be run: {e}"))?;
    let identity = String::from_utf8_lossy(&ran.stdout).into_owned();
    let rest = identity.split_once("release ").map(|(_, rest)| rest);
    let release = rest.and_then(|rest| Some(rest.split_once(',')?.0.to_string()));
    Ok((identity, release))
}

/// The `.cu` files, sorted, and a hash of all headers: any of them may be in any file.
fn inputs() -> Result<(Vec<PathBuf>, u64)> {
    // The folder, for files that come and go; each file, for its contents.
    println!("cargo::rerun-if-changed=kernels");
    if !Path::new("kernels").is_dir() {
        return Ok((Vec::new(), 0));
    }
    let entries = fs::read_dir("kernels").map_err(|e| format!("kernels: {e}"))?;
    let mut files = entries
        .map(|entry| Ok(entry.map_err(|e| format!("kernels: {e}"))?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    let mut headers = DefaultHasher::new();
    let mut sources = Vec::new();
    for path in files {
        match path.extension().and_then(|e| e.to_str()) {
            Some("cu") => {
                println!("cargo::rerun-if-changed={}", path.display());
                sources.push(path);
            }
            Some("cuh") => {
                println!("cargo::rerun-if-changed={}", path.display());
                (&path, read(&path)?).hash(&mut headers);
            }
            _ => {}
        }
    }
    Ok((sources, headers.finish()))
}

/// Makes `<stem>.fatbin`, `.ptx`, `.ptxas` and `.sass` unless they were made from the same inputs.
fn compile(nvcc: &Nvcc, source: &Path, headers: u64, out_dir: &Path) -> Result<()> {
    let stem = stem(source)?;
    let out = |extension: &str| out_dir.join(format!("{stem}.{extension}"));
    let variables = VARIABLES.map(env::var_os);
    let mut key = DefaultHasher::new();
    (read(source)?, headers, read(Path::new("build.rs"))?).hash(&mut key);
    (&nvcc.path, &nvcc.identity, variables).hash(&mut key);
    let disassembler = nvcc.cuobjdump.as_ref();
    (
        disassembler.map(|c| &c.release),
        include_str!("src/cuda/sass.rs"),
    )
        .hash(&mut key);
    let key = key.finish().to_string();
    // Written last, so outputs of an interrupted build are not taken for whole.
    if fs::read_to_string(out("key")).is_ok_and(|made_from| made_from == key) {
        return Ok(());
    }
    let targets = TARGETS.map(|(arch, code)| format!("-gencode=arch={arch},code={code}"));
    let mut fatbin: Vec<&str> = targets.iter().map(String::as_str).collect();
    fatbin.extend(["-fatbin", "-Xptxas=-v"]);
    let said = nvcc_run(nvcc, source, &fatbin, &out("fatbin"))?;
    // Compile times would make every build's binary another one.
    let resources: Vec<&str> = said
        .lines()
        .filter(|l| !l.contains("Compile time"))
        .collect();
    write(&out("ptxas"), &resources.join("\n"))?;
    let opcodes = disassembler.map_or(Ok(String::new()), |c| c.opcodes(&out("fatbin")))?;
    write(&out("sass"), &opcodes)?;

    let arch = format!("-arch={PTX_ARCH}");
    nvcc_run(nvcc, source, &["-ptx", &arch], &out("ptx"))?;
    let ptx = fs::read_to_string(out("ptx")).map_err(|e| format!("{stem}.ptx: {e}"))?;
    // Messages then name kernels/x.cu, wherever the checkout stands.
    let root = env::current_dir().map_err(|e| e.to_string())?;
    write(
        &out("ptx"),
        &ptx.replace(&format!("{}/", root.display()), ""),
    )?;
    write(&out("key"), &key)
}

/// Runs the compiler; gives what it said, which is an error's text when it fails.
fn nvcc_run(nvcc: &Nvcc, source: &Path, flags: &[&str], out: &Path) -> Result<String> {
    let mut command = Command::new(&nvcc.path);
    command
        .args(FLAGS)
        .args(flags)
        .arg(source)
        .arg("-o")
        .arg(out);
    let shown = nvcc.path.display();
    let ran = command.output().map_err(|e| format!("{shown}: {e}"))?;
    let said = [&ran.stdout[..], &ran.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if !ran.status.success() {
        eprintln!("{command:?}\n{said}");
        let source = source.display();
        return Err(format!("{source}: {shown} failed; its words are below"));
    }
    for line in said.lines().filter(|l| l.contains("warning")) {
        println!("cargo::warning={line}");
    }
    Ok(said)
}

fn write_index(nvcc: &Nvcc, sources: &[PathBuf], out_dir: &Path) -> Result<()> {
    let mut text = String::new();
    let files = sources
        .iter()
        .map(|s| stem(s))
        .collect::<Result<Vec<_>>>()?;
    let body = files.iter().fold(String::new(), |mut body, name| {
        let file = |extension: &str| format!("(concat!(env!(\"OUT_DIR\"), \"/{name}.{extension}\"))");
        let _ = write!(
            body,
            "    KernelFile {{\n        name: \"{name}\",\n        fatbin: include_bytes!{},\n        \
             ptx: include_str!{},\n        ptxas: include_str!{},\n        \
             sass: include_str!{},\n    }},\n",
            file("fatbin"),
            file("ptx"),
            file("ptxas"),
            file("sass")
        );
        body
    });
    let architectures = TARGETS.map(|(_, code)| code);
    let _ = write!(
        text,
        "/// The kernels' compiler.\npub const NVCC_RELEASE: &str = {:?};\n\
         /// What read their machine code at build time, if anything did.\n\
         pub const DISASSEMBLER: Option<&str> = {:?};\n\
         /// What every file holds code for; the last is PTX, for later ones.\n\
         pub const ARCHITECTURES: &[&str] = &{architectures:?};\n\
         /// Every file of `kernels/`, by name.\npub static FILES: &[KernelFile] = &[\n{body}];\n",
        nvcc.release,
        nvcc.cuobjdump.as_ref().map(|c| &c.release)
    );
    write(&out_dir.join("kernels.rs"), &text)
}

fn stem(source: &Path) -> Result<&str> {
    let stem = source.file_stem().and_then(|s| s.to_str());
    stem.ok_or_else(|| format!("{}: not a UTF-8 name", source.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

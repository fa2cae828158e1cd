//! Finds the `borough` binary under test, and the library that is preloaded into it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};

/// The variable that names the binary under test.
pub const BINARY: &str = "JEPSEN_BIN";
/// The variable that names the library for faults of disk and clocks.
pub const PRELOAD: &str = "JEPSEN_PRELOAD";
/// The root of the workspace.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The binary: `JEPSEN_BIN`, else the one in the target directory of this test, built when it is missing or
/// older than what it is made of.
///
/// # Errors
/// When there is none and it cannot be built.
pub fn path() -> anyhow::Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(reason) => anyhow::bail!("find the borough binary: {reason}"),
    }
}

fn find() -> anyhow::Result<PathBuf> {
    made(BINARY, "borough", &["-p", "borough", "--bin", "borough", "--all-features"])
}

/// The library for faults of disk and clocks: `JEPSEN_PRELOAD`, else the one in the target directory, made like the binary.
///
/// # Errors
/// As [`path`].
pub fn preload() -> anyhow::Result<PathBuf> {
    made(PRELOAD, "libjepsen_preload.so", &["-p", "jepsen-preload"])
}

/// Whether the library that [`PRELOAD`] names is there and a library, if it names one.
///
/// # Errors
/// What it is instead.
pub fn named_preload() -> anyhow::Result<()> {
    let Some(path) = std::env::var_os(PRELOAD).map(PathBuf::from) else { return Ok(()) };
    let mut magic = [0; 4];
    let read =
        std::fs::File::open(&path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.with_context(|| format!("read {PRELOAD}={}", path.display()))?;
    ensure!(magic == *b"\x7fELF", "{PRELOAD}={} is no shared library", path.display());
    Ok(())
}

/// The file `name` that `variable` names or that cargo makes of `what`.
fn made(variable: &str, name: &str, what: &[&str]) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{variable}={} is no file", path.display());
        return Ok(path);
    }
    // target/<profile>/deps/<test> or target/<profile>/<binary>
    let test = std::env::current_exe().context("path of this test")?;
    let mut profile_dir = test.parent().context("directory of this test")?;
    if profile_dir.ends_with("deps") {
        profile_dir = profile_dir.parent().context("directory of the profile")?;
    }
    let binary = profile_dir.join(name);
    if !up_to_date(&binary) {
        build(profile_dir, what)?;
    }
    ensure!(binary.is_file(), "{} is missing even after a build", binary.display());
    Ok(binary)
}

/// Whether no source is newer. `cargo test --workspace` builds the binary itself, with the features of all tests: cargo
/// would build half of it again to answer this question.
fn up_to_date(binary: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let Some(built) = modified(binary) else { return false };
    let older = |path: &Path| modified(path).is_some_and(|changed: SystemTime| changed <= built);
    // Written by cargo beside the binary: "BINARY: SOURCE SOURCE…", spaces in names escaped.
    let Ok(rule) = std::fs::read_to_string(binary.with_extension("d")) else { return false };
    let Some((_, sources)) = rule.trim_end().split_once(": ") else { return false };
    let sources = sources.replace("\\ ", "\0");
    let mut sources = sources.split(' ').map(|source| PathBuf::from(source.replace('\0', " ")));
    let manifests = ["Cargo.toml", "Cargo.lock"].map(|name| Path::new(WORKSPACE).join(name));
    sources.all(|source| older(&source)) && manifests.iter().all(|manifest| older(manifest))
}

fn build(profile_dir: &Path, what: &[&str]) -> anyhow::Result<()> {
    let target_dir = profile_dir.parent().context("target directory")?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let status = Command::new(env!("CARGO"))
        .arg("build")
        .args(what)
        .args(["--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(WORKSPACE)
        .status()
        .context("run cargo build")?;
    ensure!(status.success(), "cargo build {}: {status}", what.join(" "));
    Ok(())
}

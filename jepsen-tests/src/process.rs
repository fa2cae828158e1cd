//! One `borough` process: started, signalled, reaped; killed when dropped, even by a panic.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binary;
use crate::wait::until;

/// A child process whose output goes to files.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// `borough` with `args`, and with no `BOROUGH_*` variable of ours but a node's engine; of another build than the one
/// under test if `binary` is one.
fn command(binary: Option<&Path>, args: &[String], env: &[(String, String)]) -> anyhow::Result<Command> {
    let mut command = match binary {
        Some(other) => Command::new(other),
        None => Command::new(binary::path()?),
    };
    for (name, _) in std::env::vars_os() {
        // Each is a setting to the binary; JEPSEN_BIN is none of its own.
        let engine = name == "BOROUGH_ENGINE" && args.first().is_some_and(|command| command == "node");
        if name.to_string_lossy().starts_with("BOROUGH_") && !engine {
            command.env_remove(name);
        }
    }
    command.args(args).envs(env.iter().map(|(name, value)| (name, value))).env("NO_COLOR", "1");
    Ok(command)
}

/// Runs `borough` to its end, with `input` on its standard input, for at most `limit`.
///
/// # Errors
/// When it cannot be started or does not end in time (it is killed then).
pub async fn run(
    args: &[String],
    env: &[(String, String)],
    input: &[u8],
    limit: Duration,
) -> anyhow::Result<Output> {
    let mut child = command(None, args, env)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start borough {}", args.join(" ")))?;
    let pid = pid_of(&child)?;
    let stdin = child.stdin.take();
    let input = input.to_vec();
    let waiting = tokio::task::spawn_blocking(move || {
        if let Some(mut stdin) = stdin {
            // A command that does not read its input closes it: not our concern.
            let _ = stdin.write_all(&input);
        }
        child.wait_with_output()
    });
    match tokio::time::timeout(limit, waiting).await {
        Ok(output) => {
            output.context("wait for borough")?.with_context(|| format!("run borough {}", args.join(" ")))
        }
        Err(_) => {
            let _ = kill(pid, Signal::SIGKILL);
            bail!("borough {} did not end within {limit:?}", args.join(" "))
        }
    }
}

/// [`run`] with borrowed arguments, no input and half a minute.
///
/// # Errors
/// As [`run`].
pub async fn run_plain(args: &[&str]) -> anyhow::Result<Output> {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    run(&args, &[], b"", Duration::from_secs(30)).await
}

fn pid_of(child: &Child) -> anyhow::Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id()).context("pid")?))
}

/// Whether a process with this id exists (a zombie counts as gone).
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "pid (name) state …"; the name may hold anything, so look behind its end.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Moves the log of an earlier process out of the way.
fn keep(log: &Path, dir: &Path, name: &str) -> anyhow::Result<()> {
    if !log.exists() {
        return Ok(());
    }
    let mut kept = (1_u32..).map(|number| dir.join(format!("{name}.{number}.err")));
    let free = kept.find(|path| !path.exists()).context("no name for a log")?;
    std::fs::rename(log, &free).with_context(|| format!("keep {}", log.display()))
}

impl Process {
    /// Starts `borough args`; its output goes to `NAME.out` and `NAME.err` in `dir`, anew each time. An earlier process's
    /// log is kept as `NAME.NUMBER.err`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, dir: &Path, args: &[String], env: &[(String, String)]) -> anyhow::Result<Self> {
        Self::start_as(None, name, dir, args, env)
    }

    /// [`Process::start`] of another build.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_as(
        binary: Option<&Path>,
        name: &str,
        dir: &Path,
        args: &[String],
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let stdout = dir.join(format!("{name}.out"));
        let stderr = dir.join(format!("{name}.err"));
        keep(&stderr, dir, name)?;
        let create = |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
        let child = command(binary, args, env)?
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .spawn()
            .with_context(|| format!("start borough {}", args.join(" ")))?;
        Ok(Self { child, name: name.to_owned(), stdout, stderr })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// The last lines of its log, for a failure's report.
    pub fn log_tail(&self, lines_max: usize) -> String {
        let log = self.stderr();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(lines_max)..).unwrap_or_default();
        format!(
            "--- {} (pid {}), {} lines of log:\n{}\n",
            self.name,
            self.pid(),
            lines.len(),
            tail.join("\n")
        )
    }

    /// Its exit status once it has ended.
    ///
    /// # Errors
    /// Of the system call.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look at {}", self.name))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(pid_of(&self.child)?, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// `kill -9`, and reaps.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().map(drop).with_context(|| format!("reap {}", self.name))
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end(limit).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub async fn wait_end(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let child = &mut self.child;
        until(limit, &what, || {
            let ended = child.try_wait();
            async move { ended?.context("it still runs") }
        })
        .await
    }

    /// Waits for a line of its standard output that starts with `prefix`; gives what follows.
    ///
    /// # Errors
    /// When it ends first, or after `limit`.
    pub async fn line(&mut self, prefix: &str, limit: Duration) -> anyhow::Result<String> {
        let what = format!("{prefix:?} on the output of {}", self.name);
        until(limit, &what, || {
            let found = self.whole_line(prefix);
            async move { found.context("no such line yet") }
        })
        .await
        .with_context(|| self.log_tail(20))
    }

    /// What [`Process::line`] waits for, if it is there.
    pub(crate) fn whole_line(&self, prefix: &str) -> Option<String> {
        let output = self.stdout();
        let (whole, _) = output.rsplit_once('\n')?;
        whole.lines().find_map(|line| line.strip_prefix(prefix)).map(|rest| rest.trim().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

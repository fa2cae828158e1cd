//! A real child process that can be started, signalled, killed and started again.
//!
//! A signal is sent only while the child is known and not yet reaped, so never to a stranger that
//! got its pid. Dropping a [`Process`] kills and reaps: nothing is left running.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

/// Pause between looks at a child that is about to end.
const POLL: Duration = Duration::from_millis(10);

/// What to run. The output goes to the end of `log`, the input is empty.
#[derive(Debug, Clone)]
pub struct Launch {
    pub binary: PathBuf,
    pub args: Vec<OsString>,
    /// Set in addition to this process's own environment.
    pub env: Vec<(String, String)>,
    /// Taken out of this process's own environment.
    pub env_removed: Vec<String>,
    pub log: PathBuf,
}

/// Why a process could not be started or signalled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("open the log {}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("start {}", binary.display())]
    Spawn { binary: PathBuf, source: io::Error },
    #[error("{name} is running already, with pid {pid}")]
    Running { name: String, pid: u32 },
    #[error("{name} is not running")]
    NotRunning { name: String },
    #[error("send {signal} to {name}")]
    Signal { name: String, signal: Signal, source: Errno },
    #[error("wait for {name}")]
    Wait { name: String, source: io::Error },
}

/// How a child ended that was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub status: ExitStatus,
    /// It did not end by itself within the grace period.
    pub forced: bool,
}

/// A child process, running or not.
#[derive(Debug)]
pub struct Process {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    ended: Option<ExitStatus>,
}

impl State {
    /// Takes note of an end; true while the child lives.
    fn look(&mut self) -> io::Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        let Some(status) = child.try_wait()? else { return Ok(true) };
        self.ended = Some(status);
        self.child = None;
        Ok(false)
    }
}

impl Process {
    /// A process that is not running yet; `name` is for messages.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), state: Mutex::default() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_error(&self, source: io::Error) -> ProcessError {
        ProcessError::Wait { name: self.name.clone(), source }
    }

    /// Starts the process and answers its pid.
    ///
    /// # Errors
    /// When it runs already, or its log or binary cannot be opened.
    pub fn start(&self, launch: &Launch) -> Result<u32, ProcessError> {
        let mut state = self.state();
        if state.look().map_err(|source| self.wait_error(source))? {
            let pid = state.child.as_ref().map_or(0, Child::id);
            return Err(ProcessError::Running { name: self.name.clone(), pid });
        }
        let log_error = |source| ProcessError::Log { path: launch.log.clone(), source };
        let log = OpenOptions::new().create(true).append(true).open(&launch.log).map_err(log_error)?;
        let mut command = Command::new(&launch.binary);
        command.args(&launch.args).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(log_error)?).stderr(log);
        for name in &launch.env_removed {
            command.env_remove(name);
        }
        command.envs(launch.env.iter().map(|(name, value)| (name, value)));
        // A group of its own: Ctrl-C in the terminal is for the parent, who stops its children in order.
        command.process_group(0);
        let child =
            spawn(command).map_err(|source| ProcessError::Spawn { binary: launch.binary.clone(), source })?;
        let pid = child.id();
        *state = State { child: Some(child), ended: None };
        Ok(pid)
    }

    /// The pid while it runs.
    pub fn pid(&self) -> Option<u32> {
        let mut state = self.state();
        // A child that cannot be waited for is reported by the calls that need its end.
        let _running = state.look();
        state.child.as_ref().map(Child::id)
    }

    /// How the last run ended; `None` while it runs or when it never ran.
    pub fn ended(&self) -> Option<ExitStatus> {
        let mut state = self.state();
        let _running = state.look();
        state.ended
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let mut state = self.state();
        let running = state.look().map_err(|source| self.wait_error(source))?;
        let pid = state.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).filter(|_| running);
        let Some(pid) = pid else { return Err(ProcessError::NotRunning { name: self.name.clone() }) };
        kill(Pid::from_raw(pid), signal).map_err(|source| ProcessError::Signal {
            name: self.name.clone(),
            signal,
            source,
        })
    }

    /// Stops it in its tracks (SIGSTOP) until [`Self::cont`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a paused process go on (SIGCONT).
    ///
    /// # Errors
    /// When it is not running.
    pub fn cont(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGCONT)
    }

    /// Kills it with SIGKILL and returns when it is gone; nothing to do when it is not running.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub async fn kill9(&self) -> Result<Option<ExitStatus>, ProcessError> {
        match self.signal(Signal::SIGKILL) {
            Err(ProcessError::NotRunning { .. }) => return Ok(self.ended()),
            answer => answer?,
        }
        self.wait().await
    }

    /// Asks it to end (SIGTERM) and kills it when it has not after `grace`.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub async fn terminate(&self, grace: Duration) -> Result<Option<Ended>, ProcessError> {
        match self.signal(Signal::SIGTERM) {
            Err(ProcessError::NotRunning { .. }) => {
                return Ok(self.ended().map(|status| Ended { status, forced: false }));
            }
            answer => answer?,
        }
        let in_time = tokio::time::timeout(grace, self.wait()).await;
        match in_time {
            Ok(status) => Ok(status?.map(|status| Ended { status, forced: false })),
            Err(_) => Ok(self.kill9().await?.map(|status| Ended { status, forced: true })),
        }
    }

    /// Returns when it has ended; at once when it is not running.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn wait(&self) -> Result<Option<ExitStatus>, ProcessError> {
        loop {
            {
                let mut state = self.state();
                if !state.look().map_err(|source| self.wait_error(source))? {
                    return Ok(state.ended);
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = &mut state.child {
            // Fails only when it has ended by itself.
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}

type Order = (Command, SyncSender<io::Result<Child>>);

/// Spawns from one thread that lives as long as this process: the kernel's parent-death signal
/// ([`die_with_parent`]) goes out when the *thread* ends that spawned, and runtime threads come and go.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = sync_channel::<Order>(16);
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                let _nobody_waits = answer.send(command.spawn());
            }
        });
        sender
    });
    let gone = || io::Error::other("the spawning thread is gone");
    let (answer, child) = sync_channel(1);
    spawner.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// Called first thing by a child: the kernel kills it when its parent dies, even by `kill -9` and
/// even when it is paused. False when `parent` is gone already.
#[cfg(target_os = "linux")]
pub fn die_with_parent(parent: u32) -> bool {
    let armed = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_ok();
    // After arming: a parent that died before would never be noticed.
    armed && u32::try_from(nix::unistd::getppid().as_raw()) == Ok(parent)
}

/// Without a parent-death signal, children are ended by their parent's own shutdown only.
#[cfg(not(target_os = "linux"))]
pub fn die_with_parent(parent: u32) -> bool {
    u32::try_from(nix::unistd::getppid().as_raw()) == Ok(parent)
}

/// Whether a process that is not our child is alive (a zombie is not).
pub fn is_alive(pid: u32) -> bool {
    let stat = Path::new("/proc").join(pid.to_string()).join("stat");
    match std::fs::read_to_string(stat) {
        // The state follows the command's name, which may itself hold parentheses.
        Ok(stat) => {
            let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
            !matches!(state, None | Some('Z' | 'X'))
        }
        Err(_) if Path::new("/proc/self").exists() => false,
        Err(_) => i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None).is_ok()),
    }
}

/// The last lines of a log, for messages about a child that ended.
pub fn log_tail(path: &Path, lines: usize) -> String {
    const TAIL_BYTES: u64 = 16 << 10;
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Polls `probe` until it answers or `deadline` passes.
pub async fn poll_until<T>(deadline: Instant, mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(found) = probe().await {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn shell(dir: &Path, script: &str) -> Launch {
        Launch {
            binary: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("GREETING".to_owned(), "hello".to_owned())],
            env_removed: vec!["PATH".to_owned()],
            log: dir.join("log"),
        }
    }

    async fn logged(launch: &Launch, line: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let seen = async || log_tail(&launch.log, 10).contains(line).then_some(());
        poll_until(deadline, seen).await.unwrap();
    }

    #[tokio::test]
    async fn a_killed_process_is_gone_and_can_be_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let launch = shell(dir.path(), "echo $GREETING; exec /bin/sleep 1000");
        let process = Process::new("sleeper");
        let first = process.start(&launch).unwrap();
        assert!(matches!(process.start(&launch), Err(ProcessError::Running { pid, .. }) if pid == first));
        logged(&launch, "hello").await;
        let status = process.kill9().await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(9));
        assert!(!is_alive(first));
        assert_eq!(process.pid(), None);
        let second = process.start(&launch).unwrap();
        assert_eq!(process.pid(), Some(second));
        drop(process);
        assert!(!is_alive(second), "dropping reaps");
    }

    #[tokio::test]
    async fn a_process_that_ignores_the_request_to_end_is_killed_after_the_grace() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::new("stubborn");
        let launch = shell(dir.path(), "trap '' TERM; echo armed; while :; do /bin/sleep 1000; done");
        process.start(&launch).unwrap();
        logged(&launch, "armed").await;
        let ended = process.terminate(Duration::from_millis(50)).await.unwrap().unwrap();
        assert!(ended.forced);
        let launch = shell(dir.path(), "trap 'exit 7' TERM; echo ready; while :; do :; done");
        process.start(&launch).unwrap();
        logged(&launch, "ready").await;
        let ended = process.terminate(Duration::from_secs(20)).await.unwrap().unwrap();
        assert_eq!((ended.status.code(), ended.forced), (Some(7), false));
        assert!(matches!(process.pause(), Err(ProcessError::NotRunning { .. })));
    }

    #[tokio::test]
    async fn a_paused_process_lives_and_is_killed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::new("paused");
        let pid = process.start(&shell(dir.path(), "exec /bin/sleep 1000")).unwrap();
        process.pause().unwrap();
        assert!(is_alive(pid));
        process.cont().unwrap();
        process.pause().unwrap();
        assert_eq!(process.kill9().await.unwrap().unwrap().signal(), Some(9));
    }
}

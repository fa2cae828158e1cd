//! What to run.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;

use super::default_artefacts;
use crate::binary;
use crate::nemesis::{Means, Nemesis, left_out};
use crate::preload;
use crate::proxy::End;
use crate::workload::{Through, Workload};

/// The variable that names another build of the binary.
const OTHER_BINARY: &str = "JEPSEN_OTHER_BIN";

/// A node's storage engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sled,
    Fjall,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Fjall => "fjall",
        }
    }

    /// The engine of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Sled, Self::Fjall].into_iter().find(|engine| engine.name() == name)
    }
}

/// A run before it begins.
#[derive(Debug, Clone)]
pub struct Plan {
    pub workload: Workload,
    pub nemeses: Vec<Nemesis>,
    /// Of the load with its faults; starting, healing and judging come on top.
    pub length: Duration,
    pub seed: u64,
    pub nodes: usize,
    pub shards: u32,
    /// Sequential callers.
    pub callers: u64,
    /// Calls a second that all callers together aim at.
    pub rate: f64,
    pub routers: usize,
    /// Under which the run gets a directory of its own.
    pub artefacts: Option<PathBuf>,
    pub engine: Option<Engine>,
    pub through: Through,
    /// Another build of the binary, for `upgrade`; else `JEPSEN_OTHER_BIN`.
    pub other_binary: Option<PathBuf>,
    /// A rule that all nodes break on purpose (the feature `defects` of the binary), to see that it is found.
    pub defect: Option<String>,
}

impl Plan {
    pub fn new(workload: Workload, nemeses: Vec<Nemesis>, length: Duration, seed: u64) -> Self {
        let nodes = nemeses.iter().map(|nemesis| nemesis.nodes_wanted()).max().unwrap_or(3).max(3);
        Self {
            workload,
            nemeses,
            length,
            seed,
            nodes,
            shards: 8,
            callers: 12,
            rate: 300.0,
            routers: 2,
            artefacts: None,
            engine: None,
            through: Through::Rest,
            other_binary: None,
            defect: None,
        }
    }

    /// Names of the nemeses.
    pub fn nemesis_names(&self) -> String {
        self.nemeses.iter().map(|nemesis| nemesis.name()).collect::<Vec<_>>().join(",")
    }

    /// Workload and nemeses.
    pub fn name(&self) -> String {
        format!("{}/{}", self.workload.name(), self.nemesis_names())
    }

    /// A directory for this run alone.
    pub fn dir(&self) -> PathBuf {
        let root = self.artefacts.clone().unwrap_or_else(default_artefacts);
        let name =
            format!("{}-{}-{}", self.workload.name(), self.nemesis_names().replace(',', "+"), self.seed);
        let mut dirs = (1_u32..)
            .map(|number| root.join(if number == 1 { name.clone() } else { format!("{name}.{number}") }));
        dirs.find(|dir| !dir.exists()).unwrap_or(root)
    }

    /// A caller's pause between two calls.
    pub fn pause(&self) -> Duration {
        // The bounds keep a rate of nothing from being a pause without end.
        Duration::from_secs_f64((self.callers as f64 / self.rate).clamp(0.0001, 10.0))
    }

    /// The library that nodes are to run with, if they are and there is one.
    pub fn preload(&self) -> Option<&'static Path> {
        let any = |needs: fn(&Nemesis) -> bool| self.nemeses.iter().any(needs);
        any(|nemesis| nemesis.needs_preload() || *nemesis == Nemesis::Mix).then(preload::library)?.ok()
    }

    /// The other build, where one was named.
    pub fn other_binary(&self) -> Option<PathBuf> {
        self.other_binary.clone().or_else(|| std::env::var_os(OTHER_BINARY).map(PathBuf::from))
    }

    /// What there is to make faults on.
    pub fn means(&self) -> Means {
        Means { nodes: self.nodes, preload: self.preload().is_some() }
    }

    /// What `mix` does without here, and why.
    pub fn left_out(&self) -> Vec<String> {
        if !self.nemeses.contains(&Nemesis::Mix) {
            return Vec::new();
        }
        let no_preload = || preload::library().err().map_or_else(String::new, |error| format!("{error:#}"));
        left_out(self.means(), no_preload)
    }

    /// What was named must be there: a name that is wrong is no machine that lacks something.
    ///
    /// # Errors
    /// The file that is not there.
    pub fn named(&self) -> anyhow::Result<()> {
        if let Some(path) = self.other_binary() {
            ensure!(path.is_file(), "the other build, {}, is no file", path.display());
        }
        binary::named_preload()
    }

    /// Why it cannot be run here, when it cannot.
    pub fn skipped(&self) -> Option<String> {
        let least = self.nemeses.iter().map(|nemesis| nemesis.nodes_min()).max().unwrap_or(1);
        if self.nodes < least {
            return Some(format!("{} takes at least {least} nodes", self.nemesis_names()));
        }
        if self.through == Through::Direct && self.nemeses.contains(&Nemesis::CutCallers) {
            return Some("cut-callers concerns routers, which these callers do not use".to_owned());
        }
        if self.nemeses.iter().any(|nemesis| nemesis.needs_other_build()) && self.other_binary().is_none() {
            return Some(format!("no other build: name one by --other-binary or {OTHER_BINARY}"));
        }
        if self.nemeses.iter().any(|nemesis| nemesis.needs_links()) {
            let address = End::Node(1).outbound()?;
            if let Err(error) = TcpListener::bind((address, 0)) {
                return Some(format!("links need addresses of their own, such as {address}: {error}"));
            }
        }
        if self.workload == Workload::Ttl && self.nemeses.iter().any(|nemesis| nemesis.needs_clocks()) {
            return Some("a time to live is counted by the clocks that are wrong".to_owned());
        }
        if self.nemeses.iter().any(|nemesis| nemesis.needs_preload()) {
            return preload::library().err().map(|error| format!("{error:#}"));
        }
        None
    }

    /// The command that runs it again.
    pub fn command(&self) -> String {
        let variables = [binary::BINARY, binary::PRELOAD].into_iter().filter_map(|name| {
            let value = std::env::var_os(name)?;
            Some(format!("{name}={} ", value.display()))
        });
        let mut command: String = variables.collect();
        command.push_str(&format!(
            "cargo run --release -p jepsen-tests -- --workload {} --nemesis {} --seconds {} --seed {} --nodes {} \
             --shards {} --concurrency {} --rate {} --routers {}",
            self.workload.name(),
            self.nemesis_names(),
            self.length.as_secs(),
            self.seed,
            self.nodes,
            self.shards,
            self.callers,
            self.rate,
            self.routers
        ));
        command.push_str(match self.through {
            Through::Rest => "",
            Through::Client => " --client",
            Through::Direct => " --direct",
        });
        let other =
            self.other_binary().filter(|_| self.nemeses.iter().any(|nemesis| nemesis.needs_other_build()));
        if let Some(path) = other {
            command.push_str(&format!(" --other-binary {}", path.display()));
        }
        if let Some(defect) = &self.defect {
            command.push_str(&format!(" --defect {defect}"));
        }
        if let Some(engine) = self.engine {
            command.push_str(&format!(" --engine {}", engine.name()));
        }
        command
    }
}

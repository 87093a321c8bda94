//! Who is measured: programs that are built here, each with the tools of its own language.
//!
//! The peers in Rust are other programs of this package, not code of the runner: linking sleave replaces the C library's
//! blocking calls, and no peer shall run through those. Where a compiler or a library is missing, the rows of its peer say so.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::shapes::{Kind, Shape};

/// A program or a way to run it.
#[derive(Clone, Copy, PartialEq)]
pub enum Peer {
    Sleave,
    SleaveCoroutine,
    Tokio,
    TokioPool,
    May,
    Corosensei,
    Generator,
    Boost,
    Go,
    Threads,
    Epoll,
}

impl Peer {
    /// As the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Sleave | Peer::SleaveCoroutine => "sleave",
            Peer::Tokio => "tokio, current thread",
            Peer::TokioPool => "tokio, workers",
            Peer::May => "may",
            Peer::Corosensei => "corosensei",
            Peer::Generator => "generator",
            Peer::Boost => "Boost",
            Peer::Go => "Go",
            Peer::Threads => "OS threads",
            Peer::Epoll => "epoll loop",
        }
    }

    /// Whether it is the one that the others are compared with.
    pub fn is_ours(self) -> bool {
        matches!(self, Peer::Sleave | Peer::SleaveCoroutine)
    }

    /// The program's file and its words before the order.
    fn program(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Peer::Sleave => ("peer_sleave", &[]),
            Peer::SleaveCoroutine => ("peer_coroutines", &["sleave"]),
            Peer::Tokio => ("peer_tokio", &["current"]),
            Peer::TokioPool => ("peer_tokio", &["pool"]),
            Peer::May => ("peer_may", &[]),
            Peer::Corosensei => ("peer_coroutines", &["corosensei"]),
            Peer::Generator => ("peer_coroutines", &["generator"]),
            Peer::Boost => ("peer_boost", &[]),
            Peer::Go => ("peer_go", &[]),
            Peer::Threads => ("peer_threads", &[]),
            Peer::Epoll => ("peer_epoll", &[]),
        }
    }
}

/// The programs, built.
pub struct Programs {
    folder: PathBuf,
    /// Why there is none in Go, in C++.
    go: Option<String>,
    boost: Option<String>,
}

impl Programs {
    /// Builds all; only what is not of this package may fail.
    pub fn build() -> io::Result<Programs> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let itself = std::env::current_exe()?;
        let folder = itself.parent().expect("a program lies in a folder").to_owned();
        let target = folder.parent().expect("cargo's target folder");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--quiet", "--bins", "--manifest-path"]);
        command.arg(package.join("Cargo.toml")).arg("--target-dir").arg(target);
        if !command.status()?.success() {
            return Err(io::Error::other("the peers in Rust do not compile"));
        }
        // `cargo run` without --release puts the runner elsewhere; the peers are optimised all the same.
        let folder = target.join("release");
        let (source, program) = (package.join("peers/main.go"), folder.join("peer_go"));
        let go = compile(
            "go",
            ["build".as_ref(), "-o".as_ref(), program.as_os_str(), source.as_os_str()],
        );
        let (source, program) = (package.join("peers/boost.cpp"), folder.join("peer_boost"));
        let mut words: Vec<&OsStr> = ["-std=c++17", "-O2", "-o"].iter().map(OsStr::new).collect();
        words.extend([program.as_os_str(), source.as_os_str()]);
        words.extend(["-lboost_fiber", "-lboost_context", "-pthread"].map(OsStr::new));
        let boost = compile("c++", words);
        Ok(Programs { folder, go: go.err(), boost: boost.err() })
    }

    /// The command that makes `peer` do one sample of `shape`.
    pub fn command(&self, peer: Peer, shape: &Shape, quick: bool) -> io::Result<Command> {
        let missing = match peer {
            Peer::Go => &self.go,
            Peer::Boost => &self.boost,
            _ => &None,
        };
        if let Some(why) = missing {
            return Err(io::Error::other(why.clone()));
        }
        let (program, words) = peer.program();
        let effort = match shape.kind {
            // Not so few that beginnings and ends are what is measured.
            Kind::Own if quick => (shape.effort / 4).max(shape.effort.min(20 * shape.count)),
            _ => shape.effort,
        };
        let mut command = Command::new(self.folder.join(program));
        command.args(words).arg(shape.order);
        command.args([shape.count, effort.max(1), shape.workers].map(|n| n.to_string()));
        Ok(command)
    }
}

/// Runs a compiler; the error is what a row can say.
fn compile<'a>(compiler: &str, words: impl IntoIterator<Item = &'a OsStr>) -> Result<(), String> {
    let output = Command::new(compiler).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("not measured: {compiler}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| line.contains("error")).or(said.lines().next());
    Err(format!("not measured: {compiler}: {}", line.unwrap_or("failed").trim()))
}

//! `sleave run`: programs as they are say the same on fibers as on threads, and what cannot be run so is explained.

#[allow(dead_code, reason = "each test binary uses its part of the helpers")]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::{run, sleave};

/// A directory for the programs, which goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("sleave-run-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A source beside this file.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// Compiles a program in C, or `NAME.cpp` in C++; `None` if there is no compiler.
fn compile(directory: &Directory, name: &str, options: &[&str]) -> Option<PathBuf> {
    let (source, compiler) = match Path::new(name).extension() {
        Some(_) => (source(name), "c++"),
        None => (source(&format!("{name}.c")), "cc"),
    };
    if Command::new(compiler).arg("--version").output().is_err() {
        println!("skipped: this machine has no {compiler}");
        return None;
    }
    let program = directory.file(name);
    let mut command = Command::new(compiler);
    command.args(["-O1", "-pthread", "-o"]).args([&program, &source]);
    let done = command.args(options).output().unwrap();
    if !done.status.success() && options.contains(&"-static") {
        println!("skipped: no static C library");
        return None;
    }
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(program)
}

/// Whether fibers can be had here; else `sleave run` refuses, and there is nothing to compare.
fn can_run() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let can = sleave::identity();
        can.inspect_err(|why| println!("skipped: {why}")).is_ok()
    })
}

/// `sleave run` with `options` of a program.
fn on_fibers(options: &[&str], program: &Path, arguments: &[&str]) -> Output {
    let mut command = sleave(&["run"]);
    run(command.args(options).arg("--").arg(program).args(arguments))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the program prints as it is, which it must print under `sleave run` too; and what both say on standard error.
fn compare(program: &Path, arguments: &[&str]) -> (String, String) {
    let threads = run(Command::new(program).args(arguments));
    let said = text(&threads.stderr);
    assert!(threads.status.success(), "on threads: {:?}\n{said}", threads.status);
    let mut complaints = String::new();
    for workers in ["1", "2", "4"] {
        let fibers = on_fibers(&["--workers", workers], program, arguments);
        complaints = text(&fibers.stderr);
        assert_eq!(text(&fibers.stdout), text(&threads.stdout), "{workers} workers:\n{complaints}");
        assert_eq!(fibers.status.code(), Some(0), "{workers} workers: {:?}", fibers.status);
    }
    (said, complaints)
}

#[test]
fn c_program_has_the_same_manners() {
    let directory = Directory::new("manners");
    let Some(program) = compile(&directory, "manners", &["-Wno-infinite-recursion"]) else {
        return;
    };
    if can_run() {
        compare(&program, &[]);
    }
}

#[test]
fn one_thread_too_many_is_refused() {
    let directory = Directory::new("most");
    let source = directory.write(
        "most.c",
        br#"
        #include <errno.h>
        #include <pthread.h>
        #include <stdio.h>
        static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
        static void *waits(void *unused) {
            pthread_mutex_lock(&held);
            pthread_mutex_unlock(&held);
            return unused;
        }
        int main(void) {
            pthread_t threads[8];
            int made = 0, code = 0;
            pthread_mutex_lock(&held);
            while (made < 8 && (code = pthread_create(&threads[made], NULL, waits, NULL)) == 0) made++;
            printf("%d, then %s\n", made, code == EAGAIN ? "EAGAIN" : "another");
            pthread_mutex_unlock(&held);
            while (made > 0) pthread_join(threads[--made], NULL);
            return 0;
        }"#,
        0o644,
    );
    if Command::new("cc").arg("--version").output().is_err() || !can_run() {
        return;
    }
    let program = directory.file("most");
    let done = Command::new("cc").args(["-pthread", "-o"]).args([&program, &source]).status();
    assert!(done.unwrap().success());
    let said = on_fibers(&["--max-fibers", "5"], &program, &[]);
    assert_eq!(text(&said.stdout), "5, then EAGAIN\n", "{}", text(&said.stderr));
    for nonsense in ["0", "-1", "many"] {
        let refused = on_fibers(&["--max-fibers", nonsense], &program, &[]);
        assert_eq!(refused.status.code(), Some(2), "{nonsense}");
    }
}

#[test]
fn each_thread_has_of_its_own_what_threads_have() {
    let directory = Directory::new("attributes");
    let Some(program) = compile(&directory, "attributes", &["-lm"]) else { return };
    if can_run() {
        compare(&program, &[]);
        assert!(!text(&run(&mut Command::new(&program)).stdout).contains("NOT"), "on threads");
    }
}

#[test]
fn signals_find_their_thread_and_interrupt_its_call() {
    let directory = Directory::new("signals");
    let Some(program) = compile(&directory, "signals", &[]) else { return };
    if can_run() {
        compare(&program, &[]);
    }
}

#[test]
fn cancelled_threads_end_where_they_wait_and_clean_up() {
    let directory = Directory::new("cancel");
    let Some(program) = compile(&directory, "cancel", &[]) else { return };
    if can_run() {
        compare(&program, &[]);
    }
}

#[test]
fn process_ends_with_its_last_thread_after_main() {
    let directory = Directory::new("leaves_main");
    let Some(program) = compile(&directory, "leaves_main", &[]) else { return };
    if can_run() {
        compare(&program, &[]);
        compare(&program, &["alone"]);
    }
}

#[test]
fn threads_that_end_while_they_are_joined_or_detached_are_not_lost() {
    let directory = Directory::new("races");
    let Some(program) = compile(&directory, "races", &[]) else { return };
    if can_run() {
        compare(&program, &["2000"]);
    }
}

#[test]
fn cxx_program_says_the_same() {
    let directory = Directory::new("cxx");
    let Some(program) = compile(&directory, "cxx.cpp", &["-std=c++17"]) else { return };
    if can_run() {
        compare(&program, &[]);
        compare(&program, &["terminate"]);
    }
}

/// glibc's allocator is first called by the runtime then, and must not be by several threads at once.
#[test]
fn program_with_an_allocator_of_its_own_runs() {
    let directory = Directory::new("own_malloc");
    let Some(program) = compile(&directory, "own_malloc", &[]) else { return };
    if !can_run() {
        return;
    }
    for round in 0..50 {
        let done = on_fibers(&["--workers", "2"], &program, &[]);
        assert_eq!(text(&done.stdout), "4950\n", "round {round}: {}", text(&done.stderr));
        assert_eq!(done.status.code(), Some(0), "round {round}");
    }
}

#[test]
fn crowd_of_threads_needs_a_handful_of_the_kernels() {
    let directory = Directory::new("crowd");
    let Some(program) = compile(&directory, "crowd", &[]) else { return };
    if !can_run() {
        return;
    }
    let crowd: u64 = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
    for options in [["--workers", "2"], ["--stack", "256K"]] {
        let done = on_fibers(&options, &program, &[&crowd.to_string()]);
        let said = text(&done.stderr);
        assert!(done.status.success(), "{:?}\n{said}", done.status);
        let sum = crowd * (crowd - 1) / 2;
        assert_eq!(text(&done.stdout), format!("{sum} {}\n", 2 * sum));
        let os_threads: usize = said.trim().parse().expect("a number of threads");
        assert!(os_threads < 100, "{os_threads} OS threads");
    }
}

#[test]
fn rust_program_of_std_says_the_same() {
    let directory = Directory::new("std");
    let program = directory.file("std_threads");
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let done = Command::new(compiler)
        .args(["--edition", "2024", "-O", "-o"])
        .args([program.clone(), source("std_threads.rs")])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    if can_run() {
        let (threads, fibers) = compare(&program, &[]);
        assert!(threads.trim().parse::<usize>().unwrap() > 2000, "{threads}");
        assert!(fibers.trim().parse::<usize>().unwrap() < 100, "{fibers}");
    }
}

#[test]
fn python_program_says_the_same() {
    let Ok(python) =
        Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output()
    else {
        println!("skipped: this machine has no python3");
        return;
    };
    if can_run() {
        let python = text(&python.stdout);
        let script = source("threads.py");
        let (threads, fibers) = compare(Path::new(python.trim()), &[script.to_str().unwrap()]);
        assert!(threads.trim().parse::<usize>().unwrap() > 100, "{threads}");
        assert!(fibers.trim().parse::<usize>().unwrap() < 100, "{fibers}");
    }
}

#[test]
fn report_tells_which_threads_could_not_be_fibers() {
    let directory = Directory::new("report");
    let Some(program) = compile(&directory, "kernel_threads", &[]) else { return };
    if !can_run() {
        return;
    }
    let file = directory.write("report", b"of an earlier run", 0o644);
    let report = file.to_str().unwrap();
    let done = on_fibers(&["--report", report], &program, &[]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let told = fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = told.lines().map(str::trim).collect();
    let first = format!(": {}", program.display());
    assert!(lines[0].starts_with("sleave report of process ") && lines[0].ends_with(&first));
    for line in
        ["thread made as an OS thread: own stack: 2", "thread made as an OS thread: set of CPUs: 1"]
    {
        assert!(lines.contains(&line), "no `{line}` in:\n{told}");
    }

    let nowhere = directory.file("missing/report");
    let done = on_fibers(&["--report", nowhere.to_str().unwrap()], &program, &[]);
    assert_eq!(done.status.code(), Some(125));
    assert!(text(&done.stderr).contains("No such file"), "{}", text(&done.stderr));
}

#[test]
fn exit_code_and_arguments_are_the_programs() {
    if !can_run() {
        return;
    }
    let done =
        run(sleave(&["run", "--"]).args(["sh", "-c", "echo \"$0 $@\"; exit 7", "--help", "-x"]));
    assert_eq!((done.status.code(), text(&done.stdout).as_str()), (Some(7), "--help -x\n"));
    // The options of the program need no `--` before them.
    let done = run(&mut sleave(&[
        "run",
        "--workers",
        "3",
        "sh",
        "-c",
        "echo $SLEAVE_WORKERS $SLEAVE_GREEN_THREADS",
    ]));
    assert_eq!(text(&done.stdout), "3 1\n");
}

#[test]
fn script_is_run_by_its_interpreter() {
    if !can_run() {
        return;
    }
    let directory = Directory::new("script");
    for (name, line) in [("plain", "#!/bin/sh"), ("env", "#!/usr/bin/env -S LC_ALL=C sh")] {
        let script = directory.write(name, format!("{line}\necho \"$0\"\n").as_bytes(), 0o755);
        let done = on_fibers(&[], &script, &[]);
        assert_eq!(text(&done.stdout), format!("{}\n", script.display()), "{}", text(&done.stderr));
    }
}

/// Whether `sleave run` refuses the program with this code and these words.
fn assert_refused(program: &Path, code: i32, words: &str) {
    let done = on_fibers(&[], program, &[]);
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{}: {said}", program.display());
    assert!(said.contains(words), "{}: {said}", program.display());
    assert!(done.stdout.is_empty(), "{}: {said}", program.display());
}

#[test]
fn what_is_no_program_is_refused() {
    let directory = Directory::new("refused");
    assert_refused(Path::new("sleave-has-no-such-program"), 127, "not found in PATH");
    assert_refused(&directory.file("missing"), 127, "No such file");
    assert_refused(&directory.0, 126, "is no file");
    assert_refused(
        &directory.write("text", b"hello", 0o755),
        126,
        "neither a program (ELF) nor a script",
    );
    assert_refused(&directory.write("plain", b"#!/bin/sh\n", 0o644), 126, "is not executable");
    assert_refused(
        &directory.write("nobody", b"#!\n", 0o755),
        126,
        "a script without an interpreter",
    );
    assert_refused(
        &directory.write("lost", b"#!/nonexistent/interpreter\n", 0o755),
        127,
        "/nonexistent/interpreter",
    );
    assert_refused(
        &directory.write("lost_env", b"#!/usr/bin/env nonexistent-interpreter\n", 0o755),
        127,
        "nonexistent-interpreter",
    );
    let itself = directory.file("itself");
    directory.write("itself", format!("#!{}\n", itself.display()).as_bytes(), 0o755);
    assert_refused(&itself, 126, "scripts that name scripts");
    for damaged in [
        &b"\x7fELF"[..],
        b"\x7fELF\x02\x01\x01",
        &[&b"\x7fELF\x02\x01\x01"[..], &[0xff; 80]].concat(),
    ] {
        assert_eq!(
            on_fibers(&[], &directory.write("damaged", damaged, 0o755), &[]).status.code(),
            Some(126)
        );
    }
}

#[test]
fn program_that_cannot_be_preloaded_is_refused() {
    let directory = Directory::new("unfit");
    if let Some(program) = compile(&directory, "crowd", &["-static"]) {
        assert_refused(&program, 126, "is statically linked");
        let script = format!("#!{}\n", program.display());
        assert_refused(
            &directory.write("script", script.as_bytes(), 0o755),
            126,
            "is statically linked",
        );
    }
    for (loader, words) in [
        ("/lib/ld-musl-x86_64.so.1", "is linked with musl"),
        ("/system/bin/linker64", "is not glibc's dynamic linker"),
    ] {
        let option = format!("-Wl,--dynamic-linker={loader}");
        if let Some(program) = compile(&directory, "crowd", &[&option]) {
            assert_refused(&program, 126, words);
        }
    }
    let Some(program) = compile(&directory, "crowd", &[]) else { return };
    let bytes = fs::read(&program).unwrap();
    let patched = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        directory.write("patched", &bytes, 0o755)
    };
    // e_machine: 8 is MIPS. EI_CLASS: 1 is 32 bits. e_type: 1 is an object file.
    assert_refused(&patched(18, 8), 126, "is for another processor");
    assert_refused(&patched(4, 1), 126, "is for another processor");
    assert_refused(&patched(16, 1), 126, "is an object file");

    const NOBODY: u32 = 65534;
    if std::os::unix::fs::chown(&program, Some(NOBODY), None).is_ok() {
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_refused(&program, 126, "runs with another user's rights");
    } else {
        println!("skipped: only root can give a program away");
    }
}

#[test]
fn object_that_is_not_the_tools_is_refused() {
    if !can_run() {
        return;
    }
    let directory = Directory::new("object");
    let stranger = directory.write("stranger.so", b"\x7fELF of somebody else", 0o644);
    let old = directory.write("old.so", b"...sleave preload object, version 0.0.1\0...", 0o644);
    let spaced = directory.write("a name.so", b"", 0o644);
    for (object, words) in [
        (directory.file("missing.so"), "No such file"),
        (stranger, "is no preload object of sleave's"),
        (old, "is of version 0.0.1, this tool of version"),
        (spaced, "LD_PRELOAD cannot name a path with a space"),
    ] {
        let done = run(sleave(&["run", "--", "true"]).env("SLEAVE_PRELOAD", &object));
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(125), "{said}");
        assert!(said.contains(words), "{said}");
    }
    // A tool without its object.
    let alone = directory.file("sleave");
    fs::copy(env!("CARGO_BIN_EXE_sleave"), &alone).unwrap();
    let done = run(Command::new(&alone).args(["run", "--", "true"]).env_remove("SLEAVE_PRELOAD"));
    assert_eq!(done.status.code(), Some(125));
    assert!(
        text(&done.stderr).contains("libsleave_preload.so is missing"),
        "{}",
        text(&done.stderr)
    );
}

#[test]
fn help_teaches_and_nonsense_is_named() {
    let help = text(&run(&mut sleave(&["run", "--help"])).stdout);
    for word in ["--workers", "--stack", "PROGRAM", "glibc", "125", "Examples:", "docs/run.md"] {
        assert!(help.contains(word), "no {word} in:\n{help}");
    }
    for (option, value, message) in [
        ("--workers", "0", "expected 1 to 256 worker threads"),
        ("--stack", "1K", "expected 16K to 1024M"),
        ("--stack", "much", "expected 16K to 1024M"),
    ] {
        let done = run(&mut sleave(&["run", option, value, "--", "true"]));
        assert_eq!(done.status.code(), Some(2));
        assert!(text(&done.stderr).contains(message), "{}", text(&done.stderr));
    }
    assert_eq!(run(&mut sleave(&["run"])).status.code(), Some(2));
}

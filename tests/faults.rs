//! The operating system fails, or the process is killed, at each system call of each operation.
//!
//! Each run is this program again. It stops at a gate, in the thread that is to be hurt, until `strace`
//! watches that thread, and makes one of its calls fail or kills the process as it enters it: strace
//! numbers the calls of each thread by themselves, so that of many threads only the first would be met.
//! Where `strace` is not installed the tests say so and pass, unless `TOKENSEAL_REQUIRE_STRACE` is set.
//! The names of the calls are those of x86-64; others have none for a plain `rename`, say.
#![cfg(all(target_os = "linux", target_arch = "x86_64", feature = "file"))]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use common::{account, files, has, response, wanted, with_key_file};
use tokenseal::{
    Error, Secret, TokenCache, TokenResponse,
    key_store::{KeyFileStore, KeyName, KeyStore, KeyStoreError},
    refresh::AcquireRequest,
};

/// The calls that change something, or that a change depends on.
const CALLS: [&str; 13] = [
    "openat",
    "read",
    "write",
    "fsync",
    "rename",
    "flock",
    "statx",
    "getdents64",
    "getrandom",
    "mkdir",
    "chmod",
    "unlink",
    "clone3",
];

fn strace_is_missing() -> bool {
    let found = Command::new("strace").arg("-V").output().is_ok();
    if !found {
        common::skip("STRACE", "strace is not installed");
    }
    !found
}

/// What came of a run.
struct Came {
    /// What the task printed: `acknowledged`, `refused: ...`, or nothing where it was killed.
    said: String,
    /// What strace saw.
    log: String,
}

impl Came {
    fn is_acknowledged(&self) -> bool {
        self.said.contains("acknowledged")
    }

    fn is_refused(&self) -> bool {
        self.said.contains("refused: ")
    }

    /// The line of the call that was made to fail.
    fn injected(&self) -> Option<&str> {
        self.log.lines().find(|line| line.contains("(INJECTED)"))
    }

    fn is_hit(&self) -> bool {
        self.injected().is_some() || self.log.contains("killed by SIGKILL")
    }
}

/// Runs `task` and has strace watch it from a gate on.
fn run(base: &Path, task: &str, gate: &str, arguments: &[&str]) -> Came {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--nocapture", "--test-threads=1"])
        .env("TOKENSEAL_CHILD_BASE", base)
        .env("TOKENSEAL_CHILD_TASK", task)
        .env("TOKENSEAL_CHILD_GATE", gate)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    let thread = loop {
        let mut line = String::new();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "{task} did not get to {gate}: {said}");
        if let Some(thread) = line.strip_prefix("at the gate: ") {
            break thread.trim().to_owned();
        }
        said.push_str(&line);
    };
    let log = base.parent().unwrap().join(format!("{}.log", child.id()));
    let mut strace = Command::new("strace")
        .args(["-y", "-o"])
        .arg(&log)
        .args(arguments)
        .args(["-p", &thread])
        .args(if gate == "acquire" { &["-f"][..] } else { &[] })
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut about = BufReader::new(strace.stderr.take().unwrap());
    let mut line = String::new();
    about.read_line(&mut line).unwrap();
    assert!(line.contains("attached"), "strace cannot watch {task}: {line}");
    // What strace says later must go somewhere.
    let drained = std::thread::spawn(move || about.lines().count());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    // A fault may make it hang: then it is killed, which the log shows.
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let pid = child.id().to_string();
    let watchdog = std::thread::spawn(move || {
        let hangs = is_done.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout);
        if hangs {
            Command::new("kill").args(["-KILL", &pid]).status().unwrap();
        }
        hangs
    });
    out.read_to_string(&mut said).unwrap();
    drop(done);
    let hangs = watchdog.join().unwrap();
    child.wait().unwrap();
    strace.wait().unwrap();
    drained.join().unwrap();
    assert!(!hangs, "{task} hangs after {gate} with {arguments:?}");
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(log).unwrap();
    Came { said, log: text }
}

/// In the child: waits at the gate, if it is the one that is asked for.
fn gate(name: &str) {
    if std::env::var("TOKENSEAL_CHILD_GATE").unwrap() == name {
        // The standard library panics where it gets no seed for a thread's hash maps.
        let _ = std::hash::RandomState::new();
        let thread = fs::read_link("/proc/thread-self").unwrap();
        let mut stdin = fs::File::open("/dev/stdin").unwrap();
        println!("\nat the gate: {}", thread.file_name().unwrap().display());
        // By a call that is none of those that are counted.
        assert_eq!(stdin.read_vectored(&mut [std::io::IoSliceMut::new(&mut [0])]).unwrap(), 1);
    }
}

/// In the child: says in the log that what began at the gate is over.
fn over() {
    drop(fs::File::open(IS_OVER));
}

const IS_OVER: &str = "/nowhere/that-is-over";

/// A key store with a gate before each call.
#[derive(Debug)]
struct Gated(KeyFileStore, AtomicUsize);

impl Gated {
    fn call<T>(&self, call: impl FnOnce(&KeyFileStore) -> T) -> T {
        gate(&format!("key call {}", self.1.fetch_add(1, Ordering::SeqCst)));
        let came = call(&self.0);
        over();
        came
    }
}

impl KeyStore for Gated {
    fn description(&self) -> String {
        self.0.description()
    }
    fn prepare(&self) -> Result<(), KeyStoreError> {
        self.call(KeyFileStore::prepare)
    }
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.call(|keys| keys.create(name, text))
    }
    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        self.call(|keys| keys.read(name))
    }
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.call(|keys| keys.delete(name))
    }
}

/// Not a test by itself: one operation. It prints only after the cache said that it is done.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = Path::new(&base);
    // Where only what descends from strace may be watched unasked.
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    let mut stdout = fs::File::options().append(true).open("/dev/stdout").unwrap();
    gate("task");
    let keys = Arc::new(Gated(KeyFileStore::new(base.join("keys")), AtomicUsize::new(0)));
    // Attaching strace takes its time.
    let patience = Duration::from_secs(60);
    let builder = || with_key_file(base).key_store(keys.clone()).rotation_timeout(patience);
    let open = || builder().open();
    let done = match std::env::var("TOKENSEAL_CHILD_TASK").unwrap().as_str() {
        "first sign-in" | "add" => open().and_then(|cache| cache.add(&response("alice", "second")).map(drop)),
        "sign out" => open().and_then(|cache| cache.remove_account(&account("bob")).map(drop)),
        "reset" => builder().reset().map(drop),
        "refresh" => open().and_then(|cache| {
            let stale = cache.find_access_token(&wanted("alice", "first"))?.unwrap();
            let wanted = wanted("alice", "first");
            let request = AcquireRequest::new(&wanted).replacing(&stale);
            let answer = r#"{"access_token":"renewed","refresh_token":"rotated","expires_in":3600}"#;
            gate("acquire");
            let acquired = cache.acquire(request, move |_| {
                gate("answer");
                Ok(TokenResponse::from_json(answer)?)
            });
            match acquired {
                Ok(acquired) if acquired.is_persisted() && acquired.token().expose() == "renewed" => Ok(()),
                Ok(_) => Err(Error::aborted("kept, and not persisted")),
                Err(error) => Err(Error::aborted(error)),
            }
        }),
        other => panic!("no task {other}"),
    };
    over();
    let calls = keys.1.load(Ordering::SeqCst);
    let came = done.map_or_else(|error| format!("refused: {error}"), |()| "acknowledged".into());
    // By a call that is none of those that fail.
    let said = format!("\nthere were {calls} key calls\n{came}\n");
    assert_eq!(stdout.write_vectored(&[std::io::IoSlice::new(said.as_bytes())]).unwrap(), said.len());
}

/// A new cache with two users, but for a first sign-in. A copy would share its key, and this process
/// would see a rollback.
fn fresh(task: &str) -> tempfile::TempDir {
    let holder = tempfile::tempdir().unwrap();
    if task == "first sign-in" {
        return holder;
    }
    let cache = with_key_file(&holder.path().join("base")).open().unwrap();
    cache.add(&response("alice", "first")).unwrap();
    cache.add(&response("bob", "first")).unwrap();
    holder
}

/// The gates of `task`, and of each kind of call how many are made from there on.
fn gates(task: &str) -> Vec<(String, Vec<(&'static str, usize)>)> {
    let trace = format!("trace={}", CALLS.join(","));
    let watch = |gate: &str| {
        let holder = fresh(task);
        let came = run(&holder.path().join("base"), task, gate, &["-e", &trace]);
        assert!(came.is_acknowledged(), "{task}: {}", came.said);
        came
    };
    let said = watch("task").said;
    let number = said.split_once("there were ").unwrap().1.split_once(' ').unwrap().0;
    let mut gates = vec!["task".to_owned()];
    gates.extend((0..number.parse().unwrap()).map(|number: usize| format!("key call {number}")));
    if task == "refresh" {
        gates.extend(["acquire", "answer"].map(str::to_owned));
    }
    let counted = gates.into_iter().map(|gate| {
        let came = watch(&gate);
        let counts = CALLS.map(|call| {
            let mut made: HashMap<&str, usize> = HashMap::new();
            for line in came.log.lines().take_while(|line| !line.contains(IS_OVER)) {
                if line.contains(&format!("{call}(")) {
                    // Only with several threads do the lines say which it was.
                    let thread = if gate == "acquire" { line.split(' ').next().unwrap() } else { "" };
                    *made.entry(thread).or_default() += 1;
                }
            }
            (call, made.into_values().max().unwrap_or(0))
        });
        (gate, counts.to_vec())
    });
    counted.collect()
}

/// What must hold after any failure of `task`.
fn check(base: &Path, task: &str, acknowledged: bool, what: &str) {
    let cache = with_key_file(base).open().unwrap_or_else(|error| panic!("{task}, {what}: {error}"));
    match task {
        "first sign-in" => {
            assert!(!acknowledged || has(&cache, "alice", "second"), "{what}: it was acknowledged");
        }
        "add" => {
            assert!(
                has(&cache, "alice", "first") && has(&cache, "bob", "first"),
                "{what}: what was there stays"
            );
            assert!(!acknowledged || has(&cache, "alice", "second"), "{what}: it was acknowledged");
        }
        "refresh" => {
            assert!(has(&cache, "bob", "first"), "{what}: what was there stays");
            let refresh_tokens = |tokens: &TokenCache| {
                tokens
                    .refresh_tokens()
                    .filter(|token| token.home_account_id() == Some("alice"))
                    .map(|token| token.expose().to_owned())
                    .collect::<Vec<_>>()
            };
            let kept = cache.read(refresh_tokens).unwrap();
            assert!(kept == ["rotated"] || !acknowledged && kept == ["rt-alice-first"], "{what}: {kept:?}");
        }
        "sign out" => {
            assert!(has(&cache, "alice", "first"), "{what}: what was there stays");
            assert!(!acknowledged || !has(&cache, "bob", "first"), "{what}: it was acknowledged");
        }
        _ => {
            // Set aside, but not lost.
            let aside = files(&base.join("tokens")).iter().any(|name| name.contains(".aside-"));
            assert!(has(&cache, "alice", "first") || aside, "{what}: what was there stays somewhere");
            assert!(!acknowledged || cache.accounts().unwrap().is_empty(), "{what}: it was acknowledged");
        }
    }
    // The next change makes up for whatever was cut short, and leaves no litter.
    cache.try_update(|tokens| tokens.add(&response("carol", "next"))).unwrap();
    let cache = with_key_file(base).open().unwrap();
    assert!(has(&cache, "carol", "next"), "{what}");
    let mut left = files(&base.join("tokens"));
    left.retain(|name| !name.contains(".aside-") && !name.ends_with(".refresh.lock"));
    if task == "refresh" {
        // The next refresh takes the lock at once, and the note of the killed one away.
        let wanted = wanted("alice", "other");
        let answer = r#"{"access_token":"at","refresh_token":"again","expires_in":3600}"#;
        let acquired = cache
            .acquire(&wanted, move |call| {
                let _sent = call.form();
                call.answer(200, None, None, answer)
            })
            .unwrap();
        assert!(acquired.is_persisted(), "{what}");
        left = files(&base.join("tokens"));
        left.retain(|name| !name.ends_with(".refresh.lock"));
    }
    assert_eq!(left, ["default.lock", "default.sealed"], "{task}, {what}: no litter");
    if task == "first sign-in" {
        // A key that was made just before a kill has sealed nothing.
        let keys = files(&base.join("keys")).len();
        assert!(keys == 1 || keys == 2 && !acknowledged, "{what}: {keys} keys");
    } else if task != "reset" {
        cache.try_update(|tokens| tokens.add(&response("carol", "again"))).unwrap();
        assert_eq!(files(&base.join("keys")).len(), 1, "{task}, {what}: no key is left over");
    }
}

/// Which step of a save a call is: the file made durable, put in its place, its directory made durable.
fn step(line: &str) -> Option<usize> {
    let is_temporary = line.contains("/.default.");
    match (line.contains("fsync("), line.contains("rename(")) {
        (true, _) if is_temporary => Some(0),
        (_, true) if is_temporary => Some(1),
        (true, _) if line.contains("/tokens>)") => Some(2),
        _ => None,
    }
}

/// Whether a change may not be acknowledged after this call failed.
fn is_needed(task: &str, log: &str, failed: &str) -> bool {
    match (task, step(failed)) {
        // Its first save is the sign-out. The rotation of the key can wait.
        ("sign out", Some(failed_step)) => {
            log.lines().find(|line| step(line) == Some(failed_step)) == Some(failed)
        }
        // The key and the directories count as well.
        ("first sign-in", None) => failed.contains("fsync("),
        (_, step) => step.is_some(),
    }
}

/// Runs `task` with a fault at each call of each kind.
fn inject(task: &str, faults: &[&str]) {
    let (mut runs, mut missed, mut needed) = (0, Vec::new(), 0);
    for (gate, calls) in gates(task) {
        for (call, count) in calls {
            for (fault, number) in
                faults.iter().flat_map(|fault| (1..=count).map(move |number| (fault, number)))
            {
                let what = format!("{task}: {fault} at {call} {number} of {count} after {gate}");
                let holder = fresh(task);
                let base = holder.path().join("base");
                let inject = format!("inject={call}:{fault}:when={number}");
                let came = run(&base, task, &gate, &["-e", &format!("trace={call}"), "-e", &inject]);
                runs += 1;
                if !came.is_hit() {
                    missed.push(what);
                    continue;
                }
                check(&base, task, came.is_acknowledged(), &what);
                // A seed again, in a thread that is not at the gate.
                if let Some(failed) = came.injected().filter(|line| !line.contains("GRND_INSECURE")) {
                    assert!(came.is_acknowledged() || came.is_refused(), "{what}: no error: {}", came.said);
                    // An interrupted call is made again. What did not become durable may be in the file all
                    // the same, and is no saved change.
                    if *fault != "error=EINTR" && is_needed(task, &came.log, failed) {
                        assert!(!came.is_acknowledged(), "{what}: a false acknowledgement: {failed}");
                        needed += 1;
                    }
                }
            }
        }
    }
    println!("{task}: {runs} faults, {needed} of them where nothing may be acknowledged; missed {missed:?}");
    assert!(runs > 30, "only {runs} faults were injected");
    // Of several threads after one gate, which it is may differ from run to run.
    assert!(
        missed.iter().all(|what| what.ends_with("after acquire")),
        "faults that did not happen: {missed:?}"
    );
    assert!(missed.len() * 20 < runs, "{} of {runs} faults did not happen: {missed:?}", missed.len());
    let errors = faults.iter().filter(|fault| **fault != "error=EINTR" && fault.starts_with("error="));
    // The file, its rename and its directory.
    assert!(needed >= 3 * errors.count(), "only {needed} failures where nothing may be acknowledged");
}

/// A file in a directory that a power cut takes away was not saved, nor was one whose key it takes. No
/// file system here takes the directories, as their journals keep the order, so that the calls themselves
/// are looked at.
#[test]
fn what_a_first_sign_in_makes_is_durable_before_it_is_needed() {
    if strace_is_missing() {
        return;
    }
    let above = tempfile::tempdir().unwrap();
    let above = above.path().canonicalize().unwrap();
    fs::create_dir(above.join("state")).unwrap();
    let base = above.join("state/app");
    let trace = "trace=mkdir,fsync,rename,openat";
    let came = run(&base, "first sign-in", "task", &["-f", "-e", trace]);
    assert!(came.is_acknowledged(), "{}", came.said);
    let within = |line: &str, call: &str, open: char, close: char| {
        let (path, _) = line.split_once(call)?.1.split_once(open)?.1.split_once(close)?;
        Some(PathBuf::from(path))
    };
    let (mut made, mut pending, mut saves) = (Vec::new(), Vec::new(), 0);
    for line in came.log.lines() {
        if let Some(directory) = within(line, "mkdir(", '"', '"') {
            pending.push(directory.parent().unwrap().to_owned());
            made.push(directory);
        } else if line.contains("O_CREAT|O_EXCL")
            && let Some(file) = within(line, "openat(", '"', '"')
            && file.starts_with(base.join("keys"))
        {
            pending.push(file.clone());
            pending.push(file.parent().unwrap().to_owned());
            made.push(file);
        } else if let Some(durable) = within(line, "fsync(", '<', '>') {
            // A directory's entries are durable with it, and not before the file is.
            let has_file = pending.iter().any(|path| path.parent() == Some(&durable) && path.is_file());
            pending.retain(|path| *path != durable || has_file);
        } else if line.contains("rename(") && line.contains("default.sealed") {
            assert!(pending.is_empty(), "{pending:?} are not durable when the file is put in its place");
            saves += 1;
        }
    }
    assert_eq!((made.len(), saves), (4, 2), "{made:?}");
    for directory in [base.clone(), base.join("tokens"), base.join("keys")] {
        assert!(made.contains(&directory), "{made:?}");
    }
}

#[test]
fn killed_at_every_call_of_a_first_sign_in() {
    if !strace_is_missing() {
        inject("first sign-in", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_an_add() {
    if !strace_is_missing() {
        inject("add", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_a_sign_out() {
    if !strace_is_missing() {
        inject("sign out", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_a_reset() {
    if !strace_is_missing() {
        inject("reset", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_a_refresh() {
    if !strace_is_missing() {
        inject("refresh", &["signal=KILL"]);
    }
}

#[test]
fn errors_at_every_call_of_a_refresh() {
    if !strace_is_missing() {
        inject("refresh", &["error=ENOSPC", "error=EIO"]);
    }
}

#[test]
fn errors_at_every_call_of_a_first_sign_in() {
    if !strace_is_missing() {
        inject("first sign-in", &["error=ENOSPC", "error=EIO", "error=EMFILE"]);
    }
}

#[test]
fn errors_at_every_call_of_an_add() {
    if !strace_is_missing() {
        inject(
            "add",
            &[
                "error=ENOSPC",
                "error=EIO",
                "error=EINTR",
                "error=EDQUOT",
                "error=EACCES",
                "error=EROFS",
                "error=EMFILE",
            ],
        );
    }
}

#[test]
fn errors_at_every_call_of_a_reset() {
    if !strace_is_missing() {
        inject("reset", &["error=ENOSPC", "error=EIO"]);
    }
}

#[test]
fn errors_at_every_call_of_a_sign_out() {
    if !strace_is_missing() {
        inject("sign out", &["error=ENOSPC", "error=EIO", "error=EACCES"]);
    }
}

//! The power is cut at each system call: a file system in an image is copied while the process stands
//! still there, and what the copy holds is what a machine would find that starts again.
//!
//! Needs root (mounts), `strace` and the file systems' tools. Without them the test says so and passes,
//! unless `TOKENSEAL_REQUIRE_ROOT` is set.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{account, files, response};
use tokenseal::{
    PersistedTokenCache, TokenResponse,
    key_store::KeyFileStore,
    refresh::{RefreshCall, RefreshFailure},
};

/// The calls at which the power is cut: all that change something on a disk, or wait for it.
const CALLS: &str = "openat,write,pwrite64,fsync,fdatasync,rename,renameat2,unlink,mkdir,fchmod,close,flock";

/// How often, and how long after the last acknowledgement, the power is cut as well.
const LATE_CUTS: usize = 16;
const BETWEEN_LATE_CUTS: Duration = Duration::from_millis(100);

fn open(directory: &Path, keys: &Path) -> Result<PersistedTokenCache, tokenseal::Error> {
    let keys = Arc::new(KeyFileStore::new(keys));
    PersistedTokenCache::builder("contoso-cli").directory(directory).key_store(keys).open()
}

fn run(command: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(command).args(arguments).output().map_err(|error| format!("{command}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command} {arguments:?}: {said}")) }
}

/// A mounted image, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir_all(at).unwrap();
        let (image, path) = (image.to_str().unwrap(), at.to_str().unwrap());
        run("mount", &["-o", &format!("loop{options}"), image, path])?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.0.to_str().unwrap();
        for _ in 0..50 {
            if run("umount", &[path]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Not a test by itself: the process whose power is cut, and the one that looks what is left.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE").map(PathBuf::from) else { return };
    let keys = PathBuf::from(std::env::var_os("TOKENSEAL_CHILD_KEYS").unwrap());
    let say = |line: &str| {
        let mut out = std::io::stdout();
        writeln!(out, "\n> {line}").unwrap();
        out.flush().unwrap();
    };
    if std::env::var("TOKENSEAL_CHILD_TASK").unwrap() == "work" {
        // Neither the directory nor its parent is there yet.
        let cache = open(&base.join("new/tokens"), &keys).unwrap();
        say("opened");
        for user in ["alice", "bob", "carol"] {
            cache.add(&response(user, "first")).unwrap();
            say(&format!("added {user}"));
        }
        cache.remove_account(&account("bob")).unwrap();
        say("removed bob");
        cache.add(&response("dave", "first")).unwrap();
        say("added dave");
        let refused = cache.find_access_token(&common::wanted("alice", "first")).unwrap().unwrap();
        let wanted = common::wanted("alice", "first");
        let request = tokenseal::refresh::AcquireRequest::new(&wanted).replacing(&refused);
        let refresh = |_: RefreshCall| -> Result<TokenResponse, RefreshFailure> {
            Ok(TokenResponse::from_json(
                r#"{"access_token":"renewed","refresh_token":"rotated","expires_in":3600}"#,
            )?)
        };
        assert!(cache.acquire(request, refresh).unwrap().is_persisted());
        say("refreshed alice");
        cache.remove_account(&account("carol")).unwrap();
        say("removed carol");
        return;
    }
    let cache = || open(&base.join("new/tokens"), &keys).unwrap();
    match std::env::var("TOKENSEAL_CHILD_TASK").unwrap().as_str() {
        "begin" => {
            for user in ["alice", "bob"] {
                cache().add(&response(user, "first")).unwrap();
            }
            return;
        }
        "sign out" => {
            cache().remove_account(&account("bob")).unwrap();
            return;
        }
        "add" => {
            cache().add(&response("dave", "first")).unwrap();
            say("added dave");
            return;
        }
        _ => {}
    }
    if !base.join("new/tokens/default.sealed").exists() {
        say("no file");
        return;
    }
    let cache = open(&base.join("new/tokens"), &keys).unwrap();
    for account in cache.accounts().unwrap() {
        say(&format!("has {}", account.home_account_id()));
    }
    if cache.read(|tokens| tokens.refresh_tokens().any(|token| token.expose() == "rotated")).unwrap() {
        say("has the rotated token");
    }
    // Whatever was cut short is made up for by the next change, and leaves no litter.
    cache.add(&response("eve", "next")).unwrap();
    let mut left = files(&base.join("new/tokens"));
    left.retain(|name| !name.contains(".refresh."));
    assert_eq!(left, ["default.lock", "default.sealed"]);
    say("whole");
}

fn child(task: &str, base: &Path, keys: &Path, strace: Option<&Path>) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = match strace {
        None => Command::new(program),
        Some(log) => {
            let mut command = Command::new("strace");
            command.args(["-f", "-q", "-o"]).arg(log);
            command.args(["-e", &format!("trace={CALLS}")]);
            command.args(["-e", &format!("inject={CALLS}:signal=STOP")]).arg(program);
            command
        }
    };
    command
        .args(["--exact", "as_a_child_process", "--nocapture", "--test-threads=1"])
        .env("TOKENSEAL_CHILD_BASE", base)
        .env("TOKENSEAL_CHILD_KEYS", keys)
        .env("TOKENSEAL_CHILD_TASK", task)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a power cut left, and what had been acknowledged by then.
struct Cut {
    image: PathBuf,
    keys: PathBuf,
    acknowledged: Vec<String>,
    at: String,
}

/// Lets the child work and copies the image whenever it stands still.
fn cuts(task: &str, image: &Path, mounted: &Path, base: &Path) -> Vec<Cut> {
    let (keys, log) = (base.join("keys"), base.join("strace"));
    fs::write(&log, "").unwrap();
    let mut strace = child(task, mounted, &keys, Some(&log)).spawn().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let reader = std::thread::spawn({
        let (said, out) = (Arc::clone(&said), strace.stdout.take().unwrap());
        move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix("> ") {
                    said.lock().unwrap().push(line.to_owned());
                }
            }
        }
    });
    let mut cuts = Vec::new();
    let mut take = |at: String| {
        let number = cuts.len();
        let (copy, keys_copy) = (base.join(format!("cut-{number}.img")), base.join(format!("keys-{number}")));
        // Acknowledged before the copy: the copy must have it.
        let acknowledged = said.lock().unwrap().clone();
        run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
        let _ = fs::create_dir(&keys);
        run("cp", &["-r", keys.to_str().unwrap(), keys_copy.to_str().unwrap()]).unwrap();
        cuts.push(Cut { image: copy, keys: keys_copy, acknowledged, at });
    };
    let (mut handled, mut is_on_disk) = (0, false);
    let (started, mut last) = (Instant::now(), Instant::now());
    while strace.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(120), "it never ends");
        let lines = fs::read_to_string(&log).unwrap();
        let stops = lines.matches("stopped by SIGSTOP").count();
        let is_new = stops != handled;
        // One signal may have met another on its way.
        if !is_new && last.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_micros(300));
            continue;
        }
        (handled, last) = (stops, Instant::now());
        // Only what is on the disk is at stake, and before it is touched there is nothing.
        is_on_disk = is_on_disk || lines.contains("/disk/new");
        if is_new && is_on_disk {
            std::thread::sleep(Duration::from_millis(1));
            let call = lines.lines().rev().find(|line| !line.contains(" --- ")).unwrap_or_default();
            take(call.to_owned());
        }
        // The first line is of the main thread, which outlives the others.
        let pid = lines.split_whitespace().next().unwrap_or_default();
        let _ = run("kill", &["-CONT", pid]);
    }
    reader.join().unwrap();
    let last = said.lock().unwrap().last().cloned();
    assert!(matches!(last.as_deref(), Some("removed carol" | "added dave")), "the work was done: {last:?}");
    for number in 0..LATE_CUTS {
        take(format!("late cut {number}"));
        std::thread::sleep(BETWEEN_LATE_CUTS);
    }
    cuts
}

/// What must hold after a cut.
fn check(cut: &Cut, mounted: &Path) {
    let output = child("check", mounted, &cut.keys, None).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: BTreeSet<&str> = out.lines().filter_map(|line| line.strip_prefix("> ")).collect();
    let told =
        format!("{}, after {:?}: {out}{}", cut.at, cut.acknowledged, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "corrupt: {told}");
    assert!(found.contains("whole") || cut.acknowledged.is_empty(), "lost: {told}");
    let mut expected = BTreeSet::new();
    let last = cut.acknowledged.last().map_or("", String::as_str);
    for line in &cut.acknowledged {
        match line.split_once(' ') {
            Some(("added", user)) => {
                expected.insert(format!("has {user}"));
            }
            Some(("removed", user)) => {
                expected.remove(&format!("has {user}"));
                assert!(!found.contains(&*format!("has {user}")), "came back: {told}");
            }
            Some(("refreshed", _)) => {
                expected.insert("has the rotated token".into());
            }
            _ => {}
        }
    }
    for expected in expected {
        // The next step may have been on its way.
        let is_being_removed =
            [("has bob", "added carol"), ("has carol", "refreshed alice")].contains(&(&*expected, last));
        assert!(found.contains(&*expected) || is_being_removed, "lost {expected}: {told}");
    }
}

/// What is done with an image, where it is mounted, and beside it.
type Work = fn(&Path, &Path, &Path) -> Vec<Cut>;

fn power_cuts(file_system: &str, size: u64, make: &[&str], options: &str, (work, at_least): (Work, usize)) {
    let attempt = || -> Result<usize, String> {
        let base = tempfile::tempdir().unwrap();
        let image = base.path().join("disk.img");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        let make: Vec<&str> = make.iter().copied().chain([image.to_str().unwrap()]).collect();
        run(make[0], &make[1..])?;
        run("strace", &["-V"])?;
        let mounted = Mounted::new(&image, &base.path().join("disk"), options)?;
        let cuts = work(&image, &mounted.0, base.path());
        drop(mounted);
        for cut in &cuts {
            let mounted = Mounted::new(
                &cut.image,
                &base.path().join("after"),
                if file_system == "xfs" { ",nouuid" } else { "" },
            )
            .unwrap_or_else(|error| panic!("{}: {error}", cut.at));
            check(cut, &mounted.0);
            drop(mounted);
            fs::remove_file(&cut.image).unwrap();
        }
        Ok(cuts.len())
    };
    match attempt() {
        Ok(cuts) => {
            println!("{file_system}: the power was cut {cuts} times, 0 corrupt, 0 lost");
            assert!(cuts > LATE_CUTS + at_least, "only {cuts}");
        }
        Err(why) => common::skip("ROOT", &format!("no power was cut on {file_system}: {why}")),
    }
}

/// Everything that a program does in a day.
fn a_day(image: &Path, mounted: &Path, base: &Path) -> Vec<Cut> {
    cuts("work", image, mounted, base)
}

/// A sign-out is killed when the file is under its new key and that is not durable yet; the next
/// process goes on from there, and deletes the old key.
fn after_a_killed_sign_out(image: &Path, mounted: &Path, base: &Path) -> Vec<Cut> {
    let keys = base.join("keys");
    let sign_out = |mounted: &Path, keys: &Path, faults: &[String]| {
        let log = base.join("sign-out");
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-y", "-o"]).arg(&log).args(faults).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "as_a_child_process", "--nocapture", "--test-threads=1"]);
        command.env("TOKENSEAL_CHILD_BASE", mounted).env("TOKENSEAL_CHILD_KEYS", keys);
        command.env("TOKENSEAL_CHILD_TASK", "sign out").output().unwrap();
        fs::read_to_string(log).unwrap()
    };
    // Which of its calls that is, a run elsewhere shows.
    let elsewhere = tempfile::tempdir().unwrap();
    let (disk, other_keys) = (elsewhere.path().join("disk"), elsewhere.path().join("keys"));
    assert!(child("begin", &disk, &other_keys, None).output().unwrap().status.success());
    let log = sign_out(&disk, &other_keys, &["-e".into(), "trace=fsync,rename".into()]);
    let calls: Vec<&str> =
        log.lines().filter(|line| line.contains("fsync(") || line.contains("rename(")).collect();
    let is_replacement = |line: &&str| line.contains("rename(") && line.contains("default.sealed");
    let last = calls.iter().rposition(is_replacement).expect("it replaces the file");
    // Each thread's calls are counted apart; the key store has threads of its own.
    let thread = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let is_its_fsync = |line: &&&str| line.contains("fsync(") && thread(line) == thread(calls[last]);
    let number = calls[..last].iter().filter(is_its_fsync).count() + 1;

    assert!(child("begin", mounted, &keys, None).output().unwrap().status.success());
    let fault = format!("inject=fsync:signal=KILL:when={number}");
    sign_out(mounted, &keys, &["-e".into(), "trace=fsync".into(), "-e".into(), fault]);
    assert_eq!(files(&keys).len(), 2, "the old key and the new one");
    let mut cuts = cuts("add", image, mounted, base);
    // What was there before counts as well.
    for cut in &mut cuts {
        cut.acknowledged.insert(0, "added alice".into());
    }
    assert!(cuts.iter().any(|cut| files(&cut.keys).len() == 1), "the old key was deleted");
    cuts
}

/// Without `noauto_da_alloc` ext4 hides a missing `fsync`.
const EXT4: (&[&str], &str) = (&["mkfs.ext4", "-q", "-F"], ",noauto_da_alloc,commit=300");

#[test]
fn a_power_cut_on_ext4_loses_nothing_that_was_acknowledged() {
    power_cuts("ext4", 16 << 20, EXT4.0, EXT4.1, (a_day, 150));
}

#[test]
fn a_power_cut_on_xfs_loses_nothing_that_was_acknowledged() {
    power_cuts("xfs", 320 << 20, &["mkfs.xfs", "-q", "-f"], "", (a_day, 150));
}

#[test]
fn a_power_cut_on_btrfs_loses_nothing_that_was_acknowledged() {
    power_cuts("btrfs", 128 << 20, &["mkfs.btrfs", "-q", "-f"], ",commit=300", (a_day, 150));
}

#[test]
fn a_power_cut_after_a_killed_sign_out_leaves_the_key_of_the_file_that_is_there() {
    power_cuts("ext4", 16 << 20, EXT4.0, EXT4.1, (after_a_killed_sign_out, 20));
}

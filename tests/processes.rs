//! Many processes and one cache: nothing is lost, nothing is torn, a killed one hinders nobody.
#![cfg(feature = "file")]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{account, has, response};
use tokenseal::{Error, PersistedTokenCache};

fn open(base: &Path) -> PersistedTokenCache {
    // Wine is slow, and slower beside something else.
    let patience = Duration::from_secs(if cfg!(windows) { 300 } else { 30 });
    common::with_key_file(base).lock_timeout(patience).open().unwrap()
}

/// Runs this very program as a child that does `task`.
fn spawn(base: &Path, task: &str, number: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--nocapture"])
        .env("TOKENSEAL_CHILD_BASE", base)
        .env("TOKENSEAL_CHILD_TASK", task)
        .env("TOKENSEAL_CHILD_NUMBER", number.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for all of them, and gives what each said.
fn finish(children: Vec<Child>) -> Vec<String> {
    let finish = |child: Child| {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    children.into_iter().map(finish).collect()
}

/// Not a test by itself: what the children of the tests below do.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = Path::new(&base);
    let number = std::env::var("TOKENSEAL_CHILD_NUMBER").unwrap();
    match std::env::var("TOKENSEAL_CHILD_TASK").unwrap().as_str() {
        "add 200" => {
            let cache = open(base);
            let mut worst = Duration::ZERO;
            for round in 0..200 {
                let started = Instant::now();
                cache.add(&response("alice", &format!("{number}-{round}"))).unwrap();
                worst = worst.max(started.elapsed());
            }
            println!("\nworst wait {}", worst.as_millis());
        }
        "add and read with pauses" => {
            let cache = open(base);
            for round in 0..50 {
                let scope = format!("{number}-{round}");
                cache.add(&response("alice", &scope)).unwrap();
                for _ in 0..3 {
                    assert!(has(&cache, "alice", &scope), "{scope} was acknowledged and is not there");
                    std::thread::sleep(Duration::from_millis(random() % 4));
                }
            }
        }
        "add until killed" => {
            use std::io::Write as _;
            let cache = open(base);
            let mut out = std::io::stdout();
            for round in 0.. {
                let scope = format!("{number}-{round}");
                cache.add(&response("alice", &scope)).unwrap();
                // Only what was acknowledged is told.
                writeln!(out, "\nadded {scope}").unwrap();
                out.flush().unwrap();
            }
        }
        "sign out until killed" => {
            let cache = open(base);
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(600) {
                cache.add(&response("goes", "x")).unwrap();
                cache.remove_account(&account("goes")).unwrap();
            }
        }
        "read and write while others sign out" => {
            let cache = open(base);
            let mut rounds = 0;
            let began = Instant::now();
            while rounds == 0 || !base.join("over").exists() {
                assert!(began.elapsed() < Duration::from_secs(600), "nobody says that it is over");
                let scope = format!("{number}-{rounds}");
                cache.add(&response("alice", &scope)).unwrap();
                assert!(has(&cache, "alice", &scope));
                rounds += 1;
                std::thread::sleep(Duration::from_millis(random() % 100));
            }
            println!("\nadded {rounds}");
        }
        "hold the lock" => {
            let cache = open(base);
            let _ = cache.try_update(|_| {
                println!("\nholding");
                std::thread::sleep(Duration::from_secs(60));
                Ok::<_, Error>(())
            });
        }
        other => panic!("no task {other}"),
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

fn tokens(cache: &PersistedTokenCache) -> HashSet<String> {
    cache
        .read(|tokens| {
            tokens.access_tokens().map(|token| token.scopes().collect::<Vec<_>>().join(" ")).collect()
        })
        .unwrap()
}

#[test]
fn sixteen_processes_adding_200_tokens_each_keep_all_3200() {
    let base = tempfile::tempdir().unwrap();
    // No cache exists yet: the first key is raced for as well.
    let said = finish((0..16).map(|number| spawn(base.path(), "add 200", number)).collect());
    let waits = said.iter().flat_map(|said| said.lines()).filter_map(|line| line.strip_prefix("worst wait "));
    let waits: Vec<u64> = waits.map(|wait| wait.parse().unwrap()).collect();
    println!("the worst wait of each of 16 processes for one of 200 adds, in ms: {waits:?}");
    assert_eq!(waits.len(), 16);
    // A fair share is 16 turns; nobody may starve, however noisy the machine is.
    assert!(waits.iter().all(|&wait| wait < 10_000), "{waits:?}");
    assert_eq!(tokens(&open(base.path())).len(), 3_200);
    assert_eq!(common::files(&base.path().join("keys")).len(), 1, "one key was made");
}

#[test]
fn mixed_reads_and_writes_lose_nothing() {
    let base = tempfile::tempdir().unwrap();
    finish((0..8).map(|number| spawn(base.path(), "add and read with pauses", number)).collect());
    assert_eq!(tokens(&open(base.path())).len(), 400);
}

#[test]
fn a_hundred_sign_outs_of_one_process_cost_sixteen_others_nothing() {
    // Wine is slow.
    let (others, sign_outs) = if cfg!(windows) { (6, 40) } else { (16, 100) };
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    let children = (0..others)
        .map(|number| spawn(base.path(), "read and write while others sign out", number))
        .collect();
    let began = Instant::now();
    while tokens(&cache).len() < others {
        assert!(began.elapsed() < Duration::from_secs(60), "they did not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..sign_outs {
        cache.add(&response("goes", "x")).unwrap();
        assert!(!cache.remove_account(&account("goes")).unwrap().is_rotation_pending());
    }
    std::fs::write(base.path().join("over"), "").unwrap();
    let said = finish(children);
    let added = said.iter().flat_map(|said| said.lines()).filter_map(|line| line.strip_prefix("added "));
    let added: Vec<usize> = added.map(|rounds| rounds.parse().unwrap()).collect();
    assert_eq!(added.len(), others);
    let all: usize = added.iter().sum();
    assert!(all > 2 * others, "they did little beside the sign-outs: {added:?}");
    assert_eq!(tokens(&open(base.path())).len(), all);
    cache.add(&response("alice", "last")).unwrap();
    assert_eq!(common::files(&base.path().join("keys")).len(), 1, "no key is left over");
}

#[test]
fn killed_writers_lose_nothing_that_was_acknowledged() {
    use std::io::{BufRead as _, BufReader, Read as _};
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    let mut acknowledged = HashSet::new();
    for round in 0..20 {
        let mut children: Vec<Child> =
            (0..2).map(|number| spawn(base.path(), "add until killed", round * 2 + number)).collect();
        children.push(spawn(base.path(), "sign out until killed", 1000 + round));
        let mut outputs: Vec<_> =
            children.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap())).collect();
        // They are killed at work: one of them has added something.
        let mut begun = String::new();
        while !begun.contains("added ") {
            assert_ne!(outputs[0].read_line(&mut begun).unwrap(), 0, "it ended by itself: {begun}");
        }
        std::thread::sleep(Duration::from_millis(random() % 60));
        for child in &mut children {
            child.kill().unwrap();
        }
        for (child, mut output) in children.into_iter().zip(outputs) {
            let mut said = std::mem::take(&mut begun);
            output.read_to_string(&mut said).unwrap();
            let output = child.wait_with_output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            #[cfg(unix)]
            {
                use std::os::unix::process::ExitStatusExt as _;
                assert_eq!(output.status.signal(), Some(9), "it was not the kill that ended it: {error}");
            }
            assert!(!error.contains("panicked"), "{error}");
            // A line that was cut off is no acknowledgement.
            let whole = said.rfind('\n').map_or("", |end| &said[..end]);
            acknowledged
                .extend(whole.lines().filter_map(|line| line.strip_prefix("added ")).map(str::to_owned));
        }
        // By one that has no key in memory.
        let found = tokens(&open(base.path()));
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?}");
    }
    assert!(acknowledged.len() >= 20, "the children did something: {}", acknowledged.len());
    cache.try_update(|tokens| tokens.add(&response("alice", "last"))).unwrap();
    assert_eq!(common::files(&base.path().join("tokens")), ["default.lock", "default.sealed"], "no litter");
}

/// A process that holds the lock, and has said so.
fn holder(base: &Path) -> Child {
    use std::io::{BufRead as _, BufReader};
    let mut holder = spawn(base, "hold the lock", 0);
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    while lines.next().unwrap().unwrap() != "holding" {}
    holder
}

#[test]
fn a_hung_holder_costs_the_others_their_deadline_and_readers_nothing() {
    let base = tempfile::tempdir().unwrap();
    drop(open(base.path()));
    let mut holder = holder(base.path());
    let impatient =
        common::with_key_file(base.path()).lock_timeout(Duration::from_millis(200)).open().unwrap();
    let started = Instant::now();
    assert!(impatient.add(&response("alice", "read")).unwrap_err().is_lock_timeout());
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&started.elapsed()));
    assert!(impatient.accounts().unwrap().is_empty(), "readers do not wait");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_killed_holder_frees_the_lock_at_once() {
    let base = tempfile::tempdir().unwrap();
    let cache = open(base.path());
    let mut waits: Vec<Duration> = (0..9)
        .map(|round| {
            let mut holder = holder(base.path());
            let waited = std::thread::scope(|scope| {
                let next = scope.spawn(|| {
                    cache.add(&response("alice", &round.to_string())).unwrap();
                    Instant::now()
                });
                std::thread::sleep(Duration::from_millis(200));
                let killed = Instant::now();
                holder.kill().unwrap();
                let saved = next.join().unwrap();
                assert!(saved > killed, "it did not wait for the lock");
                saved - killed
            });
            holder.wait().unwrap();
            waited
        })
        .collect();
    waits.sort();
    println!("after a holder was killed, the next one had saved after {waits:?}");
    // Wine is slow, and so is a machine that does something else just then.
    let bar = Duration::from_millis(if cfg!(windows) { 1_000 } else { 50 });
    assert!(waits[4] < bar && waits[8] < Duration::from_secs(2), "{waits:?}");
}

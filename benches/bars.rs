//! Every figure that docs/figures.md promises, with its bar, in one run.
//!
//!     cargo bench --bench bars
//!
//! Figures are medians; ratios come from pairs that take turns in this run. The process figures run
//! this very program again, many times at once.
#![allow(clippy::cast_precision_loss, clippy::similar_names)]

#[allow(dead_code)] // Each bench uses a part.
mod data;

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use tokenseal::seal::{self, Context, SealingKey};
use tokenseal::{
    AccessTokenQuery, RefreshTokenQuery, TokenCache, TokenResponse, cache::AccountQuery,
    refresh::RefreshFailure,
};

fn main() {
    if let Ok(task) = std::env::var("TOKENSEAL_BARS_TASK") {
        let base = std::env::var_os("TOKENSEAL_BARS_BASE").expect("the parent sets it");
        return child(&task, Path::new(&base));
    }
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test` builds benches and runs them: there is nothing to test here.
    }
    println!("| what | measured | bar | |\n|---|---|---|---|");
    lookups();
    sealing();
    deserializing();
    updating();
    peak_memory();
    processes();
}

fn row(what: &str, measured: &str, bar: &str, is_met: bool) {
    println!("| {what} | {measured} | {bar} | {} |", if is_met { "met" } else { "MISSED" });
}

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    black_box(work());
    started.elapsed().as_secs_f64() * 1e6
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Medians of two things that take turns, in microseconds for one of `inner`.
fn pairs(rounds: usize, inner: u32, mut first: impl FnMut(), mut second: impl FnMut()) -> (f64, f64) {
    let mut figures = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        figures.0.push(timed(|| (0..inner).for_each(|_| first())) / f64::from(inner));
        figures.1.push(timed(|| (0..inner).for_each(|_| second())) / f64::from(inner));
    }
    (median(figures.0), median(figures.1))
}

fn lookups() {
    for accounts in [1, 100, 1_000, 10_000] {
        let base = tempfile::tempdir().unwrap();
        let cache = data::sealed(base.path(), accounts);
        let (path, wanted) = (cache.path().to_owned(), data::wanted(accounts / 2));
        let (stat, find) = pairs(
            101,
            1_000,
            || drop(black_box(fs::symlink_metadata(&path))),
            || drop(black_box(cache.find_access_token(&wanted).unwrap().unwrap())),
        );
        row(
            &format!("find, {accounts} accounts"),
            &format!("{find:.2} µs = stat {stat:.2} + {:.2}", find - stat),
            "stat + 1 µs",
            find - stat <= 1.0,
        );
        let never = |_| Err(RefreshFailure::transient("a fresh token needs no call"));
        let (find, acquire) = pairs(
            101,
            1_000,
            || drop(black_box(cache.find_access_token(&wanted).unwrap().unwrap())),
            || drop(black_box(cache.acquire(&wanted, never).unwrap())),
        );
        row(
            &format!("acquire a fresh token, {accounts} accounts"),
            &format!("{acquire:.2} µs = {:.2} × find", acquire / find),
            "1.2 ×",
            acquire / find <= 1.2,
        );
        if accounts < 10_000 {
            continue;
        }
        let missing = AccessTokenQuery::for_account(data::CLIENT, &data::account(accounts + 1));
        let refresh = RefreshTokenQuery::new(data::CLIENT, &data::account(accounts / 2));
        let named = AccountQuery::new().username(data::username(accounts / 2));
        cache
            .read(|tokens| {
                let (miss, refresh) = pairs(
                    101,
                    1_000,
                    || assert!(black_box(tokens.find_access_token(&missing)).is_none()),
                    || assert!(black_box(tokens.find_refresh_token(&refresh)).is_some()),
                );
                row("miss, 10,000 accounts", &format!("{miss:.2} µs"), "5 µs", miss <= 5.0);
                row("refresh token, 10,000 accounts", &format!("{refresh:.2} µs"), "5 µs", refresh <= 5.0);
                let (account, _) =
                    pairs(101, 1_000, || assert_eq!(black_box(tokens.find_accounts(&named)).len(), 1), || ());
                row(
                    "account by user name, 10,000 accounts",
                    &format!("{account:.2} µs"),
                    "5 µs",
                    account <= 5.0,
                );
            })
            .unwrap();
    }
}

fn sealing() {
    let key = SealingKey::generate().unwrap();
    let context = Context::file("tokenseal-bench", "default");
    let plaintext = vec![b'x'; 150_000];
    let record = seal::seal(&key, &context, 1, &plaintext).unwrap();
    let mut records: Vec<Vec<u8>> = (0..501 * 10).map(|_| record.clone()).collect();
    let (sealing, opening) = pairs(
        501,
        10,
        || drop(black_box(seal::seal(&key, &context, 1, black_box(&plaintext)).unwrap())),
        || drop(black_box(seal::open(&key, &context, records.pop().unwrap()).unwrap())),
    );
    let speed = |microseconds: f64| 150_000.0 / microseconds / 1_000.0;
    for (what, figure) in [("seal 150 kB", speed(sealing)), ("open 150 kB", speed(opening))] {
        row(what, &format!("{figure:.1} GB/s"), "1.5 GB/s", figure >= 1.5);
    }

    let plaintext = vec![b'x'; 15_000];
    let record = seal::seal(&key, &context, 1, &plaintext).unwrap();
    let mut buffer = plaintext.clone();
    let mut plain = || {
        let cipher = Aes256Gcm::new((&[1; 32]).into());
        let tag = cipher.encrypt_inout_detached(&Nonce::from([2; 12]), b"", (&mut buffer[..]).into());
        black_box(tag.unwrap());
    };
    let (own, bare) = pairs(
        501,
        100,
        || drop(black_box(seal::seal(&key, &context, 1, black_box(&plaintext)).unwrap())),
        &mut plain,
    );
    let above = own - bare;
    row(
        "seal 15 kB, above plain AES-256-GCM",
        &format!("{own:.1} - {bare:.1} = {above:.1} µs"),
        "4 µs",
        above <= 4.0,
    );
    let mut records: Vec<Vec<u8>> = (0..501 * 10).map(|_| record.clone()).collect();
    let (own, bare) = pairs(
        501,
        10,
        || drop(black_box(seal::open(&key, &context, records.pop().unwrap()).unwrap())),
        plain,
    );
    let above = own - bare;
    row(
        "open 15 kB, above plain AES-256-GCM",
        &format!("{own:.1} - {bare:.1} = {above:.1} µs"),
        "4 µs",
        above <= 4.0,
    );
}

fn deserializing() {
    for (accounts, rounds) in [(1_000, 51), (10_000, 21)] {
        let json = data::json(accounts);
        let mut figures = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            figures.0.push(timed(|| serde_json::from_str::<serde::de::IgnoredAny>(&json).unwrap()));
            let (mut cache, owned) = (TokenCache::new(), json.clone());
            figures.1.push(timed(|| cache.deserialize(owned).unwrap()));
        }
        let (ignored, own) = (median(figures.0), median(figures.1));
        row(
            &format!("deserialize + index, {accounts} accounts ({:.0} MB)", json.len() as f64 / 1e6),
            &format!("{:.1} ms = {:.2} × IgnoredAny", own / 1e3, own / ignored),
            "2.5 ×",
            own / ignored <= 2.5,
        );
    }
}

fn response(user: &str, scope: &str, length: usize) -> TokenResponse {
    let json = format!(r#"{{"access_token":"{}","expires_in":3600}}"#, "t".repeat(length));
    let response = TokenResponse::from_json(json).unwrap().client_id(data::CLIENT);
    response.environment("idp.example").realm("r").home_account_id(user).requested_scopes([scope])
}

fn updating() {
    for (accounts, what, bar) in [(14, "100 kB", 1.6), (1_000, "7 MB", 2.2)] {
        let base = tempfile::tempdir().unwrap();
        let cache = data::sealed(base.path(), accounts);
        cache.add(&response("user", "first", 2_000)).unwrap();
        let bytes = fs::read(cache.path()).unwrap();
        let (target, temporary) = (base.path().join("bare"), base.path().join("bare.tmp"));
        let bare = || {
            let mut file = File::create(&temporary).unwrap();
            file.write_all(&bytes).unwrap();
            file.sync_all().unwrap();
            fs::rename(&temporary, &target).unwrap();
            File::open(base.path()).unwrap().sync_all().unwrap();
        };
        let mut figures = (Vec::new(), Vec::new());
        for round in 0..if accounts > 100 { 61 } else { 301 } {
            figures.0.push(timed(bare));
            let response = response("user", &format!("scope-{round}"), 2_000);
            figures.1.push(timed(|| cache.add(&response).unwrap()));
            // Taken out again, so that the cache stays as large as the bytes of the bare write.
            let last = |tokens: &mut TokenCache| {
                let scope = format!("scope-{round}");
                let token =
                    tokens.access_tokens().find(|token| token.scopes().any(|own| own == scope)).unwrap();
                Ok::<_, tokenseal::Error>(tokens.remove_access_token(&token))
            };
            cache.try_update(last).unwrap();
        }
        let (bare, update) = (median(figures.0), median(figures.1));
        row(
            &format!("add one token to {what}, durable"),
            &format!("{:.2} ms = {:.2} × bare", update / 1e3, update / bare),
            &format!("{bar} ×"),
            update / bare <= bar,
        );
    }
}

fn run(base: &Path, task: &str, number: usize) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .env("TOKENSEAL_BARS_TASK", task)
        .env("TOKENSEAL_BARS_BASE", base)
        .env("TOKENSEAL_BARS_NUMBER", number.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn peak_memory() {
    for accounts in [1_000, 10_000] {
        let base = tempfile::tempdir().unwrap();
        let cache = data::sealed(base.path(), accounts);
        let size = fs::metadata(cache.path()).unwrap().len() as f64;
        drop(cache);
        let output = run(base.path(), "open", 0).wait_with_output().unwrap();
        let grown: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        row(
            &format!("peak memory to open, {accounts} accounts"),
            &format!("{:.2} × its size", grown / size),
            "3 ×",
            grown / size <= 3.0,
        );
    }
}

fn processes() {
    for count in [8, 16] {
        let base = tempfile::tempdir().unwrap();
        drop(data::builder(base.path()).open().unwrap());
        let outcome = storm(base.path(), "mixed", count);
        let kept = count * 50 - outcome.lost;
        row(
            &format!("{count} processes, each 50 × (1 add, 3 reads, pauses)"),
            &format!("{} lost, {} errors of {}", outcome.lost, outcome.errors, count * 50),
            "0 lost, 0 errors",
            kept == count * 50 && outcome.errors == 0,
        );
    }
    for (task, size) in [("tight 200", "200 B"), ("tight 2000", "2 kB")] {
        let base = tempfile::tempdir().unwrap();
        drop(data::builder(base.path()).open().unwrap());
        let outcome = storm(base.path(), task, 16);
        let speed = 800.0 / outcome.elapsed.as_secs_f64();
        let Outcome { worst, lost, errors, .. } = outcome;
        row(
            &format!("16 processes adding 50 tokens of {size} each without pause, durable"),
            &format!("{speed:.0} adds/s, worst wait {:.0} ms, {lost} lost, {errors} errors", worst * 1e3),
            "560 adds/s",
            speed >= 560.0 && lost == 0 && errors == 0,
        );
    }
}

struct Outcome {
    lost: usize,
    errors: usize,
    worst: f64,
    elapsed: Duration,
}

fn storm(base: &Path, task: &str, count: usize) -> Outcome {
    let started = Instant::now();
    let children: Vec<_> = (0..count).map(|number| run(base, task, number)).collect();
    let (mut errors, mut worst) = (0, 0.0_f64);
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match text.trim().split_once(' ') {
            Some((failed, wait)) => {
                errors += failed.parse::<usize>().unwrap();
                worst = worst.max(wait.parse().unwrap());
            }
            None => errors += 1,
        }
    }
    let elapsed = started.elapsed();
    let kept = data::builder(base).open().unwrap().read(|tokens| tokens.access_tokens().count()).unwrap();
    Outcome { lost: count * 50 - kept, errors, worst, elapsed }
}

/// What a child does; it prints its figures.
fn child(task: &str, base: &Path) {
    let number = std::env::var("TOKENSEAL_BARS_NUMBER").expect("the parent sets it");
    if task == "open" {
        let before = peak();
        let cache = data::builder(base).open().unwrap();
        println!("{}", peak() - before);
        drop(cache);
        return;
    }
    let length = task.strip_prefix("tight ").map_or(2_000, |length| length.parse().unwrap());
    let cache = data::builder(base).open().unwrap();
    let (mut errors, mut worst) = (0, 0.0_f64);
    for round in 0..50 {
        let scope = format!("{number}-{round}");
        let started = Instant::now();
        errors += usize::from(cache.add(&response("user", &scope, length)).is_err());
        worst = worst.max(started.elapsed().as_secs_f64());
        if task == "mixed" {
            for read in 0..3_u64 {
                let wanted = AccessTokenQuery::for_account(
                    data::CLIENT,
                    &tokenseal::Account::new("user", "idp.example"),
                )
                .scopes([scope.as_str()]);
                errors += usize::from(!matches!(cache.find_access_token(&wanted), Ok(Some(_))));
                let nanoseconds = u64::from(Instant::now().duration_since(started).subsec_nanos());
                std::thread::sleep(Duration::from_millis((nanoseconds + read) % 11));
            }
        }
    }
    println!("{errors} {worst}");
}

/// The most memory this process has had, in bytes.
fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1024.0
}

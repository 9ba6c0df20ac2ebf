//! What is left in the memory of a process: the parent plants secrets and looks for them in a child.
//!
//! The parent makes the tokens and the sealed file; the child gets them by opening that file only.
//! The parent then reads all readable memory of the child at named moments. What it looks for never
//! counts twice, for the child has no copy but those that the crate makes.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use tokenseal::{Error, PersistedTokenCache, TokenResponse};

const SECRETS: usize = 100;

fn open(base: &Path) -> PersistedTokenCache {
    common::with_key_file(base).open().unwrap()
}

fn response(number: usize, access_token: &str) -> TokenResponse {
    let json = format!(r#"{{"access_token":"{access_token}","expires_in":3600}}"#);
    let response = TokenResponse::from_json(json).unwrap();
    response.client_id("app").environment("e").realm("r").home_account_id(format!("user-{number}"))
}

fn random_text(length: usize) -> String {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
        .iter()
        .map(|byte| {
            char::from(
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345-_"[usize::from(byte % 60)],
            )
        })
        .collect()
}

/// What to look for: each text in pieces of 16 bytes, and how often a whole text is found.
struct Planted {
    pieces: HashMap<[u8; 16], usize>,
    texts: Vec<Vec<u8>>,
}

impl Planted {
    fn new(texts: Vec<Vec<u8>>) -> Self {
        let pieces = texts.iter().enumerate().flat_map(|(number, text)| {
            text.chunks_exact(16).map(move |piece| (piece.try_into().unwrap(), number)).collect::<Vec<_>>()
        });
        Self { pieces: pieces.collect(), texts }
    }

    /// The numbers of the texts of which any piece is in the child's memory, and the number of
    /// places where a whole one is.
    fn find_in(&self, child: &Child) -> (HashSet<usize>, usize) {
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let mut memory = File::open(format!("/proc/{}/mem", child.id())).unwrap();
        let (mut exposed, mut whole) = (HashSet::new(), 0);
        for line in maps.lines().filter(|line| line.contains(" r") && !line.contains("[v")) {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let (start, end) =
                (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            let read = memory.seek(SeekFrom::Start(start)).and_then(|_| memory.read_exact(&mut bytes));
            if read.is_err() {
                continue; // Guard pages have no memory behind them.
            }
            for (at, window) in bytes.windows(16).enumerate() {
                let Some(&number) = self.pieces.get(<&[u8; 16]>::try_from(window).unwrap()) else { continue };
                exposed.insert(number);
                let text = &self.texts[number];
                whole += usize::from(window == &text[..16] && bytes[at..].starts_with(text));
            }
        }
        (exposed, whole)
    }
}

struct Observed {
    child: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Observed {
    fn start(base: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_a_child_process", "--nocapture"])
            .env("TOKENSEAL_CHILD_BASE", base)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, lines }
    }

    /// Waits until the child has come to this moment.
    fn wait_for(&mut self, moment: &str) {
        loop {
            let line = self.lines.next().expect("the child goes on").unwrap();
            if line == format!("moment: {moment}") {
                return;
            }
        }
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
        self.input.flush().unwrap();
    }
}

/// Tells the parent, and waits until it has looked.
fn moment(name: &str) {
    println!("\nmoment: {name}");
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Not a test by itself: what the observed child does.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = Path::new(&base);
    // Off the main thread, so that the ended thread's stack is looked at too.
    let off_the_main_thread = |work: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    };

    let cache = open(base);
    moment("idle");
    drop(cache);
    moment("dropped");

    off_the_main_thread(&|| {
        let cache = open(base);
        for number in 0..SECRETS {
            let account = tokenseal::Account::new(format!("user-{number}"), "e");
            let wanted = tokenseal::AccessTokenQuery::new("app").account(&account);
            assert!(cache.find_access_token(&wanted).unwrap().is_some());
        }
        cache.add(&response(1_000, "not planted")).unwrap();
    });
    moment("found and added");

    off_the_main_thread(&|| {
        let cache = open(base);
        let given_up = cache.update(|tokens| {
            tokens.add(&response(1_001, "not planted"))?;
            Err::<(), _>(Error::aborted("given up"))
        });
        assert!(given_up.is_err());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _never = cache.update(|tokens| -> Result<(), Error> {
                tokens.add(&response(1_002, "not planted"))?;
                panic!("in the middle of a save");
            });
        }));
        assert!(panicked.is_err());
    });
    moment("failed and panicked");

    off_the_main_thread(&|| {
        for round in 0..200 {
            open(base).add(&response(2_000, &format!("not planted {round}"))).unwrap();
        }
    });
    moment("200 cycles");

    let cache = open(base);
    for number in 0..SECRETS / 2 {
        cache.remove_account(&tokenseal::Account::new(format!("user-{number}"), "e")).unwrap();
    }
    moment("half signed out");
    drop(cache);

    let file = base.join("tokens/default.sealed");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    common::with_key_file(base).open().unwrap_err();
    moment("refused");
}

#[test]
fn no_secret_and_no_key_is_left_in_memory() {
    let base = tempfile::tempdir().unwrap();
    let secrets: Vec<String> = (0..SECRETS).map(|number| random_text(1_200 + number)).collect();
    {
        let cache = open(base.path());
        let added = cache.update(|tokens| {
            secrets
                .iter()
                .enumerate()
                .try_for_each(|(number, secret)| tokens.add(&response(number, secret)).map(drop))
        });
        added.unwrap();
    }
    let key_file = base.path().join("keys").join(&common::files(&base.path().join("keys"))[0]);
    let key_text = fs::read_to_string(key_file).unwrap();
    let key_text = key_text.split(':').nth(1).unwrap();
    let key = {
        use base64ct::Encoding as _;
        base64ct::Base64UrlUnpadded::decode_vec(key_text).unwrap()
    };
    let tokens = Planted::new(secrets.into_iter().map(String::into_bytes).collect());
    let keys = Planted::new(vec![key, key_text.as_bytes().to_vec()]);

    let mut observed = Observed::start(base.path());
    observed.wait_for("idle");
    let (exposed, whole) = tokens.find_in(&observed.child);
    // This is the positive control as well: the search finds what is there.
    assert_eq!((exposed.len(), whole), (SECRETS, SECRETS), "open: each secret once");
    let (_, whole_keys) = keys.find_in(&observed.child);
    assert_eq!(whole_keys, 1, "open: the key once");
    for name in ["dropped", "found and added", "failed and panicked", "200 cycles"] {
        observed.go_on();
        observed.wait_for(name);
        let (exposed, _) = tokens.find_in(&observed.child);
        assert!(exposed.is_empty(), "{name}: {} secrets are exposed", exposed.len());
        let (exposed, _) = keys.find_in(&observed.child);
        assert!(exposed.is_empty(), "{name}: the key is exposed: {exposed:?}");
    }
    observed.go_on();
    observed.wait_for("half signed out");
    let (exposed, whole) = tokens.find_in(&observed.child);
    assert_eq!(
        (exposed.len(), whole),
        (SECRETS / 2, SECRETS / 2),
        "signed out: wiped at once, the others once"
    );
    observed.go_on();
    observed.wait_for("refused");
    assert!(tokens.find_in(&observed.child).0.is_empty(), "refused");
    assert!(keys.find_in(&observed.child).0.is_empty(), "refused: the key");
    observed.go_on();
    observed.child.wait().unwrap();
}

//! Looks for secrets in the memory and the registers of another process.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use aes_gcm::aead::KeyInit as _;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::BlockCipherEncrypt as _;

/// What to look for: each text in pieces of 16 bytes, and how often a whole text is found.
pub(crate) struct Planted {
    pieces: HashMap<[u8; 16], usize>,
    /// Which beginnings of three bytes any piece has: most of memory has none of them.
    beginnings: Vec<bool>,
    texts: Vec<Vec<u8>>,
}

fn beginning(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}

impl Planted {
    pub(crate) fn new(texts: Vec<Vec<u8>>) -> Self {
        let pieces = texts.iter().enumerate().flat_map(|(number, text)| {
            text.chunks_exact(16).map(move |piece| (piece.try_into().unwrap(), number)).collect::<Vec<_>>()
        });
        let pieces: HashMap<[u8; 16], usize> = pieces.collect();
        let mut beginnings = vec![false; 1 << 24];
        for piece in pieces.keys() {
            beginnings[beginning(piece)] = true;
        }
        Self { pieces, beginnings, texts }
    }

    /// The numbers of the texts of which any piece is in the child's memory, and the number of
    /// places where a whole one is.
    pub(crate) fn find_in(&self, child: &Child) -> (HashSet<usize>, usize) {
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let mut memory = File::open(format!("/proc/{}/mem", child.id())).unwrap();
        let (mut exposed, mut whole) = (HashSet::new(), 0);
        for line in maps.lines().filter(|line| line.contains(" r") && !line.contains("[v")) {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let (start, end) =
                (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            let read = memory.seek(SeekFrom::Start(start)).and_then(|_| memory.read_exact(&mut bytes));
            if let Err(error) = read {
                // A thread that ended meanwhile gives its stack back.
                let now = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
                assert!(!now.contains(line), "what cannot be read may hold anything: {line}: {error}");
                continue;
            }
            for (at, window) in bytes.windows(16).enumerate() {
                if !self.beginnings[beginning(window)] {
                    continue;
                }
                let Some(&number) = self.pieces.get(<&[u8; 16]>::try_from(window).unwrap()) else { continue };
                exposed.insert(number);
                let text = &self.texts[number];
                whole += usize::from(window == &text[..16] && bytes[at..].starts_with(text));
            }
        }
        (exposed, whole)
    }
}

pub(crate) struct Observed {
    pub(crate) child: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    heap: Heap,
}

impl Observed {
    pub(crate) fn start(base: &Path, task: &str, heap: Heap) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if heap == Heap::Quarantine {
            command.env("LD_PRELOAD", quarantine());
        }
        let mut child = command
            .args(["--exact", task, "--nocapture"])
            .env("TOKENSEAL_CHILD_BASE", base)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, lines, heap }
    }

    /// Waits until the child has come to this moment.
    pub(crate) fn wait_for(&mut self, moment: &str) {
        loop {
            let line = self.lines.next().expect("the child goes on").unwrap();
            if line == format!("moment: {moment}") {
                break;
            }
        }
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        assert_eq!(maps.contains("quarantine.so"), self.heap == Heap::Quarantine, "the heap is another");
    }

    pub(crate) fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
        self.input.flush().unwrap();
    }

    /// How many of these keys' pieces of 8 bytes are in any register of any thread; `None` without gdb.
    pub(crate) fn in_registers(&self, keys: &Planted) -> Option<usize> {
        let output = Command::new("gdb")
            .args(["-p", &self.child.id().to_string(), "-batch", "-nx"])
            .args(["-ex", "set width 0", "-ex", "thread apply all info registers all"])
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("mm0 "), "gdb shows no vector registers, but {} bytes", said.len());
        let values: HashSet<u64> = said
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            .collect();
        let pieces = keys.texts.iter().flat_map(|text| text.chunks_exact(8));
        let pieces = pieces.map(|piece| u64::from_le_bytes(piece.try_into().unwrap()));
        Some(pieces.filter(|piece| values.contains(piece)).count())
    }
}

/// Which heap a child has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heap {
    /// The system's, in which freed memory may be overwritten by luck.
    System,
    /// One that never uses freed memory again, and moves what grows.
    Quarantine,
}

/// Builds the heap that never reuses memory, once for all tests.
fn quarantine() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/quarantine.c");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quarantine.so");
    let lock = File::create(library.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let built =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.unwrap().success(), "the linker that Rust needs compiles C as well");
    library
}

/// The round keys of AES-256 (FIPS 197 section 5.2): the key itself is the first two.
pub(crate) fn round_keys(key: &[u8; 32]) -> Vec<Vec<u8>> {
    let mut words: Vec<[u8; 4]> = key.chunks(4).map(|word| word.try_into().unwrap()).collect();
    let mut constant = 1;
    for number in 8..60 {
        let mut word = words[number - 1];
        if number % 8 == 0 {
            word.rotate_left(1);
        }
        if number % 4 == 0 {
            word = word.map(substituted);
        }
        if number % 8 == 0 {
            word[0] ^= constant;
            constant = doubled(constant);
        }
        let before = words[number - 8];
        words.push(std::array::from_fn(|at| before[at] ^ word[at]));
    }
    words.chunks(4).map(<[[u8; 4]]>::concat).collect()
}

fn doubled(byte: u8) -> u8 {
    (byte << 1) ^ (if byte & 0x80 == 0 { 0 } else { 0x1b })
}

/// The S-box: the inverse in the field, and an affine map.
fn substituted(byte: u8) -> u8 {
    let times = |mut a: u8, mut b: u8| {
        let mut product = 0;
        while b > 0 {
            product ^= if b & 1 == 1 { a } else { 0 };
            (a, b) = (doubled(a), b >> 1);
        }
        product
    };
    let inverse = (0..254).fold(1, |power, _| times(power, byte));
    (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

/// The key of one message (XAES-256-GCM), derived once more.
pub(crate) fn message_key(key: &[u8; 32], nonce: &[u8]) -> [u8; 32] {
    let aes = Aes256::new(key.into());
    let encrypted = |mut block: [u8; 16]| {
        aes.encrypt_block((&mut block).into());
        block
    };
    let zero = u128::from_be_bytes(encrypted([0; 16]));
    let subkey = (zero << 1) ^ ((zero >> 127) * 0x87);
    let half = |counter: u8| {
        let mut block = [0; 16];
        block[..4].copy_from_slice(&[0, counter, b'X', 0]);
        block[4..].copy_from_slice(&nonce[..12]);
        encrypted((u128::from_be_bytes(block) ^ subkey).to_be_bytes())
    };
    [half(1), half(2)].concat().try_into().unwrap()
}

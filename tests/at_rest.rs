//! No token is in the clear in any file of a full session, in any encoding that a person or a tool
//! would look for.
#![cfg(feature = "file")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64ct::{Base64Unpadded, Base64Url, Encoding as _};
use common::{CLIENT, ENVIRONMENT};
use tokenseal::{
    AccessTokenQuery, Account, PersistedTokenCache, TokenResponse,
    refresh::{AcquireRequest, RefreshFailure},
};

const USERS: usize = 34;

fn random_text() -> String {
    let mut bytes = [0; 48];
    getrandom::fill(&mut bytes).unwrap();
    Base64Url::encode_string(&bytes)
}

/// All ways in which a secret, or a long part of it, may be written.
fn encodings(secret: &str) -> Vec<Vec<u8>> {
    let part = &secret.as_bytes()[..48];
    let mut encodings = vec![part.to_vec()];
    let hex = part.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    encodings.push(hex.to_uppercase().into_bytes());
    encodings.push(hex.into_bytes());
    encodings.push(part.iter().flat_map(|&byte| [byte, 0]).collect()); // UTF-16, little end first
    encodings.push(part.iter().flat_map(|&byte| [0, byte]).collect());
    for offset in 0..3 {
        // Whatever stands before it, one of three.
        let part = &part[offset..offset + 45];
        encodings.push(Base64Unpadded::encode_string(part).into_bytes());
        encodings.push(Base64Url::encode_string(part).into_bytes());
    }
    encodings.push(secret.bytes().rev().collect());
    encodings
}

/// All files below a directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// How many of the secrets are in any of the files.
fn exposed(files: &[PathBuf], secrets: &[String]) -> usize {
    let contents: Vec<Vec<u8>> = files
        .iter()
        .map(|file| {
            let name = file.file_name().unwrap().to_string_lossy().into_owned().into_bytes();
            [name, std::fs::read(file).unwrap()].concat()
        })
        .collect();
    let is_exposed = |secret: &&String| {
        let encodings = encodings(secret);
        contents.iter().any(|content| {
            encodings.iter().any(|needle| content.windows(needle.len()).any(|window| window == needle))
        })
    };
    secrets.iter().filter(is_exposed).count()
}

fn response(user: usize, secrets: &[String]) -> TokenResponse {
    let json =
        format!(r#"{{"access_token":"{}","refresh_token":"{}","expires_in":3600}}"#, secrets[0], secrets[1]);
    TokenResponse::from_json(json)
        .unwrap()
        .client_id(CLIENT)
        .environment(ENVIRONMENT)
        .realm("tenant")
        .home_account_id(format!("user-{user}"))
        .requested_scopes(["read"])
        .username(&*secrets[2])
}

/// Not a test by itself: writes until it is killed.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE").map(PathBuf::from) else { return };
    let secrets: Vec<String> =
        std::fs::read_to_string(base.join("secrets")).unwrap().lines().map(str::to_owned).collect();
    let cache = common::with_key_file(&base).open().unwrap();
    println!("\nbegun");
    loop {
        for user in 0..USERS {
            cache.add(&response(user, &secrets[user * 3..])).unwrap();
        }
    }
}

fn acquire(cache: &PersistedTokenCache, user: usize, answer: Result<String, RefreshFailure>) {
    let account = Account::new(format!("user-{user}"), ENVIRONMENT);
    let wanted = AccessTokenQuery::for_account(CLIENT, &account).scopes(["read"]);
    let is_answered = answer.is_ok();
    let mut answer = Some(answer);
    let call = move |_| Ok(TokenResponse::from_json(answer.take().unwrap()?)?);
    let stale = cache.find_access_token(&wanted).unwrap();
    let request = AcquireRequest::new(&wanted);
    let request = stale.as_ref().map_or(request, |stale| request.replacing(stale));
    let came = cache.acquire(request, call);
    assert_eq!(came.is_ok(), is_answered, "{came:?}");
}

#[test]
fn none_of_100_secrets_is_in_any_file_of_a_full_session() {
    let base = tempfile::tempdir().unwrap();
    let secrets: Vec<String> = (0..USERS * 3 + 2).map(|_| random_text()).collect();
    assert!(secrets.len() >= 100);
    let list = base.path().join("secrets");
    std::fs::write(&list, secrets.join("\n")).unwrap();
    // Positive control: the list itself is full of them.
    assert_eq!(exposed(std::slice::from_ref(&list), &secrets), secrets.len());
    for (number, _) in encodings(&secrets[0]).iter().enumerate() {
        let encoded: Vec<Vec<u8>> =
            secrets.iter().map(|secret| encodings(secret).swap_remove(number)).collect();
        std::fs::write(&list, encoded.join(&b'\n')).unwrap();
        assert_eq!(exposed(std::slice::from_ref(&list), &secrets), secrets.len(), "encoding {number}");
    }
    std::fs::write(&list, secrets.join("\n")).unwrap();

    // Writers that are killed in the middle of a save, until one leaves its half behind.
    let tokens = base.path().join("tokens");
    let is_half = |path: &PathBuf| {
        let is_temporary = path.extension().is_some_and(|extension| extension == "tmp");
        is_temporary && path.metadata().is_ok_and(|metadata| metadata.len() > 0)
    };
    let started = Instant::now();
    while !tokens.exists() || !files_below(&tokens).iter().any(is_half) {
        assert!(started.elapsed() < Duration::from_secs(60), "no half-written file was ever left");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_a_child_process", "--nocapture"])
            .env("TOKENSEAL_CHILD_BASE", base.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        while said.next().unwrap().unwrap() != "begun" {}
        let mut random = [0];
        getrandom::fill(&mut random).unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(random[0] % 40)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    std::fs::remove_file(&list).unwrap();
    assert_eq!(exposed(&files_below(base.path()), &secrets), 0, "killed in the middle of a save");

    let cache = common::with_key_file(base.path()).open().unwrap();
    for user in 0..USERS {
        cache.add(&response(user, &secrets[user * 3..])).unwrap();
    }
    // A refresh, and one that fails, with its note; a sign-out; a file that is set aside.
    let renewed = &secrets[USERS * 3..];
    let answer =
        format!(r#"{{"access_token":"{}","refresh_token":"{}","expires_in":3600}}"#, renewed[0], renewed[1]);
    acquire(&cache, 1, Ok(answer));
    let cause = RefreshFailure::transient(renewed[0].clone());
    acquire(&cache, 2, Err(cause.retry_after(Duration::from_secs(60))));
    cache.remove_account(&Account::new("user-3", ENVIRONMENT)).unwrap();
    let (cache, aside) = common::with_key_file(base.path()).reset().unwrap();
    assert!(aside.is_some());
    for user in 0..3 {
        cache.add(&response(user, &secrets[user * 3..])).unwrap();
    }
    let files = files_below(base.path());
    for kind in ["default.sealed", ".lock", ".aside-", ".refresh.lock", ".refresh.note"] {
        let has = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().contains(kind);
        assert!(files.iter().any(has), "no {kind} among {files:?}");
    }
    assert_eq!(exposed(&files, &secrets), 0, "{files:?}");
}

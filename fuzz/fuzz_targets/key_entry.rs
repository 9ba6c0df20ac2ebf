//! No entry of a key store opens a cache but the one that was put there.
#![no_main]

use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use tokenseal::{PersistedTokenCache, Secret, key_store::{KeyName, KeyStore, KeyStoreError}};

/// Gives out whatever it was told to.
#[derive(Debug, Default)]
struct Entry(Mutex<String>);

impl KeyStore for Entry {
    fn description(&self) -> String {
        "the fuzzed store".into()
    }
    fn create(&self, _: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        *self.0.lock().unwrap() = text.expose().to_owned();
        Ok(())
    }
    fn read(&self, _: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        Ok(Some(Secret::from(&**self.0.lock().unwrap())))
    }
    fn delete(&self, _: &KeyName) -> Result<(), KeyStoreError> {
        Ok(())
    }
}

struct Bench {
    directory: tempfile::TempDir,
    genuine: String,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let entry = Arc::new(Entry::default());
    drop(builder(&directory, &entry).open().unwrap());
    let genuine = entry.0.lock().unwrap().clone();
    Bench { directory, genuine }
});

fn builder(directory: &tempfile::TempDir, entry: &Arc<Entry>) -> tokenseal::persisted::PersistedTokenCacheBuilder {
    let keys = Arc::clone(entry) as Arc<dyn KeyStore>;
    PersistedTokenCache::builder("contoso-cli").directory(directory.path().join("tokens")).key_store(keys)
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let bench = &*BENCH;
    let text = if how % 2 == 0 {
        String::from_utf8_lossy(rest).into_owned()
    } else {
        // The genuine one, altered here and there.
        let mut bytes = bench.genuine.clone().into_bytes();
        for change in rest.chunks_exact(2) {
            match change[1] {
                0 => bytes.truncate(usize::from(change[0])),
                1 => bytes.push(change[0]),
                mask => {
                    let length = bytes.len().max(1);
                    if let Some(byte) = bytes.get_mut(usize::from(change[0]) % length) {
                        *byte = (*byte ^ mask) & 0x7f;
                    }
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let opened = builder(&bench.directory, &Arc::new(Entry(Mutex::new(text.clone())))).open();
    assert_eq!(opened.is_ok(), text.trim_ascii_end() == bench.genuine, "{opened:?}");
});

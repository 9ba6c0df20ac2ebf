//! Sealing and opening, beside plain AES-256-GCM of the same bytes.
#![allow(missing_docs)] // Criterion's macros make public functions.

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tokenseal::seal::{self, Context, SealingKey};

fn sealing(criterion: &mut Criterion) {
    let key = SealingKey::generate().unwrap();
    let context = Context::file("tokenseal-bench", "default");
    let mut group = criterion.benchmark_group("sealing");
    for length in [1_500_usize, 15_000, 150_000] {
        let plaintext = vec![b'x'; length];
        let sealed = seal::seal(&key, &context, 1, &plaintext).unwrap();
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::new("seal", length), |b| {
            b.iter(|| seal::seal(&key, &context, 1, black_box(&plaintext)).unwrap());
        });
        group.bench_function(BenchmarkId::new("open", length), |b| {
            let opened = |record| seal::open(&key, &context, record).unwrap();
            b.iter_batched(|| sealed.clone(), opened, BatchSize::SmallInput);
        });
        group.bench_function(BenchmarkId::new("plain AES-256-GCM", length), |b| {
            b.iter(|| {
                let mut buffer = black_box(&plaintext).clone();
                let cipher = Aes256Gcm::new((&[1; 32]).into());
                let tag = cipher.encrypt_inout_detached(&Nonce::from([2; 12]), b"", (&mut buffer[..]).into());
                (buffer, tag.unwrap())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sealing);
criterion_main!(benches);

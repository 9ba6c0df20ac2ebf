//! Lookups in an open cache, by the number of accounts in it.
#![allow(missing_docs)] // Criterion's macros make public functions.

#[allow(dead_code)] // Each bench uses a part.
mod data;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tokenseal::{AccessTokenQuery, RefreshTokenQuery, cache::AccountQuery};

fn lookups(criterion: &mut Criterion) {
    for accounts in [1, 100, 1_000, 10_000] {
        let base = tempfile::tempdir().unwrap();
        let cache = data::sealed(base.path(), accounts);
        let number = accounts / 2;
        let mut group = criterion.benchmark_group("persisted");
        let path = cache.path().to_owned();
        group.bench_function(BenchmarkId::new("stat", accounts), |b| {
            b.iter(|| std::fs::symlink_metadata(black_box(&path)).unwrap());
        });
        let wanted = data::wanted(number);
        group.bench_function(BenchmarkId::new("find_access_token", accounts), |b| {
            b.iter(|| cache.find_access_token(black_box(&wanted)).unwrap().unwrap());
        });
        group.finish();

        let mut group = criterion.benchmark_group("in_memory");
        cache
            .read(|tokens| {
                group.bench_function(BenchmarkId::new("find_access_token", accounts), |b| {
                    b.iter(|| tokens.find_access_token(black_box(&wanted)).unwrap());
                });
                let missing = AccessTokenQuery::for_account(data::CLIENT, &data::account(accounts + 1));
                group.bench_function(BenchmarkId::new("miss", accounts), |b| {
                    b.iter(|| tokens.find_access_token(black_box(&missing)).is_none());
                });
                let refresh = RefreshTokenQuery::new(data::CLIENT, &data::account(number));
                group.bench_function(BenchmarkId::new("find_refresh_token", accounts), |b| {
                    b.iter(|| tokens.find_refresh_token(black_box(&refresh)).unwrap());
                });
                let named = AccountQuery::new().username(data::username(number));
                group.bench_function(BenchmarkId::new("find_accounts_by_username", accounts), |b| {
                    b.iter(|| tokens.find_accounts(black_box(&named)));
                });
            })
            .unwrap();
        group.finish();
    }
}

criterion_group!(benches, lookups);
criterion_main!(benches);

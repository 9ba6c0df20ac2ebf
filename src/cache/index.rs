//! From a hash to the rows that may carry it, in the order they were added.
//!
//! Maps a 64-bit hash to a chain of row numbers. Two keys may share a hash, so whoever looks a row up
//! compares its fields as well. Copying an index copies three flat tables.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};

const END: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u32,
    last: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    row: u32,
    next: u32,
}

/// The keys are hashes already.
#[derive(Debug, Clone, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    /// Seeded, so that nobody can choose rows that share a hash.
    seed: RandomState,
    chains: HashMap<u64, Chain, BuildHasherDefault<Identity>>,
    links: Vec<Link>,
}

impl Index {
    pub(crate) fn hash(&self, key: &impl Hash) -> u64 {
        self.seed.hash_one(key)
    }

    pub(crate) fn reserve(&mut self, keys: usize) {
        self.chains.reserve(keys);
        self.links.reserve(keys);
    }

    pub(crate) fn insert(&mut self, hash: u64, row: u32) {
        let link = u32::try_from(self.links.len()).expect("fewer links than bytes of text");
        self.links.push(Link { row, next: END });
        match self.chains.entry(hash) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Chain { first: link, last: link });
            }
            std::collections::hash_map::Entry::Occupied(mut chain) => {
                let last = std::mem::replace(&mut chain.get_mut().last, link);
                self.links[last as usize].next = link;
            }
        }
    }

    pub(crate) fn rows(&self, hash: u64) -> impl Iterator<Item = u32> {
        self.rows_from(self.start(hash))
    }

    /// Where the rows of a hash begin, for [`rows_from`](Self::rows_from).
    pub(crate) fn start(&self, hash: u64) -> u32 {
        self.chains.get(&hash).map_or(END, |chain| chain.first)
    }

    pub(crate) fn rows_from(&self, mut at: u32) -> impl Iterator<Item = u32> {
        std::iter::from_fn(move || {
            let link = self.links.get(at as usize)?;
            at = link.next;
            Some(link.row)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_the_order_added() {
        let mut index = Index::default();
        for row in 0..100 {
            index.insert(u64::from(row % 3), row);
        }
        for hash in 0..3 {
            let rows: Vec<u32> = index.rows(hash).collect();
            assert_eq!(rows, (0..100).filter(|row| u64::from(row % 3) == hash).collect::<Vec<_>>());
        }
        assert_eq!(index.rows(3).count(), 0);
    }

    #[test]
    fn equal_keys_hash_alike_and_the_seed_matters() {
        let index = Index::default();
        assert_eq!(index.hash(&("a", "b")), index.hash(&("a", "b")));
        assert_ne!(index.hash(&("a", "b")), index.hash(&("ab", "")));
        assert_ne!(index.hash(&"a"), Index::default().hash(&"a"));
        assert_eq!(index.clone().hash(&"a"), index.hash(&"a"));
    }
}

//! What a refresh brought and the disk did not take: it is kept in memory and saved later.

use std::sync::Arc;
use std::time::SystemTime;

use crate::cache::{CacheError, RefreshToken, TokenCache, TokenResponse};
use crate::persisted::Error;
use crate::secret::Secret;

/// Changes that are not saved yet, in the order in which they were made. A clone shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending {
    changes: Vec<Change>,
    /// Why the last save failed.
    failure: Option<Arc<Error>>,
}

#[derive(Debug, Clone)]
enum Change {
    /// The answer to a refresh. It names the token that was sent.
    Renew(Arc<TokenResponse>),
    /// An answer of which the refresh token alone had room in the cache.
    KeepInMemory(Arc<TokenResponse>),
    /// A token that was got without a refresh token, and whether the cache knew its account before.
    Mint(Arc<TokenResponse>, bool),
    /// The server does not take this token from its client any more.
    Retire(Arc<RefreshToken>),
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether anything would be lost if the process ended now.
    pub(crate) fn is_at_risk(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::Renew(_) | Change::Retire(_)))
    }

    /// Whether the refresh token in the cache has been used already.
    pub(crate) fn has_renewed_tokens(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::Renew(answer) if answer.rotates()))
    }

    /// Why nothing could be saved.
    pub(crate) fn failure(&self) -> Option<Arc<Error>> {
        self.failure.clone()
    }

    /// The refresh tokens that must not be sent any more, whatever the cache says.
    pub(crate) fn spent(&self) -> impl Iterator<Item = Secret> {
        self.changes.iter().filter_map(|change| match change {
            // Some servers never rotate: what was sent is what is to be sent again.
            Change::Renew(answer) | Change::KeepInMemory(answer) => {
                answer.sent_refresh_token.clone().filter(|_| answer.rotates())
            }
            Change::Retire(token) => Some(token.secret()),
            Change::Mint(..) => None,
        })
    }

    pub(crate) fn renew(&mut self, answer: Arc<TokenResponse>) {
        self.changes.push(Change::Renew(answer));
    }

    pub(crate) fn mint(&mut self, answer: Arc<TokenResponse>, knew_account: bool) {
        self.changes.push(Change::Mint(answer, knew_account));
    }

    pub(crate) fn retire(&mut self, token: RefreshToken) {
        self.changes.push(Change::Retire(Arc::new(token)));
    }

    /// The refresh tokens that came.
    #[cfg(test)]
    pub(crate) fn refresh_tokens(&self) -> impl Iterator<Item = Secret> {
        self.changes.iter().filter_map(|change| match change {
            Change::Renew(answer) | Change::KeepInMemory(answer) => {
                answer.body.secret_of("refresh_token").ok().flatten()
            }
            Change::Mint(..) | Change::Retire(_) => None,
        })
    }

    /// For a walk through all states: what tells this one from another.
    #[cfg(test)]
    pub(crate) fn fingerprint(&self, to: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        self.failure.is_some().hash(to);
        for change in &self.changes {
            std::mem::discriminant(change).hash(to);
            if let Change::Retire(token) = change {
                token.secret().expose().hash(to);
            }
        }
        self.refresh_tokens().for_each(|token| token.expose().hash(to));
    }

    /// Makes the changes in `cache`. One that the cache does not take is left out, and is the error.
    pub(crate) fn apply(&self, cache: &mut TokenCache) -> Result<(), CacheError> {
        let mut result = Ok(());
        for change in &self.changes {
            match change {
                // However late it comes, it brings back no session that was ended, beside whatever
                // other session there may be by now.
                Change::Renew(answer) | Change::KeepInMemory(answer) if !cache.awaits(answer) => {}
                Change::Renew(answer) | Change::KeepInMemory(answer) => {
                    result = result.and(cache.add(answer).map(drop));
                }
                Change::Mint(answer, true) if !knows_owner(cache, answer) => {}
                Change::Mint(answer, _) => result = result.and(cache.add(answer).map(drop)),
                Change::Retire(token) => cache.retire_refresh_token(token),
            }
        }
        result
    }

    /// Makes the changes in `cache`, of each answer only that of the refresh token.
    fn apply_refresh_tokens(&self, cache: &mut TokenCache) -> Result<(), CacheError> {
        let only = |answer: &Arc<TokenResponse>| answer.refresh_token_only().map(Arc::new);
        let changes = self.changes.iter().filter_map(|change| match change {
            Change::Renew(answer) => only(answer).map(Change::Renew),
            Change::KeepInMemory(_) | Change::Mint(..) => None,
            Change::Retire(token) => Some(Change::Retire(Arc::clone(token))),
        });
        Self { changes: changes.collect(), failure: None }.apply(cache)
    }

    /// Saves what there is to save, by `update`, which makes a change in the newest state of the cache and saves
    /// that. What cannot be saved stays.
    pub(crate) fn save(
        &mut self,
        mut update: impl FnMut(&mut dyn FnMut(&mut TokenCache) -> Result<(), CacheError>) -> Result<(), Error>,
    ) {
        if self.is_empty() {
            return;
        }
        let error = match update(&mut |cache| self.apply(cache)) {
            Ok(()) => return *self = Self::default(),
            Err(error) => error,
        };
        if !error.is_too_large() {
            self.failure = Some(Arc::new(error));
            return;
        }
        let without_expired = update(&mut |cache| {
            self.apply(cache)?;
            cache.purge_expired(SystemTime::now());
            Ok(())
        });
        if without_expired.is_ok() {
            return *self = Self::default();
        }
        // Access tokens can be had again; the refresh token cannot.
        if update(&mut |cache| self.apply_refresh_tokens(cache)).is_ok() {
            self.changes.retain(|change| !matches!(change, Change::Retire(_)));
            for change in &mut self.changes {
                if let Change::Renew(answer) = change {
                    *change = Change::KeepInMemory(Arc::clone(answer));
                }
            }
        }
        self.failure = Some(Arc::new(error));
    }
}

fn knows_owner(cache: &TokenCache, answer: &TokenResponse) -> bool {
    let (Some(owner), Some(environment)) = (&answer.home_account_id, &answer.environment) else {
        return false;
    };
    cache.knows_account(owner, environment)
}

/// Shows the cache as it would be if everything were saved.
pub(crate) fn overlaid<'a, T>(
    cache: &TokenCache,
    pending: impl IntoIterator<Item = &'a Pending>,
    look: impl FnOnce(&TokenCache) -> T,
) -> T {
    let mut pending = pending.into_iter().filter(|pending| !pending.is_empty()).peekable();
    if pending.peek().is_none() {
        return look(cache);
    }
    let mut with_unsaved = cache.fork();
    for pending in pending {
        // What the cache does not take is what keeps it from being saved.
        let _ = pending.apply(&mut with_unsaved);
    }
    look(&with_unsaved)
}

//! Changes that could not be saved: they are kept in memory and saved later.

use std::sync::Arc;
use std::time::SystemTime;

use crate::cache::{CacheError, RefreshToken, TokenCache, TokenResponse};
use crate::persisted::Error;
use crate::secret::Secret;

/// Unsaved changes, in order. A clone shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending {
    changes: Vec<Change>,
    /// Why the last save failed.
    failure: Option<Arc<Error>>,
}

#[derive(Debug, Clone)]
enum Change {
    /// The response to a refresh. It names the token that was sent.
    Renew(Arc<TokenResponse>),
    /// A response of which only the refresh token fitted into the cache.
    KeepInMemory(Arc<TokenResponse>),
    /// A response to a call without a refresh token, and whether the cache knew its account before.
    Mint(Arc<TokenResponse>, bool),
    /// The server no longer accepts this refresh token from its client.
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

    /// Whether the refresh token in the cache has already been replaced.
    pub(crate) fn has_renewed_tokens(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::Renew(answer) if answer.rotates()))
    }

    /// Why the last save failed.
    pub(crate) fn failure(&self) -> Option<Arc<Error>> {
        self.failure.clone()
    }

    /// The refresh tokens that must no longer be sent, whatever the cache has.
    pub(crate) fn spent(&self) -> impl Iterator<Item = Secret> {
        self.changes.iter().filter_map(|change| match change {
            // Without rotation, the token that was sent remains valid.
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

    /// The new refresh tokens.
    #[cfg(test)]
    pub(crate) fn refresh_tokens(&self) -> impl Iterator<Item = Secret> {
        self.changes.iter().filter_map(|change| match change {
            Change::Renew(answer) | Change::KeepInMemory(answer) => {
                answer.body.secret_of("refresh_token").ok().flatten()
            }
            Change::Mint(..) | Change::Retire(_) => None,
        })
    }

    /// Hashes the state, for the walk.
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

    /// Applies the changes to `cache`. A change that the cache rejects is skipped, and its error returned.
    pub(crate) fn apply(&self, cache: &mut TokenCache) -> Result<(), CacheError> {
        let mut result = Ok(());
        for change in &self.changes {
            match change {
                // A late response must not restore a session that has ended.
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

    /// Applies the changes to `cache`, with only the refresh token of each response.
    fn apply_refresh_tokens(&self, cache: &mut TokenCache) -> Result<(), CacheError> {
        let only = |answer: &Arc<TokenResponse>| answer.refresh_token_only().map(Arc::new);
        let changes = self.changes.iter().filter_map(|change| match change {
            Change::Renew(answer) => only(answer).map(Change::Renew),
            Change::KeepInMemory(_) | Change::Mint(..) => None,
            Change::Retire(token) => Some(Change::Retire(Arc::clone(token))),
        });
        Self { changes: changes.collect(), failure: None }.apply(cache)
    }

    /// Saves the changes by `update`, which applies a change to the newest state of the cache and saves that.
    /// Changes that cannot be saved are kept.
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
        // Access tokens can be requested again; the refresh token cannot.
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

/// Calls `look` with the cache as it would be if everything were saved.
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
        // A change that the cache rejects is the reason why it is unsaved.
        let _ = pending.apply(&mut with_unsaved);
    }
    look(&with_unsaved)
}

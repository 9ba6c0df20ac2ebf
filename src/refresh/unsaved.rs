//! What a refresh brought and the disk did not take: it is kept in memory and saved later.

use std::sync::Arc;

use super::tokens::Tokens;
use crate::cache::{CacheError, RefreshToken, TokenCache, TokenResponse};
use crate::persisted::Error;
use crate::secret::Secret;

/// Changes that are not saved yet, in the order in which they were made. A clone shares them.
#[derive(Debug, Clone, Default)]
pub(super) struct Unsaved {
    changes: Vec<Arc<Change>>,
    /// Why the last save failed.
    failure: Option<Arc<Error>>,
}

#[derive(Debug)]
enum Change {
    /// The answer to a refresh. It names the token that was sent.
    Renew(Arc<TokenResponse>),
    /// The server does not take this token any more.
    Retire(RefreshToken),
}

impl Unsaved {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether the refresh token in the cache has been used already.
    pub(super) fn has_renewed_tokens(&self) -> bool {
        self.changes.iter().any(|change| matches!(&**change, Change::Renew(answer) if answer.rotates()))
    }

    /// Why nothing could be saved.
    pub(super) fn failure(&self) -> Option<Arc<Error>> {
        self.failure.clone()
    }

    /// The refresh tokens that must not be sent any more, whatever the cache says.
    pub(super) fn spent(&self) -> impl Iterator<Item = Secret> {
        self.changes.iter().filter_map(|change| match &**change {
            // Some servers never rotate: what was sent is what is to be sent again.
            Change::Renew(answer) => answer.sent_refresh_token.clone().filter(|_| answer.rotates()),
            Change::Retire(token) => Some(token.secret()),
        })
    }

    pub(super) fn renew(&mut self, answer: Arc<TokenResponse>) {
        self.changes.push(Arc::new(Change::Renew(answer)));
    }

    pub(super) fn retire(&mut self, token: RefreshToken) {
        self.changes.push(Arc::new(Change::Retire(token)));
    }

    /// Makes the changes in `cache`. One that the cache does not take is left out, and is the error.
    pub(super) fn apply(&self, cache: &mut TokenCache) -> Result<(), CacheError> {
        let mut result = Ok(());
        for change in &self.changes {
            match &**change {
                // However late it comes, it brings back no session that was ended, beside whatever
                // other session there may be by now.
                Change::Renew(answer) if !cache.awaits(answer) => {}
                Change::Renew(answer) => result = result.and(cache.add(answer).map(drop)),
                Change::Retire(token) => drop(cache.remove_refresh_token(token)),
            }
        }
        result
    }

    /// Saves what there is to save. What cannot be saved stays.
    pub(super) fn save(&mut self, tokens: &Tokens) {
        if self.is_empty() {
            return;
        }
        match tokens.update(|cache| self.apply(cache)) {
            Ok(()) => *self = Self::default(),
            Err(error) => self.failure = Some(Arc::new(error)),
        }
    }
}

/// Shows the cache as it would be if everything were saved.
pub(super) fn overlaid<'a, T>(
    cache: &TokenCache,
    unsaved: impl IntoIterator<Item = &'a Unsaved>,
    look: impl FnOnce(&TokenCache) -> T,
) -> T {
    let mut unsaved = unsaved.into_iter().filter(|unsaved| !unsaved.is_empty()).peekable();
    if unsaved.peek().is_none() {
        return look(cache);
    }
    let mut with_unsaved = cache.fork();
    for unsaved in unsaved {
        // What the cache does not take is what keeps it from being saved.
        let _ = unsaved.apply(&mut with_unsaved);
    }
    look(&with_unsaved)
}

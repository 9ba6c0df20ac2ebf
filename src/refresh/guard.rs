//! The right to use a refresh token, for those who load, call and save by themselves.

use std::sync::Arc;
use std::time::Duration;

use super::desk::Desk;
use super::error::AcquireError;
use super::identity::credential_name;
use super::tokens::Tokens;
use super::turn::Turn;
use crate::cache::RefreshTokenQuery;
use crate::deadline;

/// The right to use one refresh token, the first that its query finds, until it is dropped. Meanwhile
/// nobody else uses it: no other guard and no [`acquire`](crate::PersistedTokenCache::acquire), in any
/// process that shares the cache.
///
/// It belongs to nobody in particular: it can be kept in a struct, sent to another thread and dropped
/// there. A killed process lets go of it.
///
/// ```
/// # use std::sync::Arc;
/// # use tokenseal::{Account, MemoryKeyStore, PersistedTokenCache};
/// # let directory = tempfile::tempdir()?;
/// # let cache = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(MemoryKeyStore::new()))
/// #     .open()?;
/// use std::time::Duration;
/// use tokenseal::RefreshTokenQuery;
///
/// let account = Account::new("alice", "idp.example.com");
/// let wanted = RefreshTokenQuery::new("my-client", &account);
/// let guard = cache.refresh_guard(&wanted, Duration::from_secs(60))?;
/// // Load only now: somebody else may have refreshed it while this waited. The first token is the one
/// // that the guard is for.
/// if let Some(refresh_token) = cache.find_refresh_tokens(&wanted)?.into_iter().next() {
///     // Send it; then save what came back, naming the token that was sent:
///     // cache.add(&response.sent_refresh_token(refresh_token.secret()))?;
/// }
/// drop(guard);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping the guard lets others use the refresh token"]
pub struct RefreshGuard {
    turn: Turn,
}

/// How often somebody who waits looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(250);

impl RefreshGuard {
    /// Waits for the guard for as long as it `is_wanted`.
    pub(super) fn wait(
        tokens: &Tokens,
        desk: &Arc<Desk>,
        query: &RefreshTokenQuery,
        within: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Self, AcquireError> {
        tokens.check_not_in_hand()?;
        let deadline = deadline::after(within);
        let name = || tokens.read(|cache| credential_name(cache, query));
        let mut expected = name()?;
        loop {
            let slice = deadline.min(deadline::after(SLICE));
            let mut turn = match desk.turn(tokens, &expected, within, slice) {
                Err(AcquireError::WaitTimedOut { .. })
                    if !deadline::left(deadline).is_zero() && is_wanted() =>
                {
                    continue;
                }
                turn => turn?,
            };
            turn.save(tokens);
            if turn.unsaved().has_renewed_tokens()
                && let Some(source) = turn.unsaved().failure()
            {
                return Err(AcquireError::NotSaved { source });
            }
            let found = name()?;
            if found == expected {
                turn.begin_use();
                return Ok(Self { turn });
            }
            // Somebody else's sign-in or refresh brought another token while this waited.
            expected = found;
        }
    }

    /// Whether other processes are kept out. They are not where the cache is in memory only, or in a
    /// directory that cannot be written to.
    pub fn covers_other_processes(&self) -> bool {
        self.turn.covers_other_processes()
    }
}

//! What holds in every state of the walk.

use super::super::{Outcome, State};
use super::world::{Caller, Todo, Token, World, number, number_of_row, text};
use crate::refresh::error::{AcquireError, SignInReason};
use crate::refresh::plan::pending::Pending;
use crate::refresh::request::TokenSource;

impl World {
    /// No refresh token is sent twice, and no request is made again that failed a moment ago.
    pub(super) fn may_be_sent(&self, number: usize, token: Token) -> Result<(), String> {
        let session = self.provider.sessions[token];
        let is_spent = self.provider.valid[session].is_some_and(|valid| valid != token);
        if is_spent && !self.excused.contains(&session) {
            return Err(format!("{} is sent a second time", text(token)));
        }
        if self.down.contains(&token) || self.refused.contains(&(self.flights[number].request, token)) {
            return Err(format!("{} is sent again although that failed a moment ago", text(token)));
        }
        Ok(())
    }

    /// What a caller is told is true.
    pub(super) fn check_outcome(&self, number: usize, outcome: &Outcome) -> Result<(), String> {
        if let Outcome::Acquired(acquired) = outcome
            && acquired.origin() == TokenSource::Refreshed
            && acquired.is_persisted()
            && let Some(Some(valid)) = self.provider.valid.last()
            && self.is_signed_in
            && self.provider.valid.len() == 1
            && !self.excused.contains(&0)
            && self.flights[number].custody.is_some()
            && !self.disk.refresh_tokens().any(|row| number_of_row(&row) == *valid)
        {
            return Err("a caller is told that a token is saved, and it is not".into());
        }
        let is_untouched = self.provider.valid.len() == 1
            && self.provider.valid[0].is_some()
            && self.is_signed_in
            && self.excused.is_empty();
        if let Outcome::Failed { error: AcquireError::SignInRequired { reason, .. }, .. } = outcome
            && matches!(reason, SignInReason::NoRefreshToken | SignInReason::SignedOut)
            && is_untouched
        {
            return Err("a user is asked to sign in who is signed in".into());
        }
        Ok(())
    }

    /// What holds in every state.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.is_signed_in && self.disk.knows_account("alice", "idp.example") {
            return Err("an account that was signed out has come back".into());
        }
        let session = self.provider.valid.len() - 1;
        let Some(valid) = self.provider.valid[session] else { return Ok(()) };
        if !self.is_signed_in || self.excused.contains(&session) {
            return Ok(());
        }
        let on_disk = self.disk.refresh_tokens().any(|row| number_of_row(&row) == valid);
        let pending = |pending: &Pending| pending.refresh_tokens().any(|token| number(&token) == valid);
        let in_memory = self.processes.iter().any(|process| process.is_alive && pending(&process.pending))
            || self.flights.iter().any(|flight| {
                let in_hand = flight.custody == Some(valid) && !matches!(flight.todo, Todo::Finished);
                in_hand && !matches!(flight.plan.state, State::FallingBack(_))
                    || flight.held.as_ref().is_some_and(|held| pending(&held.pending))
            });
        if on_disk || in_memory {
            return Ok(());
        }
        Err(format!("{} is lost, and its session with it", text(valid)))
    }

    /// Nobody waits for ever.
    pub(super) fn check_end(&self) -> Result<(), String> {
        if self.callers.iter().any(|caller| *caller != Caller::Done) {
            return Err(format!("a caller waits for ever, after {:?}", self.trail));
        }
        Ok(())
    }
}

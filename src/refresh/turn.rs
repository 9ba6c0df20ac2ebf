//! Whose turn it is to use a refresh token: one thread of one process, by a lock within the process and
//! a lock file among all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::back_off::{self, BackOff};
use super::desk::{Credential, Desk};
use super::error::AcquireError;
use super::identity::{CredentialName, RequestId, TokenMark};
use super::note::{self, Note};
use super::refusal::{Refusal, Verdict};
use super::tokens::Tokens;
use super::unsaved::Unsaved;
use crate::cache::{RefreshToken, TokenResponse};
use crate::deadline::{self, InLane};
use crate::persisted::Error;
use crate::private_file::FileError;
use crate::process::Process;
use crate::store::{FileLock, LockFile, StoreError};

/// How long to wait before a failed save is tried again, at first and at the most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Desk {
    /// Waits for the turn to use a refresh token, in this process and among all.
    pub(super) fn turn(
        &self,
        tokens: &Tokens,
        name: &CredentialName,
        within: Duration,
        deadline: Instant,
    ) -> Result<Turn, AcquireError> {
        let place = Place::of(tokens, name);
        let timed_out = || place.timed_out(within);
        let credential = self.credential(name);
        let in_lane = credential.lane.enter(deadline).ok_or_else(timed_out)?;
        let lock = |file: &LockFile| match file.acquire(deadline::left(deadline)) {
            Err(StoreError::LockTimedOut { .. }) => Err(timed_out()),
            other => Ok(other.map(Some)),
        };
        Ok(Turn::take(credential, place.clone(), in_lane, lock)?.expect("waited for, or an error"))
    }

    /// Takes the turn if it is free; `None` if somebody else has it.
    pub(super) fn turn_if_free(
        &self,
        tokens: &Tokens,
        name: &CredentialName,
    ) -> Result<Option<Turn>, AcquireError> {
        let credential = self.credential(name);
        let Some(in_lane) = credential.lane.enter(deadline::after(Duration::ZERO)) else { return Ok(None) };
        Turn::take(credential, Place::of(tokens, name), in_lane, |file| Ok(file.try_acquire()))
    }
}

/// Where the lock of a refresh token is, and the note beside it.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Files { lock: PathBuf, note: PathBuf },
    Memory,
}

impl Place {
    pub(super) fn of(tokens: &Tokens, name: &CredentialName) -> Self {
        match tokens {
            Tokens::File(cache) => {
                let beside = |ending| cache.store().beside(&format!("{}.refresh.{ending}", name.as_str()));
                Self::Files { lock: beside("lock"), note: beside("note") }
            }
            Tokens::Memory(_) => Self::Memory,
        }
    }

    fn note_path(&self) -> Option<&Path> {
        match self {
            Self::Files { note, .. } => Some(note),
            Self::Memory => None,
        }
    }

    /// Says who is to blame, as far as that was noted.
    pub(super) fn timed_out(&self, waited: Duration) -> AcquireError {
        match self {
            Self::Files { lock, note } => AcquireError::WaitTimedOut {
                waited,
                holder: Note::read(note).holder,
                lock: lock.display().to_string(),
            },
            Self::Memory => AcquireError::WaitTimedOut {
                waited,
                holder: Some(std::process::id()),
                lock: "a lock in memory".to_owned(),
            },
        }
    }
}

/// The turn to use a refresh token, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    credential: Arc<Credential>,
    place: Place,
    process: Process,
    unsaved: Unsaved,
    /// Whether what is unsaved was tried to be saved in this turn.
    has_tried: bool,
    note: Note,
    /// Whether a holder is noted beside the lock: this process, or one that was killed.
    is_noted: bool,
    // Dropped in this order: the lock among processes, then the one within.
    lock: Option<FileLock>,
    _in_lane: InLane,
}

impl Turn {
    /// `lock` locks a file: `Ok(Ok(None))` means that it is not to be had, and no turn is taken.
    fn take(
        credential: Arc<Credential>,
        place: Place,
        in_lane: InLane,
        lock: impl FnOnce(&LockFile) -> Result<Result<Option<FileLock>, StoreError>, AcquireError>,
    ) -> Result<Option<Self>, AcquireError> {
        let kept = credential.remembered().lock.take();
        let lock = match (&place, kept) {
            (Place::Memory, _) => None,
            (Place::Files { .. }, Some(kept)) => Some(kept),
            (Place::Files { lock: path, .. }, None) => match lock(&LockFile::new(path.clone()))? {
                Ok(Some(lock)) => Some(lock),
                Ok(None) => return Ok(None),
                // One flight at a time in this process is all that can be had.
                Err(error) if is_read_only(&error, path) => None,
                Err(error) => return Err(Error::from(error).into()),
            },
        };
        let remembered = credential.remembered();
        // Those who cannot wait for this turn look at what is remembered.
        let unsaved = remembered.unsaved.clone();
        let unwritten = remembered.note.clone();
        drop(remembered);
        let written = place.note_path().map(Note::read).unwrap_or_default();
        // What could not be written is newer, unless somebody else has failed since.
        let newest = |note: &Note| {
            let refused_at = note.refusals.iter().map(|refusal| refusal.at).max();
            note.back_off.as_ref().map(|back_off| back_off.failed_at).max(refused_at)
        };
        let is_noted = written.holder.is_some();
        let mut note = unwritten.filter(|note| newest(note) >= newest(&written)).unwrap_or(written);
        note.holder = None;
        note.forget_what_is_over(back_off::now());
        Ok(Some(Self {
            credential,
            place,
            process: Process::current(),
            unsaved,
            has_tried: false,
            note,
            is_noted,
            lock,
            _in_lane: in_lane,
        }))
    }

    /// Whether other processes are kept out as well.
    pub(super) fn covers_other_processes(&self) -> bool {
        self.lock.is_some() && self.process.is_current()
    }

    /// Fails in a child that was forked meanwhile: the turn is its parent's.
    pub(super) fn check_process(&self) -> Result<(), AcquireError> {
        if self.process.is_current() {
            return Ok(());
        }
        let path = match &self.place {
            Place::Files { lock, .. } => lock.clone(),
            Place::Memory => PathBuf::from("(in memory)"),
        };
        Err(Error::from(StoreError::Forked { path }).into())
    }

    /// What could not be saved yet.
    pub(super) fn unsaved(&self) -> &Unsaved {
        &self.unsaved
    }

    /// Saves the answer to a refresh, with what else is unsaved.
    pub(super) fn renew(&mut self, answer: Arc<TokenResponse>, tokens: &Tokens) {
        self.unsaved.renew(answer);
        self.save(tokens);
    }

    /// Removes a refresh token that the server does not take from its client any more.
    pub(super) fn retire(&mut self, token: RefreshToken, tokens: &Tokens) {
        self.unsaved.retire(token);
        self.save(tokens);
    }

    /// Saves what is unsaved. What cannot be saved stays, for all to see.
    pub(super) fn save(&mut self, tokens: &Tokens) {
        if !self.process.is_current() {
            return;
        }
        self.has_tried = true;
        self.unsaved.save(tokens);
        self.credential.remembered().unsaved = self.unsaved.clone();
    }

    /// Saves what an earlier turn could not save.
    pub(super) fn save_leftover(&mut self, tokens: &Tokens) {
        if !self.has_tried {
            self.save(tokens);
        }
    }

    /// Sees to it that what is unsaved is saved as soon as it can be, whether or not anybody calls.
    pub(super) fn save_later(&self, tokens: &Tokens, desk: &Arc<Desk>, name: &CredentialName) {
        let mut remembered = self.credential.remembered();
        if self.unsaved.is_empty() || remembered.has_saver {
            return;
        }
        let (tokens, desk, name) = (tokens.clone(), Arc::clone(desk), name.clone());
        let saver = thread::Builder::new().name("tokenseal-save".into());
        remembered.has_saver = saver.spawn(move || save_when_possible(&tokens, &desk, &name)).is_ok();
    }

    /// How long nobody may call, on account of a call that failed.
    pub(super) fn back_off(&self, mark: &TokenMark) -> Option<Duration> {
        self.note.back_off.as_ref()?.remaining(back_off::now(), mark)
    }

    /// What the server said to the same request and token lately, and how long that counts.
    pub(super) fn refusal(&self, request: &RequestId, mark: &TokenMark) -> Option<(Duration, &Verdict)> {
        let now = back_off::now();
        let known = |refusal: &Refusal| refusal.remaining(request, mark, now);
        self.note.refusals.iter().find_map(|refusal| Some((known(refusal)?, &refusal.verdict)))
    }

    /// Notes who uses the refresh token, for those who wait in vain.
    pub(super) fn begin_use(&mut self) {
        self.note.holder = Some(std::process::id());
        self.is_noted = true;
        self.write_note();
    }

    /// Notes that a call failed, and gives how long nobody may call again.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, mark: &TokenMark) -> Duration {
        let now = back_off::now();
        let back_off = BackOff::after_failure(self.note.back_off.as_ref(), retry_after, mark, now);
        let wait = Duration::from_millis(back_off.until - now);
        self.note.back_off = Some(back_off);
        wait
    }

    /// Notes that a call was answered, if not with what was asked for.
    pub(super) fn answered(&mut self) {
        self.note.back_off = None;
    }

    /// Notes that a request got what it asked for.
    pub(super) fn granted(&mut self, request: &RequestId) {
        self.answered();
        self.note.forget(request.as_str());
    }

    /// Notes an answer that need not be asked for again at once, and gives how long that counts.
    pub(super) fn refused(
        &mut self,
        request: &RequestId,
        mark: &TokenMark,
        verdict: Verdict,
        retry_after: Option<Duration>,
    ) -> Duration {
        let now = back_off::now();
        let refusal = Refusal::after(&self.note.refusals, request, mark, verdict, retry_after, now);
        let wait = Duration::from_millis(refusal.until - now);
        self.note.refuse(refusal);
        wait
    }

    /// What is known of a refresh token goes over to the one that it was rotated to.
    pub(super) fn rotated(&mut self, from: &TokenMark, to: &TokenMark) {
        self.note.carry(from, to);
    }

    /// Ends the use: what others should know stays in the note.
    pub(super) fn end_use(&mut self) {
        if !std::mem::take(&mut self.is_noted) {
            return;
        }
        self.note.holder = None;
        if self.note.is_empty() {
            if let Some(path) = self.place.note_path() {
                note::remove(path);
            }
            self.credential.remembered().note = None;
        } else {
            self.write_note();
        }
    }

    fn write_note(&self) {
        let is_written =
            self.place.note_path().is_some_and(|path| self.lock.is_some() && self.note.write(path).is_ok());
        // What cannot be told to others is at least remembered here.
        self.credential.remembered().note = (!is_written && !self.note.is_empty()).then(|| self.note.clone());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.process.is_current() {
            return;
        }
        let keeps_lock = self.unsaved.has_renewed_tokens();
        if keeps_lock {
            // Whoever waits for the lock in vain should know where it is, and what came of the call.
            self.begin_use();
        } else {
            self.end_use();
        }
        self.credential.remembered().lock = if keeps_lock { self.lock.take() } else { None };
    }
}

fn save_when_possible(tokens: &Tokens, desk: &Desk, name: &CredentialName) {
    let mut pause = FIRST_PAUSE;
    loop {
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
        let Ok(mut turn) = desk.turn(tokens, name, LONGEST_PAUSE, deadline::after(LONGEST_PAUSE)) else {
            continue;
        };
        turn.save(tokens);
        if turn.unsaved.is_empty() {
            turn.credential.remembered().has_saver = false;
            return;
        }
    }
}

/// Whether a lock file cannot be made because nothing can be written there at all. One that is there and
/// cannot be opened may be held by somebody.
fn is_read_only(error: &StoreError, path: &Path) -> bool {
    use std::io::ErrorKind;
    let StoreError::File(FileError::Io { source, .. }) = error else { return false };
    let is_missing = std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    match source.kind() {
        ErrorKind::ReadOnlyFilesystem => true,
        ErrorKind::PermissionDenied => is_missing,
        _ => false,
    }
}

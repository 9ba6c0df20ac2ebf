//! What kinds of failures there are, wherever they come from.

/// The kind of an [`Error`](crate::Error) or a [`KeyStoreError`](crate::key_store::KeyStoreError).
///
/// ```
/// use tokenseal::ErrorKind;
/// use tokenseal::key_store::KeyStoreError;
///
/// let error = KeyStoreError::locked("the vault", "it is sealed");
/// assert_eq!(error.kind(), ErrorKind::KeyStoreLocked);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name of an application or a cache cannot be part of a file name everywhere.
    InvalidName,
    /// There is no home directory to keep the cache in.
    NoHomeDirectory,
    /// The program runs with the rights of another user than the one who started it (setuid, setgid), whose
    /// home directory is not to be trusted.
    ForeignRights,
    /// No key store was named, and the crate was built without the platform keyring.
    NoKeyStore,
    /// The cache did not accept what it was given: a [`CacheError`](crate::CacheError).
    NotAccepted,
    /// The function that was to change the cache failed. Nothing was written.
    Aborted,
    /// A change was begun inside another change of the same cache.
    NestedChange,

    /// The key store cannot be reached, or does not answer properly.
    KeyStoreUnavailable,
    /// The key store is locked, or the prompt to unlock it was dismissed.
    KeyStoreLocked,
    /// The key store did not answer in time.
    KeyStoreTimedOut,
    /// The key store does not have the key that the sealed file names.
    KeyMissing,
    /// The entry of the key is damaged, or was replaced.
    KeyDamaged,
    /// The key store has several entries under one name.
    KeyAmbiguous,
    /// The key store has an entry under the name of a new one.
    KeyExists,
    /// The key store accepted a key and returned something else.
    KeyNotKept,

    /// The operating system refused to read or write.
    Io,
    /// Something else stands where a file or directory should be: a symbolic link, a junction, a pipe.
    WrongFileType,
    /// A file or directory belongs to another user.
    ForeignOwner,
    /// A directory would have to be made inside one that belongs to another user.
    ForeignParent,
    /// Other users may read a file or write to a directory.
    LoosePermissions,
    /// A path has a part that Windows reserves.
    ReservedPath,

    /// Another process or thread held the lock for too long.
    LockTimedOut,
    /// The lock file was removed while it was held. Nothing was written.
    LockRemoved,
    /// The file system cannot lock.
    CannotLock,
    /// The lock was taken by the process that this one was forked from.
    Forked,
    /// The file was replaced each time before it could be read.
    Contended,
    /// The file is, or would become, larger than the limit.
    TooLarge,

    /// The file is not a sealed cache.
    NotSealed,
    /// The file was made by a later version.
    UnsupportedVersion,
    /// The file ends too early.
    Truncated,
    /// The file was altered, or belongs to another application or cache.
    Tampered,
    /// The key is not the one that sealed the file.
    WrongKey,
    /// An older copy of the file was put back while this process ran.
    RolledBack,
    /// The file was opened, and what it holds is not a cache.
    NotACache,

    /// The operating system supplied no random bytes.
    NoRandomness,
    /// The operating system supplied no thread.
    NoThread,
}

//! Says whether the platform keyring works here, and what to do if it does not.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::keyring::{explain, native};
use super::{BoundedKeyStore, KeyName, KeyStore, KeyStoreError, KeyringStore};
use crate::error_kind::ErrorKind;
use crate::secret::Secret;

/// How long [`probe`] waits for the keyring.
const DEADLINE: Duration = Duration::from_secs(3);

/// What [`probe`] found.
///
/// ```no_run
/// let probe = tokenseal::key_store::probe();
/// println!("{}: {}", probe.store(), if probe.is_usable() { "usable".into() } else { probe.advice() });
/// ```
#[derive(Debug)]
#[must_use = "see `is_usable` and `advice`"]
pub struct Probe {
    store: String,
    result: Result<(), KeyStoreError>,
    host_environment: HostEnvironment,
}

impl Probe {
    /// Whether the keyring can be used now, without a prompt.
    pub fn is_usable(&self) -> bool {
        self.result.is_ok()
    }

    /// The keyring that was asked.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// What is wrong, if anything is.
    pub fn error(&self) -> Option<&KeyStoreError> {
        self.result.as_ref().err()
    }

    /// Where the program runs, as far as it matters for a keyring.
    pub fn host_environment(&self) -> HostEnvironment {
        self.host_environment
    }

    /// What to do, for the user or the program's author; empty if the keyring is usable.
    pub fn advice(&self) -> String {
        match self.result.as_ref().map_err(KeyStoreError::kind) {
            Ok(()) => String::new(),
            Err(ErrorKind::KeyStoreLocked) if self.host_environment == HostEnvironment::Desktop => {
                "unlock the keyring, by logging in or with its own tool".into()
            }
            Err(ErrorKind::KeyStoreLocked) => {
                format!("unlock the keyring with its own tool; {}", self.host_environment.advice())
            }
            Err(ErrorKind::KeyStoreTimedOut) => {
                "answer the prompt that the keyring shows, or restart its service".into()
            }
            Err(_) => self.host_environment.advice(),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(()) => write!(f, "{} works", self.store),
            Err(error) => {
                write!(f, "{error}")?;
                if let Some(source) = std::error::Error::source(error) {
                    write!(f, " (it said: {source})")?;
                }
                write!(f, ". {}: {}", self.host_environment, self.advice())
            }
        }
    }
}

/// Where a program runs, as far as it matters for a keyring.
///
/// ```
/// println!("running {}", tokenseal::key_store::HostEnvironment::detect());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostEnvironment {
    /// A desktop session, or nothing that says otherwise.
    Desktop,
    /// A remote shell.
    Ssh,
    /// The Windows Subsystem for Linux.
    Wsl,
    /// A container.
    Container,
    /// A machine that builds and tests.
    ContinuousIntegration,
}

impl HostEnvironment {
    /// Looks at the environment of this process.
    pub fn detect() -> Self {
        Self::from(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()), Path::exists)
    }

    fn from(is_set: impl Fn(&str) -> bool, exists: impl Fn(&Path) -> bool) -> Self {
        if is_set("CI") {
            Self::ContinuousIntegration
        } else if is_set("WSL_DISTRO_NAME") || is_set("WSL_INTEROP") {
            Self::Wsl
        } else if exists(Path::new("/.dockerenv"))
            || exists(Path::new("/run/.containerenv"))
            || is_set("container")
        {
            Self::Container
        } else if is_set("SSH_CONNECTION") || is_set("SSH_TTY") {
            Self::Ssh
        } else {
            Self::Desktop
        }
    }

    /// What to do here when there is no keyring.
    pub(crate) fn advice(self) -> String {
        self.advice_on(if cfg!(windows) {
            Platform::Windows
        } else if cfg!(target_vendor = "apple") {
            Platform::Apple
        } else {
            Platform::SecretService
        })
    }

    fn advice_on(self, platform: Platform) -> String {
        let remedy = match (platform, self) {
            (_, Self::Container | Self::ContinuousIntegration) => {
                return "there is no user session here: mount the key as a secret and ask for `KeyFileStore::mounted`, \
                        or a directory of your own that is not in the image and ask for `KeyFileStore::new`"
                    .into();
            }
            (Platform::Windows, Self::Ssh) => {
                "a logon over the network has no Credential Manager: run the program in a desktop session of \
                 this user, or with `runas`"
            }
            (Platform::Windows, _) => {
                "log on to Windows interactively, and see that the service \"Credential Manager\" (VaultSvc) runs"
            }
            (Platform::Apple, Self::Ssh) => {
                "the login Keychain is locked in a remote shell: run `security unlock-keychain` in it"
            }
            (Platform::Apple, _) => "log in, and see in Keychain Access that the login Keychain is there",
            (Platform::SecretService, Self::Ssh) => {
                "a remote shell has no desktop session: run `dbus-run-session -- sh`, and in it \
                 `gnome-keyring-daemon --unlock --components=secrets`"
            }
            (Platform::SecretService, Self::Wsl) => {
                "install and start gnome-keyring in the distribution, or run the Windows build, which uses the \
                 Credential Manager"
            }
            (Platform::SecretService, Self::Desktop) => {
                "start a Secret Service (GNOME Keyring, KWallet or KeePassXC with its integration on) in the \
                 session, with a default collection"
            }
        };
        format!("{remedy}; or ask for `KeyFileStore`, a key in a file, where that is acceptable")
    }
}

/// Whose keyring it is.
#[derive(Debug, Clone, Copy)]
enum Platform {
    SecretService,
    Windows,
    Apple,
}

impl fmt::Display for HostEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Desktop => "in a desktop session",
            Self::Ssh => "over SSH",
            Self::Wsl => "under WSL",
            Self::Container => "in a container",
            Self::ContinuousIntegration => "in continuous integration",
        })
    }
}

/// Asks the platform keyring whether it can be used, for 3 seconds at most. Nothing is written to
/// it, and no prompt is shown.
///
/// ```no_run
/// let probe = tokenseal::key_store::probe();
/// if !probe.is_usable() {
///     eprintln!("{probe}");
/// }
/// ```
pub fn probe() -> Probe {
    let store = Probing(KeyringStore::platform());
    let bounded = BoundedKeyStore::new(Arc::new(store), "tokenseal", "probe");
    let result = bounded.prepare(DEADLINE);
    Probe { store: bounded.description(), result, host_environment: HostEnvironment::detect() }
}

/// Looks where the keyring's own `prepare` would prompt.
#[derive(Debug)]
struct Probing(KeyringStore);

impl KeyStore for Probing {
    fn description(&self) -> String {
        self.0.description()
    }

    fn identity(&self) -> Option<String> {
        self.0.identity()
    }

    fn prepare(&self) -> Result<(), KeyStoreError> {
        self.0.check_fork()?;
        let store = self.description();
        match native::connect().and_then(|_| native::is_locked()) {
            Ok(false) => Ok(()),
            Ok(true) => Err(KeyStoreError::locked(store, "its default collection is locked")),
            Err(error) => Err(explain(error, store, None)),
        }
    }

    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.0.create(name, text)
    }

    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        self.0.read(name)
    }

    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.0.delete(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surroundings_are_told_apart_and_each_has_advice() {
        let none = |_: &Path| false;
        for (variable, expected) in [
            ("CI", HostEnvironment::ContinuousIntegration),
            ("WSL_DISTRO_NAME", HostEnvironment::Wsl),
            ("SSH_CONNECTION", HostEnvironment::Ssh),
            ("container", HostEnvironment::Container),
            ("OTHER", HostEnvironment::Desktop),
        ] {
            let found = HostEnvironment::from(|name| name == variable, none);
            assert_eq!(found, expected);
            for platform in [Platform::SecretService, Platform::Windows, Platform::Apple] {
                assert!(found.advice_on(platform).contains("KeyFileStore"), "{found}");
            }
        }
        for (platform, own) in [
            (Platform::SecretService, "gnome-keyring"),
            (Platform::Windows, "Credential Manager"),
            (Platform::Apple, "security unlock-keychain"),
        ] {
            assert!(HostEnvironment::Ssh.advice_on(platform).contains(own), "{platform:?}");
        }
        let docker = HostEnvironment::from(|_| false, |path| path == Path::new("/.dockerenv"));
        assert_eq!(docker, HostEnvironment::Container);
    }
}

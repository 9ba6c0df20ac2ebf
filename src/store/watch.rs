//! Notices that a file was replaced, with one `stat` where that can be relied on.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::private_file;
use crate::seal::HEADER_LEN;

/// A file that was read or written, kept open: as long as it is, its inode number cannot be given to
/// another file, so that equal numbers mean the very same file, whatever its size and time are.
#[derive(Debug)]
pub(crate) struct Watch {
    _file: File,
    identity: Identity,
}

#[derive(Debug, PartialEq, Eq)]
enum Identity {
    #[cfg(target_os = "linux")]
    Inode(Inode),
    /// Every record has a header of its own: its nonce is random.
    Header(Vec<u8>),
}

#[cfg(target_os = "linux")]
#[derive(Debug, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
    /// Against a file that is written in place, which this crate never does.
    size: u64,
    modified: (i64, i64),
}

#[cfg(target_os = "linux")]
impl Inode {
    fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Watch {
    /// Watches `file`, which holds `record`.
    pub(crate) fn new(file: File, record: &[u8], has_reliable_identity: bool) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        if has_reliable_identity {
            let identity = Identity::Inode(Inode::of(&file.metadata()?));
            return Ok(Self { _file: file, identity });
        }
        let _ = has_reliable_identity;
        let header = record[..record.len().min(HEADER_LEN)].to_vec();
        Ok(Self { _file: file, identity: Identity::Header(header) })
    }

    /// Whether the file at `path` is this one.
    pub(crate) fn is_current(&self, path: &Path) -> io::Result<bool> {
        let now = match &self.identity {
            #[cfg(target_os = "linux")]
            Identity::Inode(_) => {
                std::fs::symlink_metadata(path).map(|found| Identity::Inode(Inode::of(&found)))
            }
            Identity::Header(known) => read_header(path, known.len()).map(Identity::Header),
        };
        match now {
            Ok(now) => Ok(now == self.identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn read_header(path: &Path, length: usize) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut header = Vec::with_capacity(length);
    // What may not be opened is reported when the file is read in earnest: here it is a change.
    if let Ok(Some(file)) = private_file::open(path) {
        file.take(length as u64).read_to_end(&mut header)?;
    }
    Ok(header)
}

/// Whether inode numbers in a directory can be relied on: on local file systems, not over a network.
#[cfg(target_os = "linux")]
pub(crate) fn has_reliable_identity(directory: &Path) -> bool {
    /// ext2/3/4, XFS, Btrfs, tmpfs, ramfs, F2FS, ZFS, overlayfs, bcachefs, eCryptfs.
    const LOCAL: [u64; 10] = [
        0xEF53,
        0x5846_5342,
        0x9123_683E,
        0x0102_1994,
        0x8584_58F6,
        0xF2F5_2010,
        0x2FC1_2FC1,
        0x794C_7630,
        0xCA45_1A4E,
        0xF15F,
    ];
    // The field's type differs between architectures; the numbers are 32 bits on all of them.
    #[allow(clippy::cast_sign_loss, clippy::cast_lossless, clippy::unnecessary_cast)]
    rustix::fs::statfs(directory).is_ok_and(|found| LOCAL.contains(&(found.f_type as u64 & 0xFFFF_FFFF)))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn has_reliable_identity(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn watch(path: &Path, reliable: bool) -> Watch {
        let file = private_file::open(path).unwrap().unwrap();
        Watch::new(file, &fs::read(path).unwrap(), reliable).unwrap()
    }

    fn write(path: &Path, bytes: &[u8]) {
        use std::io::Write as _;
        private_file::create_new(path).unwrap().write_all(bytes).unwrap();
    }

    #[test]
    fn a_replacement_is_noticed_though_size_and_time_repeat() {
        let directory = tempfile::tempdir().unwrap();
        let (path, next) = (directory.path().join("a"), directory.path().join("b"));
        for reliable in [true, false] {
            let _ = fs::remove_file(&path);
            write(&path, &[0; 200]);
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            for round in 1..200_u8 {
                let watched = watch(&path, reliable);
                assert!(watched.is_current(&path).unwrap());
                write(&next, &[round; 200]);
                File::options().write(true).open(&next).unwrap().set_modified(time).unwrap();
                fs::rename(&next, &path).unwrap();
                assert!(!watched.is_current(&path).unwrap(), "round {round}");
            }
        }
    }

    #[test]
    fn a_file_that_is_gone_is_no_longer_current() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        for reliable in [true, false] {
            write(&path, b"x");
            let watched = watch(&path, reliable);
            fs::remove_file(&path).unwrap();
            assert!(!watched.is_current(&path).unwrap());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn network_and_kernel_file_systems_are_not_relied_on() {
        assert!(!has_reliable_identity(Path::new("/proc")));
        assert!(!has_reliable_identity(Path::new("/no/such/place")));
    }
}

//! Notices that a file was replaced, with one `stat` where that can be relied on.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;
use std::time::SystemTime;

use crate::private_file;
use crate::seal::HEADER_LEN;

/// A file that was read or written.
#[derive(Debug)]
pub(crate) struct Watch(Identity);

#[derive(Debug)]
enum Identity {
    #[cfg(target_os = "linux")]
    Inode(Inode),
    /// Every record has a header of its own: its nonce is random. The file is not kept open, which on
    /// Windows would be in the way of its replacement.
    Header(Header),
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    bytes: Vec<u8>,
    /// Against a file that is written in place, which this crate never does.
    size: u64,
    modified: Option<SystemTime>,
}

impl Header {
    fn new(bytes: Vec<u8>, metadata: &Metadata) -> Self {
        Self { bytes, size: metadata.len(), modified: metadata.modified().ok() }
    }
}

/// As long as a file is open its inode number cannot be given to another one, so that equal numbers
/// mean the very same file, whatever its size and time are.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Inode {
    _file: File,
    found: Found,
}

#[cfg(target_os = "linux")]
#[derive(Debug, PartialEq, Eq)]
struct Found {
    device: u64,
    number: u64,
    /// Against a file that is written in place, which this crate never does.
    size: u64,
    modified: (i64, i64),
}

#[cfg(target_os = "linux")]
impl Found {
    fn of(metadata: &Metadata) -> Self {
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
        let metadata = file.metadata()?;
        #[cfg(target_os = "linux")]
        if has_reliable_identity {
            let found = Found::of(&metadata);
            return Ok(Self(Identity::Inode(Inode { _file: file, found })));
        }
        let _ = has_reliable_identity;
        drop(file);
        let header = record[..record.len().min(HEADER_LEN)].to_vec();
        Ok(Self(Identity::Header(Header::new(header, &metadata))))
    }

    /// Whether the file at `path` is this one.
    pub(crate) fn is_current(&self, path: &Path) -> io::Result<bool> {
        let is_current = match &self.0 {
            #[cfg(target_os = "linux")]
            Identity::Inode(inode) => {
                std::fs::symlink_metadata(path).map(|found| Found::of(&found) == inode.found)
            }
            Identity::Header(known) => {
                read_header(path, known.bytes.len()).map(|found| found.as_ref() == Some(known))
            }
        };
        match is_current {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result,
        }
    }
}

fn read_header(path: &Path, length: usize) -> io::Result<Option<Header>> {
    // What cannot be opened at once is waited for, or reported, when the file is read in earnest: here it
    // is a change.
    let Ok(file) = private_file::glance(path) else { return Ok(None) };
    let metadata = file.metadata()?;
    let mut bytes = Vec::with_capacity(length);
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok(Some(Header::new(bytes, &metadata)))
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
    fn a_file_that_was_written_in_place_is_noticed_as_far_as_its_header_size_or_time_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        for reliable in [true, false] {
            let _ = fs::remove_file(&path);
            write(&path, &[0; 200]);
            let watched = watch(&path, reliable);
            assert!(watched.is_current(&path).unwrap());
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            assert!(!watched.is_current(&path).unwrap());
            let watched = watch(&path, reliable);
            file.set_len(199).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            drop(file);
            assert!(!watched.is_current(&path).unwrap());
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

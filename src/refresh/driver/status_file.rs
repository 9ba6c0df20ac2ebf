//! The file beside a lock file that holds a lease's status.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::private_file;
use crate::refresh::plan::status::{LONGEST, Status};

/// Reads a status. A file that is missing or cannot be read is an empty one.
pub(crate) fn read(path: &Path) -> Status {
    let Ok(Some(file)) = private_file::open(path) else { return Status::default() };
    let mut text = String::new();
    let read = file.take(LONGEST).read_to_string(&mut text);
    read.map_or_else(|_| Status::default(), |_| Status::parse(&text))
}

/// Replaces the file, whose lock the caller must hold.
pub(crate) fn write(status: &Status, path: &Path) -> std::io::Result<()> {
    let temporary = temporary(path);
    // Left by a process that was killed here.
    let _ = private_file::remove(&temporary);
    let mut file = private_file::create_new(&temporary).map_err(std::io::Error::other)?;
    let written =
        file.write_all(status.to_text().as_bytes()).and_then(|()| private_file::rename(&temporary, path));
    if written.is_err() {
        let _ = private_file::remove(&temporary);
    }
    written
}

/// Removes a status file, whose lock the caller must hold.
pub(crate) fn remove(path: &Path) {
    let _ = private_file::remove(path);
}

/// One name for each status, so that the next process removes what a killed one left.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x@y.refresh.status");
        assert_eq!(read(&path), Status::default());
        let status = Status { holder: Some(4711), ..Status::default() };
        write(&status, &path).unwrap();
        assert_eq!(read(&path), status);
        // What a killed process left does not hinder the next one, and no other litter is made.
        fs::write(temporary(&path), "half").unwrap();
        write(&status, &path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        remove(&path);
        assert_eq!(read(&path), Status::default());
    }

    #[test]
    fn what_is_not_a_status_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status");
        fs::write(&path, vec![0xff; 100_000]).unwrap();
        assert_eq!(read(&path), Status::default());
    }
}

//! The calls for access control on Windows that std does not have: the one module with `unsafe` in it.
//!
//! A file or a directory is made with its security descriptor, so that there is no moment at which
//! it has another. Descriptors come and go in their text form (SDDL), which safe code judges.
#![expect(unsafe_code, reason = "neither std nor a maintained safe crate can make a file with a descriptor")]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::windows::ffi::OsStrExt as _;
use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle};
use std::path::Path;
use std::ptr::null_mut;

use windows_sys::Win32::Foundation::{ERROR_SUCCESS, HANDLE, INVALID_HANDLE_VALUE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSecurityDescriptorToStringSecurityDescriptorW, ConvertSidToStringSidW,
    ConvertStringSecurityDescriptorToSecurityDescriptorW, GetSecurityInfo, SDDL_REVISION_1, SE_FILE_OBJECT,
};
use windows_sys::Win32::Security::{
    DACL_SECURITY_INFORMATION, GetTokenInformation, OWNER_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR,
    SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::Storage::FileSystem::{CreateDirectoryW, CreateFileW, FILE_FLAG_OPEN_REPARSE_POINT};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

const OWNER_AND_LIST: u32 = OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION;

/// Memory that Windows allocated and that is given back with `LocalFree`.
struct Local<T>(*mut T);

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a call that documents `LocalFree`, and is freed once.
        unsafe { LocalFree(self.0.cast()) };
    }
}

impl Local<u16> {
    /// The text up to its NUL.
    fn to_text(&self) -> String {
        let mut length = 0;
        // SAFETY: Windows ends the text with a NUL, and nothing before it is out of bounds.
        let text = unsafe {
            while *self.0.add(length) != 0 {
                length += 1;
            }
            std::slice::from_raw_parts(self.0, length)
        };
        String::from_utf16_lossy(text)
    }
}

/// A security descriptor in the form that Windows works with.
pub(super) struct Descriptor(Local<std::ffi::c_void>);

impl Descriptor {
    /// Reads the text form.
    pub(super) fn parse(sddl: &str) -> io::Result<Self> {
        let sddl = wide(OsStr::new(sddl))?;
        let mut descriptor: PSECURITY_DESCRIPTOR = null_mut();
        // SAFETY: the text ends with a NUL; the descriptor is written where it is asked for.
        let parsed = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                sddl.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                null_mut(),
            )
        };
        if parsed == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(Local(descriptor))) }
    }

    /// The owner and the access list of an open file or directory.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let mut descriptor: PSECURITY_DESCRIPTOR = null_mut();
        // SAFETY: the handle is open for as long as `file` is borrowed; only the descriptor is asked for.
        let result = unsafe {
            GetSecurityInfo(
                file.as_raw_handle(),
                SE_FILE_OBJECT,
                OWNER_AND_LIST,
                null_mut(),
                null_mut(),
                null_mut(),
                null_mut(),
                &raw mut descriptor,
            )
        };
        if result == ERROR_SUCCESS { Ok(Self(Local(descriptor))) } else { Err(os_error(result)) }
    }

    /// The text form.
    pub(super) fn to_text(&self) -> io::Result<String> {
        let mut text = null_mut();
        // SAFETY: the descriptor is valid, for Windows made it; the text is written where it is asked for.
        let written = unsafe {
            ConvertSecurityDescriptorToStringSecurityDescriptorW(
                self.0.0,
                SDDL_REVISION_1,
                OWNER_AND_LIST,
                &raw mut text,
                null_mut(),
            )
        };
        if written == 0 { Err(io::Error::last_os_error()) } else { Ok(Local(text).to_text()) }
    }

    fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).expect("it is a small structure"),
            lpSecurityDescriptor: self.0.0,
            bInheritHandle: 0,
        }
    }
}

/// The security identifier of the user that this process runs as.
pub(super) fn current_user() -> io::Result<String> {
    let mut token: HANDLE = null_mut();
    // SAFETY: the pseudo handle of the process is always valid; the token is written where it is asked for.
    let opened = unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) };
    if opened == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was opened just now, and nobody else closes it.
    let token = unsafe { OwnedHandle::from_raw_handle(token) };
    // A `TOKEN_USER` and the identifier that it points to, of 68 bytes at most; aligned for both.
    let mut user = [0_u64; 32];
    let mut length = 0;
    // SAFETY: the buffer is as long as is said.
    let asked = unsafe {
        GetTokenInformation(
            token.as_raw_handle(),
            TokenUser,
            user.as_mut_ptr().cast(),
            u32::try_from(size_of_val(&user)).expect("it is a small buffer"),
            &raw mut length,
        )
    };
    if asked == 0 {
        return Err(io::Error::last_os_error());
    }
    let mut text = null_mut();
    // SAFETY: Windows wrote a `TOKEN_USER` to the start of the buffer, whose identifier lies behind it.
    let written = unsafe {
        let user = user.as_ptr().cast::<TOKEN_USER>();
        ConvertSidToStringSidW((*user).User.Sid, &raw mut text)
    };
    if written == 0 { Err(io::Error::last_os_error()) } else { Ok(Local(text).to_text()) }
}

/// Makes a directory with a descriptor of its own.
pub(super) fn create_directory(path: &Path, descriptor: &Descriptor) -> io::Result<()> {
    let path = wide(path.as_os_str())?;
    let attributes = descriptor.attributes();
    // SAFETY: the path ends with a NUL; the attributes and the descriptor outlive the call.
    let made = unsafe { CreateDirectoryW(path.as_ptr(), &raw const attributes) };
    if made == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens or makes a file; one that is made gets the descriptor. A link is not followed.
pub(super) fn create_file(
    path: &Path,
    descriptor: &Descriptor,
    access: u32,
    share: u32,
    disposition: u32,
) -> io::Result<File> {
    let path = wide(path.as_os_str())?;
    let attributes = descriptor.attributes();
    // SAFETY: the path ends with a NUL; the attributes and the descriptor outlive the call.
    let handle = unsafe {
        CreateFileW(
            path.as_ptr(),
            access,
            share,
            &raw const attributes,
            disposition,
            FILE_FLAG_OPEN_REPARSE_POINT,
            null_mut(),
        )
    };
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was opened just now, and nobody else closes it.
    Ok(File::from(unsafe { OwnedHandle::from_raw_handle(handle) }))
}

fn os_error(code: u32) -> io::Error {
    io::Error::from_raw_os_error(code.cast_signed())
}

/// Text for Windows: UTF-16 that ends with a NUL, and has none in it.
fn wide(text: &OsStr) -> io::Result<Vec<u16>> {
    let mut wide: Vec<u16> = text.encode_wide().collect();
    if wide.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    wide.push(0);
    Ok(wide)
}

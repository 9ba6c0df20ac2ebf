//! Files of every released format open for ever. Each was made by this crate when its format was new,
//! and is never made again.
#![cfg(feature = "file")]

mod common;

use std::path::Path;

use common::Bench;

/// On Windows it is by what it inherits.
fn make_private(path: &Path, mode: u32) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let _ = (path, mode);
}

#[test]
fn files_of_format_1_open() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1");
    let bench = Bench::new();
    for (from, to) in [("tokens", "tokens"), ("keys", "keys")] {
        let to = bench.base.path().join(to);
        std::fs::create_dir(&to).unwrap();
        make_private(&to, 0o700);
        for name in common::files(&golden.join(from)) {
            std::fs::copy(golden.join(from).join(&name), to.join(&name)).unwrap();
            make_private(&to.join(&name), 0o600);
        }
    }
    let cache = common::with_key_file(bench.base.path()).open().unwrap();
    let json = cache.read(|tokens| tokens.serialize().into_json().expose().to_vec()).unwrap();
    assert_eq!(
        String::from_utf8(json).unwrap().trim(),
        std::fs::read_to_string(golden.join("content.json")).unwrap().trim()
    );
    // And it can be changed.
    cache.add(&common::response("bob", "read")).unwrap();
    assert_eq!(cache.accounts().unwrap().len(), 2);
}

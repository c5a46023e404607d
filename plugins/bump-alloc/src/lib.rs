//! An allocator for handlers that run one call at a time.
//!
//! A call allocates its arguments, its working data and its results, and by the time the engine has read the results
//! and the bindings have freed them, nothing of it is left. So memory is taken from the front of an arena, freeing is
//! counting down, and when the count reaches zero the arena starts again from its beginning. What does not fit, or is
//! large, goes to the system allocator: a handler that keeps something for ever is slower here, never wrong.
//!
//! ```text
//! #[global_allocator]
//! static ALLOCATOR: bump_alloc::BumpAlloc = bump_alloc::BumpAlloc::new();
//! ```
//!
//! It is `Sync` on WebAssembly without threads only, where there is one thread to use it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;

/// Room for the small allocations of one call.
const ARENA_BYTES: usize = 256 * 1024;
/// Larger than this goes to the system allocator at once, so that one payload does not use up the arena.
const SMALL_BYTES_MAX: usize = 64 * 1024;

#[repr(C, align(16))]
struct Arena(UnsafeCell<[MaybeUninit<u8>; ARENA_BYTES]>);

/// The allocator; see the module's text.
pub struct BumpAlloc {
    arena: Arena,
    /// Where the next allocation starts, counted from the arena's beginning.
    next: Cell<usize>,
    /// How many allocations of the arena are in use. Zero means that nothing points into it.
    in_use: Cell<usize>,
}

// SAFETY: without the `atomics` feature a WebAssembly module has one thread, so no two calls run at the same time.
#[cfg(all(target_family = "wasm", not(target_feature = "atomics")))]
unsafe impl Sync for BumpAlloc {}

impl BumpAlloc {
    /// An allocator with an empty arena.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            arena: Arena(UnsafeCell::new([MaybeUninit::uninit(); ARENA_BYTES])),
            next: Cell::new(0),
            in_use: Cell::new(0),
        }
    }

    fn base(&self) -> *mut u8 {
        self.arena.0.get().cast()
    }

    /// Where `pointer` lies in the arena; none where it came from the system allocator.
    fn place(&self, pointer: *mut u8) -> Option<usize> {
        let place = pointer.addr().wrapping_sub(self.base().addr());
        (place < ARENA_BYTES).then_some(place)
    }
}

impl Default for BumpAlloc {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for BumpAlloc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BumpAlloc")
            .field("next", &self.next.get())
            .field("in_use", &self.in_use.get())
            .finish()
    }
}

// SAFETY: an allocation from the arena lies between `next` as it was and `next` as it becomes, and `next` goes back
// only when no allocation of the arena is in use, or over the last allocation's own end; so no two of them overlap.
// The arena's address does not change while anything is in use: a global allocator is a static. Everything else is
// the system allocator's, told apart by its address. No method panics or unwinds.
unsafe impl GlobalAlloc for BumpAlloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= 16 && layout.size() <= SMALL_BYTES_MAX {
            // The arena is aligned to 16, so an aligned place is an aligned address. Neither sum can overflow:
            // `next` is at most the arena's size, alignment and size are bounded above.
            let start = (self.next.get() + layout.align() - 1) & !(layout.align() - 1);
            let end = start + layout.size();
            if end <= ARENA_BYTES && start < ARENA_BYTES {
                self.next.set(end);
                self.in_use.set(self.in_use.get() + 1);
                // SAFETY: `start` lies within the arena.
                return unsafe { self.base().add(start) };
            }
        }
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if self.place(pointer).is_none() {
            // SAFETY: not of the arena, so it came from the system allocator, with this layout.
            return unsafe { System.dealloc(pointer, layout) };
        }
        let in_use = self.in_use.get() - 1;
        self.in_use.set(in_use);
        if in_use == 0 {
            self.next.set(0);
        }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(place) = self.place(pointer) else {
            // SAFETY: not of the arena, so it came from the system allocator, with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        // The last allocation grows or shrinks where it is.
        if place + layout.size() == self.next.get() && size <= ARENA_BYTES - place {
            self.next.set(place + size);
            return pointer;
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, does not overflow `isize`.
        let moved = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both hold at least the smaller size, and a new allocation does not overlap one in use.
            unsafe {
                pointer.copy_to_nonoverlapping(moved, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn starts_again_when_nothing_is_in_use() {
        let bump = Box::new(BumpAlloc::new());
        // SAFETY: each allocation is freed once, with its own layout, and written within its size.
        unsafe {
            let first = bump.alloc(layout(100, 8));
            let second = bump.alloc(layout(100, 8));
            assert_ne!(first, second);
            bump.dealloc(first, layout(100, 8));
            let third = bump.alloc(layout(1, 1));
            assert!(third > second, "a place is not used again while another is in use");
            bump.dealloc(third, layout(1, 1));
            bump.dealloc(second, layout(100, 8));
            assert_eq!(bump.alloc(layout(8, 8)), first);
        }
    }

    #[test]
    fn allocations_in_use_never_overlap() {
        let bump = Box::new(BumpAlloc::new());
        let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let mut seed = 7_u32;
        for round in 0..20_000_u32 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let size = 1 + (seed >> 8) as usize % 3_000;
            let align = 1 << ((seed >> 3) % 5);
            // SAFETY: each allocation is freed or resized once, with its own layout, and touched within its size.
            unsafe {
                let mark = (round % 251) as u8;
                match seed % 4 {
                    0 | 1 => {
                        let pointer = bump.alloc(layout(size, align));
                        assert_eq!(pointer.addr() % align, 0);
                        pointer.write_bytes(mark, size);
                        held.push((pointer, layout(size, align), mark));
                    }
                    2 if !held.is_empty() => {
                        let (pointer, was, mark) = held.swap_remove(size % held.len());
                        let grown = bump.realloc(pointer, was, size);
                        for place in 0..was.size().min(size) {
                            assert_eq!(grown.add(place).read(), mark);
                        }
                        grown.write_bytes(mark, size);
                        held.push((grown, layout(size, was.align()), mark));
                    }
                    _ if !held.is_empty() => {
                        let (pointer, was, mark) = held.swap_remove(size % held.len());
                        for place in 0..was.size() {
                            assert_eq!(pointer.add(place).read(), mark);
                        }
                        bump.dealloc(pointer, was);
                    }
                    _ => {}
                }
                if round % 500 == 0 {
                    for (pointer, was, _) in held.drain(..) {
                        bump.dealloc(pointer, was);
                    }
                    assert_eq!(bump.in_use.get(), 0);
                    assert_eq!(bump.next.get(), 0);
                }
            }
        }
        for (pointer, was, _) in held {
            // SAFETY: as above.
            unsafe { bump.dealloc(pointer, was) };
        }
    }

    #[test]
    fn large_and_overflowing_allocations_come_from_the_system() {
        let bump = Box::new(BumpAlloc::new());
        // SAFETY: each allocation is freed once, with its own layout.
        unsafe {
            let large = bump.alloc(layout(SMALL_BYTES_MAX + 1, 1));
            assert!(bump.place(large).is_none());
            bump.dealloc(large, layout(SMALL_BYTES_MAX + 1, 1));
            let small: Vec<_> = (0..10).map(|_| bump.alloc(layout(SMALL_BYTES_MAX, 1))).collect();
            assert_eq!(
                small.iter().filter(|pointer| bump.place(**pointer).is_some()).count(),
                4
            );
            for pointer in small {
                bump.dealloc(pointer, layout(SMALL_BYTES_MAX, 1));
            }
            assert_eq!(bump.next.get(), 0);
        }
    }
}

//! Random numbers that cost no system call and no lock: a generator per thread, seeded by the system. For ids and for
//! spreading delays; never for secrets.

use std::{cell::Cell, hash::BuildHasher};

/// 64 random bits. Source: xorshift64*, Vigna 2016.
#[must_use]
pub fn random64() -> u64 {
    thread_local! {
        // `RandomState` draws its keys from the kernel, once a thread.
        static STATE: Cell<u64> = Cell::new(std::hash::RandomState::new().hash_one(0_u8) | 1);
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// A random number from 0 to 1.
#[must_use]
pub fn random() -> f64 {
    // The upper 32 bits are plenty for spreading delays.
    f64::from(u32::try_from(random64() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

//! Memory of one instance: all its memories and tables together count against one budget. `StoreLimits` bounds each of
//! them, and ninety memories got ninety times as much.

use wasmtime::ResourceLimiter;

use super::engine::TABLE_ELEMENTS_MAX;

/// Bytes that one table element takes in the host.
const TABLE_ELEMENT_BYTES: usize = 8;
/// Core instances, memories and tables a component may hold. Guests of known languages hold up to 40 instances.
const ITEMS_MAX: usize = 256;

/// Counts what an instance holds.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    bytes_max: usize,
    /// Whether growth was refused since the last [`Self::begin_call`]: a guest that dies then died of it.
    refused: bool,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes: 0, bytes_max, refused: false }
    }

    pub(super) fn begin_call(&mut self) {
        self.refused = false;
    }

    pub(super) fn was_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes held now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn grow(&mut self, more: usize) -> bool {
        match self.bytes.checked_add(more).filter(|bytes| *bytes <= self.bytes_max) {
            Some(bytes) => {
                self.bytes = bytes;
                true
            }
            None => {
                self.refused = true;
                false
            }
        }
    }
}

impl ResourceLimiter for Budget {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current)))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if let Some(maximum) = maximum.filter(|maximum| desired > *maximum) {
            // Not a bound of the guest's own, but what a table may have here.
            self.refused |= maximum >= TABLE_ELEMENTS_MAX;
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT_BYTES)))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = true;
        Ok(())
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = true;
        Ok(())
    }

    fn instances(&self) -> usize {
        ITEMS_MAX
    }

    fn tables(&self) -> usize {
        ITEMS_MAX
    }

    fn memories(&self) -> usize {
        ITEMS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_share_one_budget() {
        let mut budget = Budget::new(100);
        assert!(budget.memory_growing(0, 40, None).expect("an answer"));
        assert!(budget.memory_growing(0, 40, None).expect("an answer"));
        assert!(budget.table_growing(0, 2, None).expect("an answer"));
        assert!(!budget.was_refused());
        assert!(!budget.table_growing(2, 4, None).expect("an answer"));
        assert!(budget.was_refused());
        assert_eq!(budget.bytes(), 96);
    }
}

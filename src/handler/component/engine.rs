//! The one wasmtime engine, set up as measured, and what every component is linked against.

use std::{fmt, sync::Arc};

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmBacktraceDetails,
    component::Linker,
};

use super::{clock::Clock, host::State};

/// Instances that can live at a time, over all plugins and lanes. Address space only: an unused slot costs nothing.
const INSTANCES_MAX: u32 = 1000;
/// Core instances, of which a component from Python holds 14 and one from Rust 3.
const CORE_INSTANCES_MAX: u32 = 8000;
/// Linear memories.
const MEMORIES_MAX: u32 = 2000;
/// Tables.
const TABLES_MAX: u32 = 8000;
/// Elements of one table.
pub(super) const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Memory of a slot that stays resident between two instances, where the kernel can tell which pages were touched.
/// Without that (Linux before 6.7) each reuse would write all of it.
const KEEP_RESIDENT: usize = 1 << 20;
const KEEP_RESIDENT_WITHOUT_PAGEMAP: usize = 64 << 10;
/// Stack of a guest. Deep recursion traps at it.
const STACK_BYTES: usize = 512 << 10;

/// Compiles nothing itself: it links and runs what [`super::compile`] made.
pub struct ComponentEngine {
    pub(super) engine: Engine,
    pub(super) linker: Linker<State>,
    pub(super) clock: Arc<Clock>,
}

impl ComponentEngine {
    /// The engine of this process.
    ///
    /// # Errors
    /// When the machine refuses the address space or a thread.
    pub fn new() -> Result<Self, wasmtime::Error> {
        let engine = Engine::new(&running_config())?;
        let linker = super::host::linker(&engine)?;
        let clock = Arc::new(Clock::start(engine.clone())?);
        Ok(Self { engine, linker, clock })
    }
}

impl fmt::Debug for ComponentEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComponentEngine").finish_non_exhaustive()
    }
}

/// What both the compiling child and the running process must agree on. The reasons are measurements: concurrency
/// support costs 250 ns a call, fuel 17 %, Winch code runs 1.3 times slower; threads let a wait outlive its deadline.
fn shared_config() -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .concurrency_support(false)
        .wasm_component_model(true)
        .wasm_memory64(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_relaxed_simd(false)
        .wasm_tail_call(true)
        .wasm_multi_memory(true)
        .wasm_simd(true);
    config
}

fn running_config() -> Config {
    let pagemap = PoolingAllocationConfig::is_pagemap_scan_available();
    let keep = if pagemap { KEEP_RESIDENT } else { KEEP_RESIDENT_WITHOUT_PAGEMAP };
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(INSTANCES_MAX)
        .total_core_instances(CORE_INSTANCES_MAX)
        .total_memories(MEMORIES_MAX)
        .total_tables(TABLES_MAX)
        .max_memories_per_component(64)
        .max_memories_per_module(64)
        .max_tables_per_component(256)
        .max_tables_per_module(64)
        .max_core_instances_per_component(256)
        .table_elements(TABLE_ELEMENTS_MAX)
        .linear_memory_keep_resident(keep)
        .table_keep_resident(64 << 10)
        .pagemap_scan(Enabled::Auto);
    let mut config = shared_config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// For the child process that compiles: the same code, without the address space to run it.
pub(super) fn compiling_config() -> Config {
    let mut config = shared_config();
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_compiles_the_engine_runs() {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let hash = |config: &Config| {
            let mut hasher = DefaultHasher::new();
            Engine::new(config).expect("an engine").precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&compiling_config()), hash(&running_config()));
    }
}

//! temporary
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
use clap::Parser;
#[derive(Parser)]
enum Verb { Bench(helixmq::cli::bench::Args), CompileComponent { input: std::path::PathBuf, output: std::path::PathBuf, cpu: u64, memory: u64 } }
fn main() -> anyhow::Result<()> {
    match Verb::parse() {
        Verb::Bench(args) => println!("{}", helixmq::cli::bench::run(&args)?),
        Verb::CompileComponent { input, output, cpu, memory } => helixmq::handler::component::run_compile_child(&input, &output, cpu, memory)?,
    }
    Ok(())
}

//! `cargo bench`: the time of each step of the packet path, by Criterion.
//!
//! `--count CASE TIMES` runs one case so many times and does nothing else: callgrind counts its instructions
//! (`rust/instructions.py`). `--cases` lists the cases.

use std::process::ExitCode;

use criterion::{Criterion, Throughput};

mod cases;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "--cases"] => {
            for (name, _) in cases::ALL {
                println!("{name}");
            }
        }
        [_, "--count", name, times] => {
            let Some((name, make)) = cases::ALL.iter().find(|(case, _)| *case == name) else {
                eprintln!("no such case: {name}");
                return ExitCode::FAILURE;
            };
            let mut case = make(name);
            for _ in 0..times.parse().expect("a number of times") {
                (case.run)();
            }
        }
        _ => measure(),
    }
    ExitCode::SUCCESS
}

/// Measure every case with Criterion.
fn measure() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, make) in cases::ALL {
        let mut case = make(name);
        let mut group = criterion.benchmark_group(case.name);
        if case.bytes > 0 {
            group.throughput(Throughput::Bytes(case.bytes as u64));
        }
        group.bench_function("run", |bencher| bencher.iter(|| (case.run)()));
        group.finish();
    }
    criterion.final_summary();
}

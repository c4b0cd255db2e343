//! criterion benchmarks; see `benches/benches`.

"""Public benchmarks and our own offline tasks, by way of lmms-eval, and speed; see docs/benchmarks.md."""

"""Public benchmarks and our own offline tasks, by way of lmms-eval; see docs/benchmarks.md."""

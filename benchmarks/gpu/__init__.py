"""What a GPU makes of this project, in two commands of some minutes: benchmarks/README.md."""

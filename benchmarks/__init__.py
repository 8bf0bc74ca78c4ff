"""Speed and memory, measured: scripts that anyone can run, each beside what people use instead."""

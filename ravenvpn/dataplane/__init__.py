"""The data plane, and the one place that chooses its body."""

"""Property-based tests (hypothesis), with fixed seeds so that CI repeats them."""

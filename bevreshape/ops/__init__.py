"""Fast kernels, and every private or internal API of torch."""

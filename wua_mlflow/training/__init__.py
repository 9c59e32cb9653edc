"""Training a network, evaluating it, and measuring its latency."""

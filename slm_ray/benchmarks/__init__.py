"""What the benchmark jobs measure with: an endpoint of fixed latency, and the programs that race against it."""

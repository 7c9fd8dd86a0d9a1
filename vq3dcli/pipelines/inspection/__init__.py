"""What is in shards, token stores, weights and runs."""

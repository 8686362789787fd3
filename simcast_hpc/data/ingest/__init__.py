"""Import of radar files into prepared training data: scan, inventory, choice of events, and shards per day."""

"""What a run reports while it trains: log lines and metrics."""

"""What a run leaves behind to be looked at: its folder, its metrics, its log."""

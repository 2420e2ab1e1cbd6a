"""What answers a token: feed-forward networks and cheaper things, several side by side, rows sorted by expert."""

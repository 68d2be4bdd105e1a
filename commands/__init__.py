"""What the entry scripts do: build everything a command needs from its options, and run it."""

"""What the stateful home has for speed alone."""

"""What a pipeline is: links, chains of them, and wrappers around them."""

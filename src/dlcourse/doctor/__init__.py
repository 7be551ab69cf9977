"""Doctor: what is wrong with this machine, the store, or a topic."""

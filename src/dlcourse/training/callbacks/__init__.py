"""Lightning callbacks, one idea a file."""

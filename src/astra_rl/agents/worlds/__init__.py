"""The worlds that come with the library, all written for it; one module each."""

"""Statistics: pure functions of counts and scores."""

"""One training on several processes: the process group, and how the work of a step is divided."""

"""What arrives: readers of published traces, generators, transforms and a writer. All are iterators sorted by time."""

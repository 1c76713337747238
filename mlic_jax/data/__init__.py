"""Sources to records to batches: pixels and labels alone. A reader and its detector a format."""

"""From files to token ids: readers, datasets and batches."""

"""Is this dataset poisoned, by what, and where is the trigger? No labels and no clean data are needed."""

"""Evidence that outlives the recording."""

"""Pictures and words about a store."""

"""The sections of a report: each module looks at one thing that a run has left in the store."""

"""Steps: one module each with ``Params``, ``plan``, ``work`` and ``run``; they meet only in the store."""

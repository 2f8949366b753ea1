"""`adaptvis verify`: is steering right on this machine, with this model, and what does it cost.

Imports `bench`, `plugin` and what is below them; nothing of `doctor`.
"""

STEPS = ("exact", "itself", "graphs", "cost")

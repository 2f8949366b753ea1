"""`adaptvis verify`: is steering right on this machine, with this model, and what does it cost."""

STEPS = ("exact", "itself", "graphs", "cost")

"""`adaptvis doctor`: what works here, and with a model."""

"""What a request may ask for, and what it is told."""

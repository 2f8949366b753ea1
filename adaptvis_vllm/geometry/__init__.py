"""Where image positions lie: which picture, which frame, which rectangle of it."""

"""Alpha and threshold from data: one sweep on an engine, then every setting offline."""

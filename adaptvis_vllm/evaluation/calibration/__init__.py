"""Alpha and threshold from data: one sweep on an engine, then every setting offline.

The rest of the evaluation does not import it.
"""

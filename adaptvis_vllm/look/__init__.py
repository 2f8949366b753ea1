"""The page of `adaptvis look` and of `/adaptvis/look`: pictures, both answers, attention maps.

Imports `maps` alone.
"""

"""Reports as self-contained pages, with figures as SVG.

Imports no other room: it knows tables and figures, not what they are about.
"""

"""What users' files hold: JSON lines, tables, pictures, videos, URLs.

Imports no other room, and vLLM only inside functions.
"""

"""What users' files hold: JSON lines, pictures, videos, URLs.

Imports no other room, and vLLM only inside functions.
"""

"""What users' files hold: JSON lines, tables, pictures, videos, URLs."""

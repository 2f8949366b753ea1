"""Steering over HTTP."""

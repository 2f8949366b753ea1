"""What tests share: engines, servers, inputs, programs of their own.

Imports no test.
"""
